"""The tables of policy.toml as TOML gives them: which keys there are, and of what type.

What a value means is read in `load`. Fields of type Any are read there too, so that the message
can name the place in the file.
"""

from datetime import date
from typing import Annotated, Any

import msgspec

DEFAULT_LIFETIME = "30s"
_Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
_Names = Annotated[list[str], msgspec.Meta(min_length=1)]


class LimitsTable(msgspec.Struct, forbid_unknown_fields=True):
    """`[limits]` and `[roles.NAME.limits]`."""

    max_open: _Count | None = None
    knocks_per_minute: _Count | None = None
    max_key_age: str | None = None


class AllowTable(msgspec.Struct, forbid_unknown_fields=True, rename={"sources": "from"}):
    """`[[roles.NAME.allow]]`."""

    services: _Names
    sources: _Names | None = None
    when: str | None = None
    timezone: str | None = None
    country: str | None = None
    lifetime: str = DEFAULT_LIFETIME
    max_lifetime: str | None = None
    sessions: str = "keep"
    once: bool = False
    require: list[str] = []
    expires: Any = None
    review_by: date | None = None


class RoleTable(msgspec.Struct, forbid_unknown_fields=True):
    """`[roles.NAME]`."""

    description: str = ""
    expires: Any = None
    review_by: date | None = None
    limits: Any = {}
    allow: list[Any] = []


class AlwaysOpenTable(msgspec.Struct, forbid_unknown_fields=True, rename={"sources": "from"}):
    """`[[always_open]]`. Of `from`, only a list is looked into here."""

    services: _Names
    sources: _Names | str | None = None


class TestTable(msgspec.Struct, forbid_unknown_fields=True, rename={"source": "from"}):
    """`[[tests]]`."""

    access: str
    source: str
    expect: str
    name: str = ""
    identity: str | None = None
    role: str | None = None
    at: Any = None
    declared: bool = False
    touched: bool = False


class PolicyTable(msgspec.Struct, forbid_unknown_fields=True):
    """The whole file."""

    services: dict[str, Any] = {}
    roles: dict[str, Any] = {}
    always_open: list[Any] = []
    limits: Any = {}
    tests: list[Any] = []

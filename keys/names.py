"""Names of identities and roles: what stands in commands, policies and the record."""

import re
from collections.abc import Collection
from typing import Final

from keys.trouble import Trouble

MAX_NAME: Final = 64
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")


class BadName(Trouble, ValueError):
    """A name that nothing may be called. The message says what a name is made of."""


def identity_name(text: str) -> str:
    """The name of a person or a job, as it is. Raises BadName."""
    return _checked(text, "an identity")


def role_name(text: str) -> str:
    """The name of a role, as it is. Raises BadName."""
    return _checked(text, "a role")


def key_name(text: str) -> str:
    """The name of a private key in its directory. Raises BadName."""
    return _checked(text, "a key")


def roles_in_words(roles: Collection[str], none: str = "no role, so nothing is allowed") -> str:
    """What an identity has or gets: `role dba`, `roles dba, ops`, or what `none` says."""
    if not roles:
        return none
    return f"role{'s' if len(roles) > 1 else ''} {', '.join(sorted(roles))}"


def _checked(text: str, what: str) -> str:
    if not _NAME.fullmatch(text):
        hint = f"use 1 to {MAX_NAME} letters, digits and . _ @ + -, a letter or digit first"
        raise BadName(f"{text!r} cannot name {what}", hint)
    return text

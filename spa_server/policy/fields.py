"""Single values of policy.toml: a name, an access, a network, a lifetime, a moment.

Each says what was expected, with the file and the key path, where it is something else.
"""

import re
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Final, TypeVar

from keys.tomlfile import FileProblem, lower_first, string
from keys.when import parse_duration
from spa_protocol.access import Access
from spa_protocol.layout import MAX_LIFETIME_S, Address, Malformed

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_MAX_LINE: Final = 200
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_YEAR_10000_US: Final = 253_402_300_800_000_000
_A_TIME: Final = "a time with its offset, 2027-02-01T18:00:00+01:00"
_Choice = TypeVar("_Choice", bound=StrEnum)


class Fields:
    """The values of one file. `where` is the key path of each; all raise FileProblem."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def problem(self, where: str, problem: str) -> FileProblem:
        """What is wrong there."""
        return FileProblem(self.path, where, problem)

    def name(self, name: str, where: str) -> str:
        """The name of a service, a role or an identity, as it is."""
        if not _NAME.fullmatch(name):
            expected = "1 to 64 letters, digits and . _ @ + -, a letter or digit first"
            raise self.problem(where, f"a name is {expected}")
        return name

    def one_line(self, text: str, where: str) -> str:
        """The text, which may be empty."""
        if not text.isprintable() or len(text) > _MAX_LINE:
            problem = f"expected one line of at most {_MAX_LINE} characters, none of them invisible"
            raise self.problem(where, problem)
        return text

    def choice(self, text: str, choices: type[_Choice], where: str) -> _Choice:
        """One of the few words that may stand there."""
        try:
            return choices(text)
        except ValueError:
            expected = " or ".join(map(string, choices))
            raise self.problem(where, f"expected {expected}, got {text!r}") from None

    def access(self, text: object, where: str) -> Access:
        """From `tcp/22`."""
        if not isinstance(text, str):
            raise self.problem(where, 'expected text like "tcp/22"')
        try:
            return Access.parse(text)
        except Malformed as error:
            raise self.problem(where, str(error)) from None

    def address(self, text: str, where: str) -> Address:
        """A source as a knock can have it: IPv4 is not written as IPv6."""
        try:
            address = ip_address(text)
        except ValueError:
            address = None
        if address is None or "%" in text:
            raise self.problem(where, f"{text!r} is no address; write it like 10.20.3.4")
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            raise self.problem(where, f"{text!r} is IPv4; write {address.ipv4_mapped}")
        return address

    def lifetime(self, text: str, where: str) -> int:
        """Whole seconds, from 1 to what a knock can say."""
        try:
            lifetime_s = parse_duration(text)
        except ValueError as error:
            raise self.problem(where, lower_first(str(error))) from None
        if not 1 <= lifetime_s <= MAX_LIFETIME_S or lifetime_s != int(lifetime_s):
            raise self.problem(where, f"{text!r} is not a number of whole seconds from 1 on")
        return int(lifetime_s)

    def expiry(self, value: object, where: str) -> int | None:
        """A day ends nothing but begins: from its midnight on, UTC, the rule no longer allows."""
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day, tzinfo=UTC)
        return self.moment(value, where, f"a day, 2027-02-01, or {_A_TIME}")

    def moment(self, value: object, where: str, expected: str = _A_TIME) -> int | None:
        """Microseconds since 1970, from a time that says its offset."""
        if value is None:
            return None
        if not isinstance(value, datetime) or value.tzinfo is None:
            raise self.problem(where, f"expected {expected}")
        at_us = (value - _EPOCH) // timedelta(microseconds=1)
        if not 0 <= at_us < _YEAR_10000_US:
            raise self.problem(where, "out of range; write a year from 1970 to 9999")
        return at_us

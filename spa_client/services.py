"""Accesses as a person writes them: `tcp/22`, `udp/60000-60010`, `ssh`, `udp/domain`.

Names are those of the services database, /etc/services on Unix.
"""

import socket
from collections.abc import Callable, Iterable

from spa_protocol.access import Access, Protocol, check_together
from spa_protocol.layout import Malformed

Lookup = Callable[[str, str], int]


class BadAccess(ValueError):
    """What was asked for is no access. The message says what was expected."""


def parse_access(text: str, lookup: Lookup = socket.getservbyname) -> Access:
    """One access. A bare service name is TCP's where TCP has it, else UDP's, else SCTP's.

    `lookup` maps a name and `tcp`, `udp` or `sctp` to a port, or raises OSError.
    Raises BadAccess.
    """
    label, slash, name = text.strip().rpartition("/")
    if not _is_service_name(name):
        return _parse_numbers(text)
    wanted = [p for p in Protocol if not slash or p.label == label.lower()]
    if not wanted:
        return _parse_numbers(text)
    for protocol in wanted:
        port = _port_of(name, protocol, lookup)
        if port is not None:
            return Access(protocol, port, port)
    raise BadAccess(f"{text!r} is not in the services database; write it like tcp/22")


def together(accesses: Iterable[Access]) -> tuple[Access, ...]:
    """Each once. Raises BadAccess for more than one knock may ask for."""
    distinct = tuple(dict.fromkeys(accesses))
    try:
        check_together(distinct)
    except Malformed as problem:
        raise BadAccess(str(problem)) from None
    return distinct


def parse_port(text: str, lookup: Lookup = socket.getservbyname) -> Access:
    """The TCP access that `connect` needs, from a port number or name. Raises BadAccess."""
    access = parse_access(f"tcp/{text}", lookup)
    if access.size != 1:
        raise BadAccess(f"{text!r} is more than one port; a connection goes to one")
    return access


def _parse_numbers(text: str) -> Access:
    try:
        return Access.parse(text)
    except Malformed as problem:
        raise BadAccess(str(problem)) from None


def _is_service_name(name: str) -> bool:
    """Whether it has a letter, as every service name has (RFC 6335 section 5.1)."""
    return any(c.isalpha() for c in name)


def _port_of(name: str, protocol: Protocol, lookup: Lookup) -> int | None:
    try:
        return lookup(name, protocol.label) or None
    except (OSError, ValueError):
        return None

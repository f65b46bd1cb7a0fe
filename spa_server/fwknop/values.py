"""Single values of access.conf: networks, ports, seconds, Y or N, a date.

What fwknopd refuses is refused, and so is what it silently takes for something else (tried with
fwknopd 2.6.10): `tcp/22-30` is port 22 to it, `12x` is 12.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, tzinfo
from ipaddress import IPv4Address, IPv4Network, ip_network
from typing import Final

from spa_protocol.access import Access, Protocol
from spa_protocol.layout import MAX_LIFETIME_S
from spa_server.fwknop.stanza import Setting

EVERYWHERE: Final = IPv4Network("0.0.0.0/0")
MAX_PORTS: Final = 1024

_NETWORK: Final = re.compile(r"[0-9.]{7,15}(?:/[0-9.]{1,15})?")
_PORT: Final = re.compile(r"(tcp|udp)/([0-9]{1,5})", re.IGNORECASE)
_DATE: Final = re.compile(r"([0-9]{1,2})/([0-9]{1,2})/([0-9]{2}|[0-9]{4})")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_EPOCH_S: Final = 253_402_214_400  # 9999-12-31


def networks(setting: Setting) -> tuple[IPv4Network, ...]:
    """The networks of a SOURCE, none within another one. ANY is all of IPv4: there is no more."""
    found = [_network(setting, text) for text in _listed(setting)]
    ordered = sorted(set(found), key=lambda n: (int(n.network_address), n.prefixlen))
    kept: list[IPv4Network] = []
    for network in ordered:
        if not kept or network.network_address not in kept[-1]:
            kept.append(network)
    return tuple(kept)


def is_anywhere(setting: Setting) -> bool:
    """Whether a SOURCE or DESTINATION leaves nobody out."""
    return EVERYWHERE in networks(setting)


def accesses(setting: Setting) -> tuple[Access, ...]:
    """The ports of OPEN_PORTS or RESTRICT_PORTS, each once, in the order of the file."""
    found = dict.fromkeys(_access(setting, text) for text in _listed(setting))
    if len(found) > MAX_PORTS:
        raise setting.problem(f"more than {MAX_PORTS} ports", "divide the stanza")
    return tuple(found)


def seconds(setting: Setting) -> int:
    """A whole number; 0 means that fwknopd takes its default."""
    text = _bare(setting.value)
    if not re.fullmatch(r"[0-9]{1,12}", text) or int(text) > MAX_LIFETIME_S:
        raise setting.problem("no number of seconds", f"write one from 1 to {MAX_LIFETIME_S}")
    return int(text)


def is_yes(setting: Setting) -> bool:
    """As fwknopd does: what does not begin with Y is no."""
    return setting.value[:1] in ("Y", "y")


def expiry_us(setting: Setting, zone: tzinfo | None) -> int | None:
    """When a stanza ends, in microseconds since 1970; None for never.

    ACCESS_EXPIRE ends with the first moment of its day in `zone`, by default the system's.
    """
    if setting.variable == "ACCESS_EXPIRE_EPOCH":
        at_s = _bare(setting.value)
        if not re.fullmatch(r"[0-9]{1,12}", at_s) or int(at_s) > _MAX_EPOCH_S:
            raise setting.problem("no seconds since 1970", "write a number, as `date +%s` does")
        return int(at_s) * 1_000_000 or None
    return _midnight_us(setting, zone)


def _midnight_us(setting: Setting, zone: tzinfo | None) -> int:
    date = _DATE.fullmatch(_bare(setting.value))
    try:
        if date is None:
            raise ValueError
        month, day, year = map(int, date.groups())
        moment = datetime(year + 2000 if year < 100 else year, month, day)
        moment = moment.replace(tzinfo=zone) if zone else moment.astimezone()
        at_us = (moment - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError, OSError):
        raise setting.problem("no date", "write it like 12/31/2027: month, day, year") from None
    if not 0 < at_us <= _MAX_EPOCH_S * 1_000_000:
        raise setting.problem("out of range", "write a year from 1970 to 9999")
    return at_us


def _bare(value: str) -> str:
    """Without a comment behind it."""
    return value.partition("#")[0].strip()


def _listed(setting: Setting) -> Iterable[str]:
    parts = [part.strip() for part in _bare(setting.value).split(",")]
    if not all(parts):
        raise setting.problem("a comma too many")
    return parts


def _network(setting: Setting, text: str) -> IPv4Network:
    if text.upper() == "ANY":
        return EVERYWHERE
    try:
        if _NETWORK.fullmatch(text):
            network = IPv4Network(text, strict=False)
            mask = text.partition("/")[2]
            if "." not in mask or mask == str(network.netmask):  # 0.0.0.255 is taken for /24
                return network
    except ValueError:
        pass
    raise setting.problem(f"{text!r} {_no_network(text)}", "write it like 10.20.0.0/16, or ANY")


def _no_network(text: str) -> str:
    try:
        is_version_6 = ip_network(text, strict=False).version == 6
    except ValueError:
        is_version_6 = False
    if is_version_6:
        return "is IPv6, which fwknopd does not know"
    if re.search(r"[A-Za-z]", text):
        return "is a name, and fwknopd takes addresses only"
    return "is no address or network"


def _access(setting: Setting, text: str) -> Access:
    found = _PORT.fullmatch(text)
    if found is None:
        hint = "write it like tcp/22, each port by itself"
        raise setting.problem(f"{text!r} is no port that fwknopd can open", hint)
    number = int(found[2])
    if not 1 <= number <= 65535:
        raise setting.problem(f"{text!r} is out of range", "write a port from 1 to 65535")
    return Access(Protocol[found[1].upper()], number, number)


def address_in(network: IPv4Network) -> IPv4Address:
    """A host's address in a network."""
    if network == EVERYWHERE:
        return IPv4Address("192.0.2.1")
    return network.network_address + (1 if network.num_addresses > 2 else 0)


def address_outside(found: tuple[IPv4Network, ...]) -> IPv4Address | None:
    """An address in none of the networks: one for documentation, else one beside them."""
    candidates = ["192.0.2.1", "198.51.100.1", "203.0.113.1", "10.0.0.1"]
    last = int(found[-1].broadcast_address)
    if last < 2**32 - 1:
        candidates.append(str(IPv4Address(last + 1)))
    for candidate in map(IPv4Address, candidates):
        if not any(candidate in network for network in found):
            return candidate
    return None

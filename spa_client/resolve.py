"""From a host's name to every address that a knock goes to."""

import contextlib
import ipaddress
import socket
import threading
from dataclasses import dataclass
from typing import Final

from keys.trouble import Trouble
from spa_protocol.layout import Address, is_unicast, unmapped

RESOLVE_TIMEOUT_S: Final = 15.0
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


class Unresolved(Trouble):
    """A host has no address to knock on, and why."""


@dataclass(frozen=True, slots=True)
class Target:
    """One address and UDP port to knock on; `scope_id` is a link-local address's interface."""

    address: Address
    port: int
    scope_id: int = 0

    @property
    def family(self) -> socket.AddressFamily:
        """AF_INET or AF_INET6."""
        return _FAMILIES[self.address.version]

    def sockaddr(self, port: int | None = None) -> tuple[str, int] | tuple[str, int, int, int]:
        """What `connect` takes, for this port or the one given."""
        at = self.port if port is None else port
        if self.address.version == 4:
            return str(self.address), at
        return str(self.address), at, 0, self.scope_id

    def __str__(self) -> str:
        """The address alone, with its scope where it has one: `fe80::1%eth0`."""
        if not self.scope_id:
            return str(self.address)
        scope = str(self.scope_id)
        with contextlib.suppress(OSError):
            scope = socket.if_indextoname(self.scope_id)
        return f"{self.address}%{scope}"


def plain_address(text: str) -> Address:
    """An address without scope, IPv4 where it is mapped. Raises ValueError for anything else."""
    return unmapped(ipaddress.ip_address(text.partition("%")[0]))


def resolve(
    host: str, port: int, *, version: int | None = None, timeout_s: float = RESOLVE_TIMEOUT_S
) -> tuple[Target, ...]:
    """Every address of a host, each once, in the system's order of preference.

    `version` 4 or 6 leaves the other family out. Raises Unresolved.
    """
    found = _lookup(host, port, timeout_s)
    targets = [t for t in dict.fromkeys(map(_target, found)) if is_unicast(t.address)]
    targets = [t for t in targets if version in (None, t.address.version)]
    if not targets:
        kind = f"IPv{version} " if version else ""
        raise Unresolved(f"{host} has no {kind}address that a knock can be sent to")
    reachable = tuple(t for t in targets if t.scope_id or not _needs_scope(t.address))
    if not reachable:
        raise Unresolved(f"{host} is link-local", f"name its interface, like {targets[0]}%eth0")
    return reachable


def _target(found: tuple[str, int, int]) -> Target:
    text, port, scope_id = found
    address = plain_address(text)
    return Target(address, port, scope_id if _needs_scope(address) else 0)


def _needs_scope(address: Address) -> bool:
    return address.version == 6 and address.is_link_local


def _lookup(host: str, port: int, timeout_s: float) -> list[tuple[str, int, int]]:
    """(address, port, scope) triples. In a thread, since the system's resolver heeds no Ctrl-C."""
    answer: list[tuple[str, int, int]] = []
    failure: list[str] = []

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError, ValueError) as error:
            failure.append(_why(error))
            return
        for *_, sockaddr in found:
            scope_id = sockaddr[3] if len(sockaddr) == 4 else 0
            answer.append((str(sockaddr[0]), int(sockaddr[1]), int(scope_id)))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(timeout_s)
    if asking.is_alive():
        failure.append(f"no answer from the resolver in {timeout_s:g} s")
    if failure:
        raise Unresolved(f"cannot resolve {host}: {failure[0]}", "check the name and the network")
    return answer


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[:1].lower() + error.strerror[1:]
    return "this is no host name"

"""However and whenever a grant ends, its `cut` sessions do, each under a name, and no others.

Of TCP and UDP, IPv4 and IPv6, with a socket on the host and without one; while somebody else at the
same address holds the same holes, and also where no daemon runs when it happens.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from itertools import count
from signal import SIGKILL, SIGTERM, Signals
from socket import AF_INET, AF_INET6, SOCK_DGRAM, socket
from typing import Any

import pytest

from integration.attacks import protected_session
from integration.lab import Host, Lab, echoes, wait_until
from integration.site import PROGRAMS, Person, RecordSince, Site

POLICY = """
[services]
postgres = ["tcp/5432-5433", "udp/5432"]
kept = "tcp/22"
other = "tcp/9"

[roles.hers]
[[roles.hers.allow]]
services = ["postgres"]
max_lifetime = "1h"
sessions = "cut"

[roles.his]
[[roles.his.allow]]
services = ["postgres"]
max_lifetime = "1h"
sessions = "cut"

[roles.ops]
[[roles.ops.allow]]
services = ["kept"]
max_lifetime = "1h"
"""
WITHOUT_HERS = POLICY.replace('services = ["postgres"]', 'services = ["other"]', 1)
PORTS = ("tcp/5432", "tcp/5433", "udp/5432")
_numbers = count()


@dataclass
class Room:
    """A guarded host, and two people at one address of each family."""

    site: Site
    client: Host
    alice: Person
    bob: Person
    sessions: ExitStack
    record: RecordSince

    def knock(self, who: Person, lifetime: str = "1h") -> None:
        for address in (self.site.host.v4, self.site.host.v6):
            who.knock_at(self.client, address, *PORTS, "--lifetime", lifetime)

    def open(self, name: str) -> dict[str, socket]:
        """One session of each kind, which work."""
        v4, v6 = self.site.host.v4, self.site.host.v6
        made = {
            "tcp4": self.client.connection(v4, 5432),
            "tcp6": self.client.connection(v6, 5432),
            "published": self.client.connection(v4, 5433),
            "udp4": self._udp(AF_INET, v4),
            "udp6": self._udp(AF_INET6, v6),
        }
        found = {f"{name} {kind}": each for kind, each in made.items()}
        for each in made.values():
            self.sessions.enter_context(each)
        assert living(found) == set(found)
        return found

    def _udp(self, family: int, target: IPv4Address | IPv6Address) -> socket:
        asking = self.client.new_socket(family, SOCK_DGRAM)
        asking.connect((str(target), 5432))
        return asking

    def severed(self) -> list[tuple[str, int]]:
        """By whose names, and how many of each; not of the test before, which a new daemon may
        find in conntrack and name again."""
        lines = self.record.lines("connection.severed")
        found = [(str(line["identity"]), int(line["detail"]["count"])) for line in lines]
        return [each for each in found if self.alice.name in each[0] or self.bob.name in each[0]]


def living(sessions: dict[str, socket]) -> set[str]:
    """Asked all at once: each that is over is waited for."""
    with ThreadPoolExecutor(len(sessions) or 1) as asking:
        answers = asking.map(echoes, sessions.values())
    return {name for name, is_alive in zip(sessions, answers, strict=True) if is_alive}


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[Site, Host]]:
    with Lab() as lab:
        site, client, _ = protected_session.site(lab)
        site.start()
        yield site, client


@pytest.fixture
def room(place: tuple[Site, Host]) -> Iterator[Room]:
    site, client = place
    site.write_policy(POLICY)
    site.server("reload")
    number = next(_numbers)
    alice = site.enrol(f"alice{number}", "hers", "ops")
    bob = site.enrol(f"bob{number}", "his")
    with ExitStack() as sessions:
        yield Room(site, client, alice, bob, sessions, site.record_from_now())
    site.close_everything()


def revoke_the_key(room: Room) -> None:
    room.site.keys("revoke", room.alice.key_id())


def revoke_the_person(room: Room) -> None:
    room.site.keys("revoke", room.alice.name, "--yes")


def take_the_role(room: Room) -> None:
    room.site.keys("ungrant", room.alice.name, "hers")


def change_the_policy(room: Room) -> None:
    room.site.write_policy(WITHOUT_HERS)
    room.site.server("reload", check=False)


def let_the_key_expire(room: Room) -> None:
    show = [PROGRAMS / "spa-keys", "show"]
    line = room.site.host.run(show, env=room.alice.env).stdout.strip()
    room.site.keys("enroll", room.alice.name, "--key", line, "--expires", "1s")


def close_as_the_operator(room: Room) -> None:
    hers = [str(hole["grant"]) for hole in room.site.holes() if _is_hers(room, hole)]
    room.site.server("close", *dict.fromkeys(hers))


def _is_hers(room: Room, hole: dict[str, Any]) -> bool:
    return bool(hole["identity"] == room.alice.name)


def close_as_the_person(room: Room) -> None:
    for address in (room.site.host.v4, room.site.host.v6):
        room.alice.client(room.client, "close", room.alice.name_of(address), *PORTS)


def wait(_room: Room) -> None:
    """Her grants end by themselves."""


WITHOUT_A_DAEMON = (revoke_the_key, take_the_role, change_the_policy, let_the_key_expire, wait)
WITH_A_DAEMON = (
    *WITHOUT_A_DAEMON,
    revoke_the_person,
    close_as_the_operator,
    close_as_the_person,
)


@pytest.mark.parametrize("end", WITH_A_DAEMON)
def test_while_a_daemon_runs(room: Room, end: Callable[[Room], None]) -> None:
    opened = _everybody_is_in(room, is_short=end is wait)
    end(room)
    _what_was_hers_ends(room, opened)


@pytest.mark.parametrize("end", WITHOUT_A_DAEMON)
def test_while_none_runs(room: Room, end: Callable[[Room], None]) -> None:
    """What the kernel knows holds at once; the rest ends when a daemon begins."""
    opened = _everybody_is_in(room, is_short=end is wait)
    room.site.stop(SIGKILL)
    end(room)
    if end in {wait, let_the_key_expire}:
        time.sleep(4)
    room.site.start()
    _what_was_hers_ends(room, opened)


@pytest.mark.parametrize("by", [SIGKILL, SIGTERM])
def test_a_daemon_that_came_since_ends_them_too(room: Room, by: Signals) -> None:
    opened = _everybody_is_in(room)
    room.site.restart(by)
    assert living(opened) == set(opened)
    revoke_the_key(room)
    _what_was_hers_ends(room, opened)
    room.site.restart(by)
    room.knock(room.bob)
    assert not living({name: each for name, each in opened.items() if not _lives(name)})


def test_when_conntrack_forgot_them_in_between(room: Room) -> None:
    """Nobody knows TCP any more, and it goes nowhere; UDP is let in anew, by whoever holds."""
    opened = _everybody_is_in(room)
    room.site.host.run(["conntrack", "-F"])
    revoke_the_key(room)
    wait_until(lambda: not _holds(room, room.alice))
    left = living(opened)
    assert not {name for name in left if "udp" not in name}
    room.site.keys("revoke", room.bob.key_id())
    wait_until(lambda: not _holds(room, room.bob))
    assert not living({name: each for name, each in opened.items() if name != "kept"})


def _everybody_is_in(room: Room, *, is_short: bool = False) -> dict[str, socket]:
    """His alone, hers and kept, and what may be either's."""
    room.knock(room.bob)
    opened = room.open("his")
    room.knock(room.alice, "6s" if is_short else "1h")
    opened |= room.open("either")
    room.alice.knock_at(room.client, room.site.host.v4, "tcp/22", "--lifetime", "1h")
    kept = opened["kept"] = room.client.connection(room.site.host.v4, 22)
    room.sessions.enter_context(kept)
    assert echoes(kept)
    return opened


def _lives(name: str) -> bool:
    return name == "kept" or name.startswith("his")


def _holds(room: Room, who: Person) -> bool:
    return any(
        hole["identity"] == who.name and hole["access"].partition("/")[2] != "22"
        for hole in room.site.holes()
    )


def _what_was_hers_ends(room: Room, opened: dict[str, socket]) -> None:
    both = f"{room.alice.name}, {room.bob.name}"
    wait_until(lambda: sum(n for _, n in room.severed()) >= 5, within_s=12, what="5 to be severed")
    assert living(opened) == {name for name in opened if _lives(name)}
    assert {name for name, _ in room.severed()} == {both}
    assert sum(number for _, number in room.severed()) == 5
    room.knock(room.bob)
    assert living(opened) == {name for name in opened if _lives(name)}

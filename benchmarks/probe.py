"""Knocks sent and watched by the C programs: when a port opens, what is answered, under what flood.

The same method serves both systems. The daemon that is measured has one processor, and whatever
makes its load the other: a scheduler that mixed the two would be measured with them.
"""

import json
import signal
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.measure import Latencies
from benchmarks.peers import FIRST_PORT, LOADING, Peer, Scene, as_records, pinned
from integration.lab import Address, Host
from spa_protocol.layout import DEFAULT_PORT, TAG_SIZE

# Less would run into the limit on knocks of one source with one tag: 20 a second.
SETTLE_MS: Final = 60
SPINNING_US: Final = 30
SLEEPING_US: Final = 500
_LINGER_MS: Final = 2000
_FOR_LONG_S: Final = 600
_NOBODYS: Final = "10.78.0.0"


@dataclass(frozen=True, slots=True)
class Openings:
    """From the sending of a knock to its sealed reply, and to the first SYN that is accepted."""

    answered: Latencies
    opened: Latencies


def openings(
    peer: Peer,
    knocks: Sequence[bytes],
    *,
    host: Host | None = None,
    first_port: int = FIRST_PORT,
    settle_ms: int = SETTLE_MS,
    step_us: int = SPINNING_US,
    deadline_ms: int = 2000,
    processor: int = LOADING,
) -> Openings:
    """Sends knocks one after another, each for the next port, and watches the ports."""
    scene = peer.scene
    where = (scene.server.v4, DEFAULT_PORT, first_port, settle_ms, step_us, deadline_ms)
    argv = pinned(processor, scene.program("opening"), *where)
    with (host or scene.client).inside():
        done = subprocess.run(argv, input=as_records(knocks), capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{peer.name}: {done.stderr.decode()}")
    pairs = [line.split() for line in done.stdout.decode().splitlines()]
    answered, opened = zip(*pairs, strict=True)
    return Openings(_latencies(answered), _latencies(opened))


def _latencies(words: Sequence[str]) -> Latencies:
    return Latencies(tuple(None if word == "-" else int(word) / 1000 for word in words))


@dataclass(frozen=True, slots=True)
class Volley:
    """What became of datagrams that were sent at a steady rate.

    `sent_s` is when each was sent, `heard` when each answer came, and the answer; in seconds of
    CLOCK_MONOTONIC.
    """

    sent_s: list[float]
    heard: list[tuple[float, bytes]]

    def waits(self, answers: Sequence[bytes]) -> Latencies:
        """From each datagram to its answer, by how its answer begins."""
        heard_s: dict[bytes, float] = {}
        for at_s, payload in self.heard:
            heard_s.setdefault(payload[:TAG_SIZE], at_s)
        pairs = zip(self.sent_s, answers, strict=True)
        return Latencies(
            tuple((heard_s[a] - sent_s) * 1e3 if a in heard_s else None for sent_s, a in pairs)
        )

    @property
    def answers_per_s(self) -> float:
        """From the first answer to the last."""
        if len(self.heard) < 2:
            return 0.0
        return (len(self.heard) - 1) / (self.heard[-1][0] - self.heard[0][0])


def volley(
    scene: Scene,
    datagrams: Sequence[bytes],
    rate_per_s: float,
    *,
    to: tuple[Address, int] | None = None,
    linger_ms: int = _LINGER_MS,
    processor: int = LOADING,
) -> Volley:
    """Sends them from the client, and listens until all are answered or none more comes.

    Where no address and port are given, to the knock port.
    """
    out = scene.lab.new_file("volley")
    where = (*(to or (scene.server.v4, DEFAULT_PORT)), rate_per_s, linger_ms, out)
    argv = pinned(processor, scene.program("volley"), *where)
    with scene.client.inside():
        subprocess.run(argv, input=as_records(datagrams), check=True)
    return _read_volley(out)


def _read_volley(out: Path) -> Volley:
    data, at = out.read_bytes(), 0
    found = Volley([], [])
    while at < len(data):
        kind, at_ns = struct.unpack_from("<cQ", data, at)
        at += 9
        if kind == b"S":
            found.sent_s.append(at_ns / 1e9)
            continue
        (length,) = struct.unpack_from("<H", data, at)
        found.heard.append((at_ns / 1e9, data[at + 2 : at + 2 + length]))
        at += 2 + length
    out.unlink()
    return found


@dataclass
class Flood:
    """Junk on its way; what was sent is known when the flood is over."""

    packets: int = 0
    seconds: float = 0.0

    @property
    def rate_per_s(self) -> float:
        """Packets a second."""
        return self.packets / self.seconds if self.seconds else 0.0


@contextmanager
def flood(
    scene: Scene,
    payload: str,
    *,
    rate_per_s: float = 0,
    sources: int = 1,
    processor: int = LOADING,
) -> Iterator[Flood]:
    """Floods the knock port while the block runs; rate 0 is all it can.

    The junk is put on the server's own cable, at its other end: what bridges and routers could pass
    on is not to be the limit. It has the third host's address; with several `sources` those of
    nobody.
    """
    cable, interface = _other_end(scene.server)
    source = scene.other.v4 if sources == 1 else _NOBODYS
    what = (scene.server.v4, DEFAULT_PORT, rate_per_s, _FOR_LONG_S, payload)
    where = (interface, _mac_of(scene.server), source, sources)
    argv = pinned(processor, scene.program("flood"), *what, *where)
    flooding, junk = cable.start(argv), Flood()
    try:
        yield junk
    finally:
        flooding.stop(signal.SIGTERM)
        sent, lasted = flooding.output.split()
        junk.packets, junk.seconds = int(sent), float(lasted)


def _mac_of(host: Host) -> str:
    return str(_links(host)[_interface(host)]["address"])


def _other_end(host: Host) -> tuple[Host, str]:
    """Where the host's cable ends: the namespace there, and the interface."""
    ours = _links(host)[_interface(host)]
    names = {each["nsid"]: each["name"] for each in _told(host, "netns", "list-id")}
    there = Host(host.lab, "cable", names[ours["link_netnsid"]])
    (name,) = (n for n, link in _links(there).items() if link["ifindex"] == ours["link_index"])
    return there, name


def _interface(host: Host) -> str:
    return next(iter(host.places.values())).interface


def _links(host: Host) -> dict[str, dict[str, Any]]:
    return {link["ifname"]: link for link in _told(host, "link", "show")}


def _told(host: Host, *question: str) -> list[dict[str, Any]]:
    return list(json.loads(host.run(["ip", "-json", *question]).stdout))

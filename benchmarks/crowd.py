"""A crowd: many people with keys, enrolled at once, and the knocks that they would send.

Person number n always has the same key, so an enrolled crowd can be kept between runs and nobody's
secrets have to be. Knocks are composed ahead of time, in several processes, each stamped for the
moment at which it will be sent: to compose one takes longer than to judge it.
"""

import contextlib
import hashlib
import multiprocessing
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from keys.identity import Identity
from keys.registry import Registry
from keys.schema import connect
from spa_client.compose import Composer, SourceRule, TargetRule, Wish
from spa_protocol.access import Access
from spa_protocol.layout import NONCE_SIZE, epoch_of
from spa_protocol.reply import Reply, address_of, open_reply
from spa_protocol.seal import PairKeys

ROLE: Final = "crowd"
_ANY: Final = IPv4Address(0)
_NOBODYS: Final = IPv4Address("10.128.0.1")
_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class Order:
    """A knock to be composed: whose, for what, declared from where, sent when."""

    person: int
    accesses: tuple[str, ...]
    sent_at_us: int
    source: str | None = None
    lifetime_s: int = 0


@dataclass(frozen=True, slots=True)
class Knock:
    """A composed knock. `answer` is how its reply begins."""

    person: int
    payload: bytes
    nonce: bytes
    answer: bytes


@lru_cache(maxsize=200_000)
def identity_of(person: int) -> Identity:
    """The key of person number n."""
    seed, agreement = (
        hashlib.blake2b(person.to_bytes(8), digest_size=32, person=purpose).digest()
        for purpose in (b"bench sign", b"bench agree")
    )
    return Identity.from_secrets(seed, agreement, f"person {person}")


@lru_cache(maxsize=200_000)
def pair_of(person: int, server: bytes) -> PairKeys:
    """What that person shares with a server."""
    return identity_of(person).pair_with(server)


def tag_of(person: int, server: bytes, at_us: int) -> bytes:
    """The 8 bytes that name a person to a server at a time."""
    return pair_of(person, server).tag_at(epoch_of(at_us))


def name_of(person: int) -> str:
    """What the registry calls them."""
    return f"person-{person:06}"


def enrolled(count: int, database: Path) -> None:
    """Enrols persons 0 to count - 1 in one transaction."""
    now_us = time.time_ns() // 1000
    with contextlib.closing(connect(database)) as connection:
        registry = Registry(connection)
        connection.execute("begin immediate")
        for person in range(count):
            registry.enroll(
                name_of(person),
                identity_of(person).public,
                roles=[ROLE],
                now_us=now_us,
                actor="benchmarks",
            )
        connection.execute("commit")
        connection.execute("pragma wal_checkpoint(truncate)")


def kept(count: int, cache: Path, into: Path) -> None:
    """Copies the registry of a crowd into a directory; it is made where there is none yet."""
    kept_at = cache / f"crowd-{count}.db"
    if not kept_at.exists():
        unfinished = kept_at.with_suffix(".new")
        unfinished.unlink(missing_ok=True)
        cache.mkdir(parents=True, exist_ok=True)
        enrolled(count, unfinished)
        unfinished.rename(kept_at)
    shutil.copyfile(kept_at, into / "spa.db")
    (into / "spa.db").chmod(0o600)


def compose(order: Order, server: bytes) -> Knock:
    """One knock for a server's public key."""
    pair = pair_of(order.person, server)
    wish = Wish(tuple(map(Access.parse, order.accesses)), lifetime_s=order.lifetime_s)
    source = SourceRule.NONE if order.source is None else IPv4Address(order.source)
    composer = Composer(identity_of(order.person), server, pair, wish, source, TargetRule.NONE)
    nonce = secrets.token_bytes(NONCE_SIZE)
    written = composer.compose(_ANY, _ANY, nonce=nonce, now_us=order.sent_at_us)
    return Knock(order.person, written.payload, nonce, address_of(pair, nonce))


def reply_to(knock: Knock, server: bytes, payload: bytes) -> Reply | None:
    """The server's answer to a knock, or None for any other bytes."""
    return open_reply(payload, pair=pair_of(knock.person, server), request_nonce=knock.nonce)


def _compose_some(orders: Sequence[Order], server: bytes) -> list[Knock]:
    return [compose(order, server) for order in orders]


class Writers:
    """Processes that compose knocks."""

    def __init__(self) -> None:
        # Not forked: the lab has threads.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(os.cpu_count() or 1, mp_context=context)

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def write(self, orders: Sequence[Order], server: bytes) -> list[Knock]:
        """The knocks, in the order of the orders."""
        parts = [orders[at : at + _AT_ONCE] for at in range(0, len(orders), _AT_ONCE)]
        found = self._pool.map(_compose_some, parts, [server] * len(parts))
        return [knock for part in found for knock in part]


def address(number: int) -> str:
    """An address that is nobody's: number n of 10.128.0.0/9."""
    return str(_NOBODYS + number)

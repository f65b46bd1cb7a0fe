"""What to send: bytes from what is asked for, who asks, which server, a nonce and a time.

Pure: sockets, clock and randomness are the caller's (carriers.py).

Which source a knock declares (docs/protocol.md section 4.3), in words first:

1.  An address that the person named, where it is of the target's family, is declared.
2.  Told to declare none, none is declared: the hole is for the address the packet comes from.
3.  Otherwise the client's own address, the one its system sends from to this target, is declared
    where no translation is to be expected between the two: it is global, or its first 24 (IPv4)
    or 64 (IPv6) bits are the target's. An interface's true prefix cannot be asked portably; a /24
    inside a longer prefix errs towards declaring an address that a LAN delivers unchanged, and
    one inside a shorter prefix errs towards declaring nothing, which always works.
4.  An address that a reply named is never declared.

The target is the address that the request is sent to, unless the person named another or none: what
is signed then names one host, and is worth nothing at another that has the same server key.
"""

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, TypeAlias

from spa_protocol.access import Access
from spa_protocol.knock import Close, Kind, Knock, message_to_sign, seal_request
from spa_protocol.layout import Address
from spa_protocol.reply import Reply, answers, open_reply
from spa_protocol.seal import PairKeys

if TYPE_CHECKING:
    from keys.identity import Identity

_SAME_NETWORK_BITS: Final = {4: 24, 6: 64}


class SourceRule(Enum):
    """What to declare as the source where the person named no address."""

    AUTO = "auto"
    NONE = "none"


Source: TypeAlias = Address | SourceRule


class TargetRule(Enum):
    """What to sign as the target where the person named no address."""

    AUTO = "auto"
    NONE = "none"


NamedTarget: TypeAlias = Address | TargetRule


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person asks for, before it is known from and at which address."""

    accesses: tuple[Access, ...]
    closing: bool = False
    lifetime_s: int = 0
    once: bool = False
    reply_wanted: bool = True

    def request(
        self, sent_at_us: int, source: Address | None, target: Address | None
    ) -> Knock | Close:
        """The request for one address. Raises Malformed for one that cannot be."""
        if self.closing:
            return Close(sent_at_us, self.accesses, source, target, self.reply_wanted)
        return Knock(
            sent_at_us,
            self.accesses,
            source,
            target,
            self.lifetime_s,
            self.once,
            self.reply_wanted,
        )


@dataclass(frozen=True, slots=True)
class Datagram:
    """The 240 bytes to send, and what must be remembered to know their reply."""

    payload: bytes
    nonce: bytes
    sent_at_us: int
    source: Address | None


@dataclass(frozen=True, slots=True)
class Composer:
    """Makes the datagrams of one wish for one server, and opens their replies.

    `server` is the server's public key, `pair` the secrets shared with it, `target` the address
    to sign as the target.
    """

    identity: "Identity"
    server: bytes
    pair: PairKeys
    wish: Wish
    source: Source = SourceRule.AUTO
    target: NamedTarget = TargetRule.AUTO

    @property
    def elsewhere(self) -> Address | None:
        """The address to connect to, where it is not the one that is knocked on."""
        return None if isinstance(self.target, TargetRule) else self.target

    @classmethod
    def toward(
        cls,
        server: bytes,
        identity: "Identity",
        wish: Wish,
        source: Source = SourceRule.AUTO,
        target: NamedTarget = TargetRule.AUTO,
    ) -> "Composer":
        """Raises WeakKey for a server key of small order."""
        return cls(identity, server, identity.pair_with(server), wish, source, target)

    @property
    def kind(self) -> Kind:
        """What its requests are."""
        return Kind.CLOSE if self.wish.closing else Kind.KNOCK

    def compose(
        self, own: Address, to: Address, *, nonce: bytes, now_us: int, tag_number: int = 0
    ) -> Datagram:
        """One datagram from the client's `own` address to the address `to`.

        `nonce` is 24 bytes never used before, `now_us` the time in microseconds since 1970,
        `tag_number` which of the key's tags it bears (docs/protocol.md section 5.2).
        """
        source = declared_source(self.source, own=own, to=to)
        request = self.wish.request(now_us, source, declared_target(self.target, to=to))
        message = message_to_sign(
            request, server=self.server, agreement=self.identity.public.agreement, nonce=nonce
        )
        signature = self.identity.sign(message)
        payload = seal_request(
            request, signature, pair=self.pair, nonce=nonce, tag_number=tag_number
        )
        return Datagram(payload, nonce, now_us, source)

    def open(self, payload: bytes, datagram: Datagram) -> Reply | None:
        """The server's reply to this datagram, or None for any other bytes."""
        reply = open_reply(payload, pair=self.pair, request_nonce=datagram.nonce)
        if reply is None or not answers(reply, self.kind, self.wish.accesses):
            return None
        return reply


def declared_source(rule: Source, *, own: Address, to: Address) -> Address | None:
    """The source to declare and sign, or None: the rule at the head of this file."""
    if isinstance(rule, SourceRule):
        declares = rule is SourceRule.AUTO and (own.is_global or same_network(own, to))
        return own if declares else None
    if rule.version == to.version:
        return rule
    return declared_source(SourceRule.AUTO, own=own, to=to)


def declared_target(rule: NamedTarget, *, to: Address) -> Address | None:
    """The target to sign for a request that is sent to an address, or None."""
    if isinstance(rule, TargetRule):
        return to if rule is TargetRule.AUTO else None
    return rule


def same_network(one: Address, other: Address) -> bool:
    """Whether the first 24 bits (IPv4) or 64 bits (IPv6) of two addresses are the same."""
    if one.version != other.version:
        return False
    host_bits = one.max_prefixlen - _SAME_NETWORK_BITS[one.version]
    return int(one) >> host_bits == int(other) >> host_bits

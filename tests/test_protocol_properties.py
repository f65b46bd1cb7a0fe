"""What holds for requests whatever the bytes are: docs/protocol.md sections 4 to 6.

The parser is fuzzed behind the box: the bytes are sealed with the right key, as whoever holds a
client's agreement secret, but not its signing key, could seal them.
"""

import dataclasses
import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Literal

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from spa_protocol import seal, sshsig
from spa_protocol.access import Access, Protocol
from spa_protocol.knock import (
    AuthenticKnock,
    Close,
    Join,
    Knock,
    OpenedKnock,
    Request,
    encode_body,
    freshness,
    message_to_sign,
    open_request,
    seal_request,
    verify_request,
)
from spa_protocol.layout import (
    BODY_SIZE,
    DATAGRAM_SIZE,
    LABEL,
    MAX_ACCESSES,
    MAX_LIFETIME_S,
    NONCE_SIZE,
    PLAIN_SIZE,
    TAG_SIZE,
    Address,
    Malformed,
    encode_address,
    epoch_of,
    is_unicast,
    unmapped,
)
from spa_protocol.publickey import PublicKey, Sender
from spa_protocol.reason import Reason
from spa_protocol.seal import WeakKey
from spa_protocol.sshsig import KeyType, Signature

NOW_US: Final = 1_795_500_000_000_000
NONCE: Final = bytes(range(NONCE_SIZE))
SSH: Final = Access.parse("tcp/22")

quick = settings(deadline=None, max_examples=100)
thorough = settings(deadline=None, max_examples=600)


@dataclass(frozen=True)
class Party:
    """A client key, and the same as its server knows it."""

    sender: Sender
    seed: bytes

    @classmethod
    def of(
        cls,
        secret: bytes,
        *,
        server: bytes = b"the server's secret",
        key_type: KeyType = KeyType.ED25519,
        is_invite: bool = False,
    ) -> "Party":
        seed, agreement_secret = secret.ljust(32, b"s"), secret.ljust(32, b"a")
        signing, agreement = seal.signing_public(seed), seal.agreement_public(agreement_secret)
        public = PublicKey(key_type, signing, agreement)
        sender = Sender.known_to(server.ljust(32, b"\0"), public, is_invite=is_invite)
        return cls(sender, seed)

    def sign(self, message: bytes, flags: int = 1, counter: int = 7) -> Signature:
        """As the key's type signs; flags and counter are a security key's."""
        structure = sshsig.signed_message(message)
        if self.sender.public.key_type is KeyType.ED25519:
            return Signature(seal.sign(structure, self.seed))
        covered = sshsig.security_key_message(structure, flags, counter)
        return Signature(seal.sign(covered, self.seed), flags, counter)

    def signed(self, request: Request, nonce: bytes = NONCE) -> Signature:
        agreement = self.sender.public.agreement
        message = message_to_sign(
            request, server=self.sender.server, agreement=agreement, nonce=nonce
        )
        return self.sign(message)

    def datagram(self, request: Request, nonce: bytes = NONCE) -> bytes:
        signature = self.signed(request, nonce)
        return seal_request(request, signature, pair=self.sender.pair, nonce=nonce)

    def sealed(self, plain: bytes) -> bytes:
        """Any 192 bytes in a proper box, under the tag of the time that stands in them."""
        tag = self.sender.pair.tag_at(epoch_of(int.from_bytes(plain[4:12])))
        key = self.sender.pair.knock
        return tag + NONCE + seal.seal(plain, associated=LABEL + tag, nonce=NONCE, key=key)

    def find(self, tag: bytes) -> Sender | None:
        """Every tag is this key's: what a parser must bear even so."""
        assert len(tag) == TAG_SIZE
        return self.sender


ALICE: Final = Party.of(b"alice")
TOKEN: Final = Party.of(b"token", key_type=KeyType.SK_ED25519)
INVITE: Final = Party.of(b"invite", is_invite=True)
PARTIES: Final = (ALICE, TOKEN, INVITE)


def judged(payload: bytes, party: Party) -> AuthenticKnock | Reason:
    known = open_request(payload, party.find)
    return known if isinstance(known, Reason) else verify_request(known)


# What a request can be

accesses = st.builds(
    lambda protocol, first, more: Access(protocol, first, min(first + more, 65535)),
    st.sampled_from(Protocol),
    st.integers(1, 65535),
    st.just(0) | st.integers(0, 31),
)
access_lists = (
    st.lists(accesses, min_size=1, max_size=MAX_ACCESSES)
    .map(tuple)
    .filter(lambda some: not any(a.overlaps(b) for a in some for b in some if a is not b))
)


def families(version: Literal[4, 6]) -> st.SearchStrategy[Address | None]:
    return st.none() | st.ip_addresses(v=version).map(unmapped).filter(
        lambda a: is_unicast(a) and a.version == version
    )


ends = st.tuples(families(4), families(4)) | st.tuples(families(6), families(6))
stamps = st.integers(0, 2**64 - 1) | st.integers(NOW_US - 10**9, NOW_US + 10**9)
knocks = st.builds(
    lambda ends, **fields: Knock(source=ends[0], target=ends[1], **fields),
    ends,
    sent_at_us=stamps,
    accesses=access_lists,
    lifetime_s=st.integers(0, MAX_LIFETIME_S),
    once=st.booleans(),
    reply_wanted=st.booleans(),
)
closes = st.builds(
    lambda ends, **fields: Close(source=ends[0], target=ends[1], **fields),
    ends,
    sent_at_us=stamps,
    accesses=access_lists,
    reply_wanted=st.booleans(),
)
joins = st.builds(
    Join,
    sent_at_us=stamps,
    key=st.builds(
        lambda key_type, seed, secret: PublicKey(
            key_type, seal.signing_public(seed), seal.agreement_public(secret)
        ),
        st.sampled_from(KeyType),
        st.binary(min_size=32, max_size=32),
        st.binary(min_size=32, max_size=32),
    ),
    reply_wanted=st.booleans(),
)
by_their_party: st.SearchStrategy[tuple[Request, Party]] = st.tuples(
    knocks | closes, st.sampled_from((ALICE, TOKEN))
) | st.tuples(joins, st.just(INVITE))


@thorough
@given(by_their_party, st.binary(min_size=NONCE_SIZE, max_size=NONCE_SIZE))
def test_what_can_be_made_arrives_as_it_was_made(
    request_and_party: tuple[Request, Party], nonce: bytes
) -> None:
    request, party = request_and_party
    payload = party.datagram(request, nonce)
    assert len(payload) == DATAGRAM_SIZE
    knock = judged(payload, party)
    assert isinstance(knock, AuthenticKnock)
    touched = party is TOKEN
    assert knock == AuthenticKnock(party.sender, nonce, request, touched)


@pytest.mark.parametrize(
    "fields",
    [
        {"source": ip_address("224.0.0.1")},
        {"source": ip_address("0.0.0.0")},  # noqa: S104 (an address to be refused)
        {"target": ip_address("::")},
        {"target": ip_address("ff02::1")},
        {"target": ip_address("255.255.255.255")},
        {"source": ip_address("::ffff:192.0.2.1")},
        {"source": ip_address("fe80::1%eth0")},
        {"source": ip_address("192.0.2.1"), "target": ip_address("2001:db8::1")},
        {"lifetime_s": -1},
        {"lifetime_s": 2**32},
        {"accesses": ()},
        {"accesses": (SSH,) * 2},
        {"accesses": tuple(Access(Protocol.TCP, port, port) for port in range(1, 10))},
    ],
    ids=str,
)
def test_what_would_be_malformed_cannot_be_made(fields: dict[str, object]) -> None:
    usual = Knock(NOW_US, (SSH,))
    with pytest.raises(Malformed):
        dataclasses.replace(usual, **fields)  # type: ignore[arg-type]  # fields of a test


# Whatever comes


def test_every_length_but_240_is_malformed() -> None:
    whole = ALICE.datagram(Knock(NOW_US, (SSH,))) * 3
    for size in [*range(DATAGRAM_SIZE), *range(DATAGRAM_SIZE + 1, 2 * DATAGRAM_SIZE)]:
        assert open_request(whole[:size], ALICE.find) is Reason.MALFORMED


@quick
@given(
    st.binary(max_size=2 * DATAGRAM_SIZE)
    | st.binary(min_size=DATAGRAM_SIZE, max_size=DATAGRAM_SIZE),
    st.sampled_from(PARTIES),
)
def test_any_bytes_are_refused_without_an_exception(payload: bytes, party: Party) -> None:
    expected = Reason.NOT_AUTHENTIC if len(payload) == DATAGRAM_SIZE else Reason.MALFORMED
    assert open_request(payload, party.find) is expected


def check_fuzzed(plain: bytes, party: Party) -> None:
    """No exception; what opens is what the rules allow, and re-encodes to the very bytes."""
    payload = party.sealed(plain)
    known = open_request(payload, party.find)
    event("opened" if isinstance(known, OpenedKnock) else str(known))
    assert isinstance(known, OpenedKnock) is allowed(plain[:BODY_SIZE], party)
    if isinstance(known, Reason):
        assert known is Reason.MALFORMED
        return
    assert encode_body(known.request, known.signature) == known.body == plain[:BODY_SIZE]
    pair = party.sender.pair
    assert seal_request(known.request, known.signature, pair=pair, nonce=known.nonce) == payload
    assert verify_request(known) is Reason.BAD_SIGNATURE


def allowed(body: bytes, party: Party) -> bool:
    """Section 4 once more, written as a list: what a body must be."""
    version, kind, flags, count = body[:4]
    is_touchable = party.sender.public.key_type is KeyType.SK_ED25519
    always = version == 1 and not any(body[93:]) and (is_touchable or not any(body[88:93]))
    if party.sender.is_invite:
        return (
            always
            and kind == 2
            and flags in (0, 1)
            and count in (1, 2)
            and not any(body[76:88])
            and is_good_key(body[12:44], body[44:76])
        )
    entries = [struct.unpack_from(">BHH", body, 48 + 5 * index) for index in range(8)]
    used, unused = entries[:count], entries[count:]
    ports = [(number, port) for number, first, last in used for port in range(first, last + 1)]
    return (
        always
        and kind in (1, 3)
        and flags in ((0, 1, 2, 3) if kind == 1 else (0, 1))
        and 1 <= count <= 8
        and not any(any(entry) for entry in unused)
        and all(number in (6, 17, 132) and 1 <= first <= last for number, first, last in used)
        and len(ports) == len(set(ports)) <= 256
        and (kind == 1 or not any(body[44:48]))
        and are_good_ends(body[12:28], body[28:44])
    )


def is_good_key(signing: bytes, agreement: bytes) -> bool:
    try:
        seal.check_public(signing=signing, agreement=agreement)
    except WeakKey:
        return False
    return True


def are_good_ends(source: bytes, target: bytes) -> bool:
    mapped = bytes(10) + b"\xff\xff"
    both = [field for field in (source, target) if any(field)]
    for field in both:
        v4 = field[12:] if field.startswith(mapped) else b""
        if v4 and (v4 in (bytes(4), b"\xff" * 4) or 224 <= v4[0] < 240):
            return False
        if not v4 and field[0] == 0xFF:
            return False
    return len({field.startswith(mapped) for field in both}) < 2


@quick
@given(st.binary(min_size=PLAIN_SIZE, max_size=PLAIN_SIZE), st.sampled_from(PARTIES))
def test_random_plains_in_a_proper_box(plain: bytes, party: Party) -> None:
    check_fuzzed(plain, party)


ENTRY: Final = struct.Struct(">BHH")
EDGES: Final = [
    *((0, bytes([version])) for version in (0, 2, 255)),
    *((1, bytes([kind])) for kind in range(5)),
    *((2, bytes([flags])) for flags in (0, 1, 2, 3, 4, 128)),
    *((3, bytes([count])) for count in range(10)),
    *(
        (at, encode_address(ip_address(text)))
        for at in (12, 28)
        for text in ("192.0.2.1", "224.0.0.1", "0.0.0.0", "2001:db8::1", "ff02::1", "::1")  # noqa: S104
    ),
    (44, bytes(4)),
    (44, b"\0\0\0\1"),
    *((at, ENTRY.pack(6, 20, 29)) for at in range(48, 88, 5)),
    *((48, ENTRY.pack(17, *ports)) for ports in ((1, 256), (1, 257), (0, 1), (2, 1), (9, 9))),
    *((48, bytes([protocol])) for protocol in (0, 1, 6, 17, 132, 255)),
    (12, b"\1" + bytes(31)),  # the neutral element as a signing key
    (44, bytes(32)),  # and, of small order, an agreement key
    *((at, b"\1") for at in (76, 87, 88, 92, 93, 127)),
]
"""Where in a body, and what: the least and the most of every field, and just beyond."""

anywhere = st.tuples(st.integers(0, BODY_SIZE - 1), st.binary(min_size=1, max_size=1))


@thorough
@given(
    by_their_party,
    st.sampled_from(PARTIES),
    st.lists(st.sampled_from(EDGES) | anywhere, max_size=3),
)
def test_right_bodies_with_parts_changed(
    request_and_party: tuple[Request, Party],
    sealed_by: Party,
    changes: list[tuple[int, bytes]],
) -> None:
    request, party = request_and_party
    plain = bytearray(encode_body(request, party.signed(request)) + bytes(64))
    for at, part in changes:
        plain[at : at + len(part)] = part
    check_fuzzed(bytes(plain), sealed_by)


CLOSE: Final = (Close(NOW_US, (SSH,)), ALICE)
JOIN: Final = (Join(NOW_US, ALICE.sender.public), INVITE)
TOUCHED: Final = (Knock(NOW_US, (SSH,)), TOKEN)


@pytest.mark.parametrize(
    ("of", "at", "part"),
    [
        (CLOSE, 2, b"\2"),  # once
        (CLOSE, 3, b"\0"),
        (CLOSE, 44, b"\0\0\0\1"),
        (CLOSE, 48, bytes(5)),
        (CLOSE, 88, b"\1"),  # a plain key's
        (CLOSE, 92, b"\1"),
        (CLOSE, 93, b"\1"),
        (CLOSE, 127, b"\1"),
        (CLOSE, 1, b"\2"),  # by a key
        (TOUCHED, 93, b"\1"),
        (TOUCHED, 127, b"\1"),
        (JOIN, 0, b"\2"),
        (JOIN, 1, b"\1"),  # by an invite
        (JOIN, 1, b"\3"),
        (JOIN, 2, b"\2"),
        (JOIN, 3, b"\0"),
        (JOIN, 3, b"\3"),
        (JOIN, 12, bytes(32)),
        (JOIN, 44, bytes(32)),
        (JOIN, 76, b"\1"),
        (JOIN, 87, b"\1"),
        (JOIN, 88, b"\1"),
        (JOIN, 127, b"\1"),
    ],
)
def test_one_field_is_wrong_though_sealed_and_signed(
    of: tuple[Request, Party], at: int, part: bytes
) -> None:
    """What the vectors leave out, and with a signature that would hold."""
    request, party = of
    signature = party.signed(request)
    body = bytearray(encode_body(request, signature))
    body[at : at + len(part)] = part
    own = party.sender
    signed = party.sign(own.server + own.public.agreement + NONCE + body[:88])
    assert judged(party.sealed(bytes(body) + signed.value), party) is Reason.MALFORMED


# No bit can be changed

EACH_KIND: Final[list[tuple[Request, Party]]] = [
    (Knock(NOW_US, (SSH,), ip_address("192.0.2.1"), None, 900, once=True), ALICE),
    (Knock(NOW_US, (SSH,)), TOKEN),
    (Close(NOW_US, (SSH,)), ALICE),
    (Join(NOW_US, ALICE.sender.public), INVITE),
]
EACH_KIND_NAMES: Final = ["knock", "touched-knock", "close", "join"]


def flipped(value: bytes, bit: int) -> bytes:
    changed = bytearray(value)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize(("request_", "party"), EACH_KIND, ids=EACH_KIND_NAMES)
def test_no_bit_of_a_datagram_can_be_changed(request_: Request, party: Party) -> None:
    payload = party.datagram(request_)
    known = {payload[:TAG_SIZE]: party.sender}
    assert isinstance(judged(payload, party), AuthenticKnock)
    for bit in range(8 * DATAGRAM_SIZE):
        changed = flipped(payload, bit)
        expected = Reason.UNKNOWN_KEY if bit < 8 * TAG_SIZE else Reason.NOT_AUTHENTIC
        assert open_request(changed, known.get) is expected
        assert open_request(changed, party.find) is Reason.NOT_AUTHENTIC


@pytest.mark.parametrize(("request_", "party"), EACH_KIND, ids=EACH_KIND_NAMES)
def test_nor_by_whoever_can_seal_but_not_sign(request_: Request, party: Party) -> None:
    """A stolen agreement secret opens nothing: every bit inside the box is signed, or zero."""
    signature = party.signed(request_)
    plain = encode_body(request_, signature) + signature.value
    assert isinstance(judged(party.sealed(plain), party), AuthenticKnock)
    for bit in range(8 * PLAIN_SIZE):
        result = judged(party.sealed(flipped(plain, bit)), party)
        assert result in (Reason.MALFORMED, Reason.BAD_SIGNATURE)


@pytest.mark.parametrize(("request_", "party"), EACH_KIND, ids=EACH_KIND_NAMES)
def test_the_signature_is_for_one_nonce_server_and_agreement_key(
    request_: Request, party: Party
) -> None:
    own = {
        "server": party.sender.server,
        "agreement": party.sender.public.agreement,
        "nonce": NONCE,
    }
    other = {
        "server": Party.of(b"alice", server=b"another").sender.server,
        "agreement": Party.of(b"another").sender.public.agreement,
        "nonce": bytes(NONCE_SIZE),
    }
    pair = party.sender.pair
    for field in own:
        message = message_to_sign(request_, **{**own, field: other[field]})
        payload = seal_request(request_, party.sign(message), pair=pair, nonce=NONCE)
        assert judged(payload, party) is Reason.BAD_SIGNATURE
    payload = seal_request(
        request_, party.sign(message_to_sign(request_, **own)), pair=pair, nonce=NONCE
    )
    assert isinstance(judged(payload, party), AuthenticKnock)


def test_a_signature_for_another_request_is_refused() -> None:
    one, other = Knock(NOW_US, (SSH,)), Knock(NOW_US, (Access.parse("tcp/5432"),))
    payload = seal_request(other, ALICE.signed(one), pair=ALICE.sender.pair, nonce=NONCE)
    assert judged(payload, ALICE) is Reason.BAD_SIGNATURE


def test_a_datagram_for_one_server_means_nothing_to_another() -> None:
    payload = ALICE.datagram(Knock(NOW_US, (SSH,)))
    elsewhere = Party.of(b"alice", server=b"another")
    assert elsewhere.sender.pair.tag_at(epoch_of(NOW_US)) != payload[:TAG_SIZE]
    assert open_request(payload, elsewhere.find) is Reason.NOT_AUTHENTIC


def test_a_tag_is_good_in_the_epoch_of_its_stamp_alone() -> None:
    signature = ALICE.signed(Knock(NOW_US, (SSH,)))
    plain = encode_body(Knock(NOW_US, (SSH,)), signature) + signature.value
    pair, own = ALICE.sender.pair, epoch_of(NOW_US)
    for epoch in range(own - 2, own + 3):
        tag = pair.tag_at(epoch)
        box = seal.seal(plain, associated=LABEL + tag, nonce=NONCE, key=pair.knock)
        result = judged(tag + NONCE + box, ALICE)
        assert isinstance(result, AuthenticKnock) is (epoch == own)
        assert result is Reason.MALFORMED or epoch == own


def test_epochs_turn_every_300_seconds() -> None:
    turn_us = 1_795_500_000_000_000
    assert epoch_of(turn_us) == epoch_of(turn_us + 299_999_999) == 5_985_000
    assert epoch_of(turn_us - 1) == 5_984_999
    assert epoch_of(turn_us + 300_000_000) == 5_985_001


# Freshness


@pytest.mark.parametrize(
    ("apart_us", "expected"),
    [
        (0, None),
        (30_000_000, None),
        (30_000_001, Reason.STALE),
        (-30_000_000, None),
        (-30_000_001, Reason.AHEAD),
        (2**63, Reason.STALE),
        (-NOW_US, Reason.AHEAD),
    ],
)
def test_freshness_at_its_edges(apart_us: int, expected: Reason | None) -> None:
    """`apart_us` is how long ago the request was stamped."""
    assert freshness(NOW_US, NOW_US + apart_us, 30) is expected


def test_freshness_is_the_servers_to_set() -> None:
    assert freshness(NOW_US, NOW_US + 1_000_000, 0.999) is Reason.STALE
    assert freshness(NOW_US, NOW_US + 300_000_000, 300) is None

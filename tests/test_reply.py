"""Replies, sealed and strictly read: docs/protocol.md section 8."""

import struct
from dataclasses import replace
from ipaddress import ip_address
from typing import Final

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from spa_protocol import seal
from spa_protocol.access import Access, Protocol, check_together
from spa_protocol.knock import Kind
from spa_protocol.layout import (
    DATAGRAM_SIZE,
    LABEL,
    MAX_LIFETIME_S,
    MAX_MESSAGE,
    NONCE_SIZE,
    PLAIN_SIZE,
    TAG_SIZE,
    Malformed,
    is_unicast,
    unmapped,
)
from spa_protocol.reason import Code, Status
from spa_protocol.reply import (
    Outcome,
    Reply,
    address_of,
    answers,
    clip,
    decode,
    encode,
    open_reply,
    seal_reply,
)
from spa_protocol.seal import PairKeys

PAIR: Final = PairKeys(tag=b"t" * 32, knock=b"k" * 32, reply=b"r" * 32)
REQUEST_NONCE: Final = b"q" * NONCE_SIZE
NONCE: Final = b"n" * NONCE_SIZE
SSH: Final = Outcome(Access.parse("tcp/22"), Code.GRANTED, 30)
GRANTED: Final = Reply(
    Status.GRANTED,
    1_795_500_000_000_005,
    ip_address("203.0.113.9"),
    ip_address("198.51.100.4"),
    (SSH, Outcome(Access.parse("udp/53-54"), Code.NO_ROLE)),
    "grüße",
)

quick = settings(deadline=None)
thorough = settings(deadline=None, max_examples=400)

addresses = st.none() | (
    (st.ip_addresses(v=4) | st.ip_addresses(v=6)).map(unmapped).filter(is_unicast)
)
ends = st.tuples(addresses, addresses).filter(
    lambda pair: None in pair or pair[0].version == pair[1].version
)
apart = st.lists(
    st.builds(
        lambda protocol, first, more: Access(protocol, first, min(first + more, 65535)),
        st.sampled_from(Protocol),
        st.integers(1, 65535),
        st.integers(0, 31),
    ),
    min_size=1,
    max_size=8,
).filter(lambda accesses: _stand_together(tuple(accesses)))
REFUSALS: Final = [code for code in Code if code is not Code.GRANTED]
CODES: Final = {
    Status.GRANTED: list(Code),
    Status.REFUSED: REFUSALS,
    Status.UNAVAILABLE: [Code.UNAVAILABLE],
    Status.CLOSED: [Code.GRANTED],
    Status.PENDING: REFUSALS,
}
"""The codes that the outcomes of a status may have (8.2); of the others there are none."""
MAY_BE_BARE: Final = {*Status} - {Status.GRANTED, Status.REFUSED}


def _stand_together(accesses: tuple[Access, ...]) -> bool:
    try:
        check_together(accesses)
    except Malformed:
        return False
    return True


@st.composite
def replies_drawn(draw: st.DrawFn) -> Reply:
    """Any reply that means something."""
    status = draw(st.sampled_from(Status))
    is_bare = status not in CODES or (status in MAY_BE_BARE and draw(st.booleans()))
    accesses = [] if is_bare else draw(apart)
    codes = [draw(st.sampled_from(CODES[status])) for _ in accesses]
    if status is Status.GRANTED:
        codes[draw(st.integers(0, len(codes) - 1))] = Code.GRANTED
    longest = 0 if status is Status.CLOSED else MAX_LIFETIME_S
    outcomes = tuple(
        Outcome(access, code, draw(st.integers(0, longest)) if code is Code.GRANTED else 0)
        for access, code in zip(accesses, codes, strict=True)
    )
    message = clip(draw(st.text(max_size=MAX_MESSAGE)))
    return Reply(status, draw(st.integers(0, 2**64 - 1)), *draw(ends), outcomes, message)


replies = replies_drawn()


def sealed(plain: bytes) -> bytes:
    """Any plain text, sealed as the server's reply to the request is."""
    first = address_of(PAIR, REQUEST_NONCE)
    associated = LABEL + first + REQUEST_NONCE
    return first + NONCE + seal.seal(plain, associated=associated, nonce=NONCE, key=PAIR.reply)


def opened(payload: bytes) -> Reply | None:
    return open_reply(payload, pair=PAIR, request_nonce=REQUEST_NONCE)


# What is right


@thorough
@given(replies)
def test_a_reply_arrives_as_it_was_made(reply: Reply) -> None:
    payload = seal_reply(reply, pair=PAIR, request_nonce=REQUEST_NONCE, nonce=NONCE)
    assert len(payload) == DATAGRAM_SIZE
    assert payload == sealed(encode(reply))
    assert opened(payload) == reply


def test_a_reply_byte_for_byte() -> None:
    expected = (
        bytes.fromhex("01 00 02 00 000660ff6bb1b805")
        + bytes.fromhex("00000000000000000000ffffcb007109 00000000000000000000ffffc6336404")
        + bytes.fromhex("06 0016 0016 0000001e 00")
        + bytes.fromhex("11 0035 0036 00000000 01").ljust(7 * 10, b"\0")
        + bytes([7])
        + "grüße".encode().ljust(67, b"\0")
    )
    assert encode(GRANTED) == expected
    assert len(expected) == PLAIN_SIZE


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("code", Code)
def test_every_status_and_code(status: Status, code: Code) -> None:
    lasts = code is Code.GRANTED and status is not Status.CLOSED
    outcome = replace(SSH, code=code, lifetime_s=30 if lasts else 0)
    reply = replace(GRANTED, status=status, outcomes=(outcome,))
    fits = code in CODES.get(status, []) and (status is not Status.GRANTED or lasts)
    assert opened(sealed(encode(reply))) == (reply if fits else None)
    assert code.sentence


REFUSED_SSH: Final = Outcome(SSH.access, Code.NO_ROLE)


@pytest.mark.parametrize(
    "contradicting",
    [
        replace(GRANTED, outcomes=()),
        replace(GRANTED, outcomes=(REFUSED_SSH,)),
        replace(GRANTED, outcomes=(SSH, SSH)),
        replace(GRANTED, outcomes=(SSH, Outcome(Access.parse("tcp/20-30"), Code.NO_ROLE))),
        replace(GRANTED, outcomes=(SSH, Outcome(Access.parse("udp/53"), Code.NO_ROLE, 5))),
        replace(GRANTED, outcomes=(Outcome(Access.parse("tcp/1-257"), Code.GRANTED, 5),)),
        replace(GRANTED, target=ip_address("2001:db8::1")),
        replace(GRANTED, status=Status.REFUSED, outcomes=()),
        replace(GRANTED, status=Status.REFUSED, outcomes=(REFUSED_SSH, SSH)),
        replace(GRANTED, status=Status.CLOCK),
        replace(GRANTED, status=Status.CLOSED, outcomes=(SSH,)),
        replace(GRANTED, status=Status.PENDING, outcomes=(SSH,)),
    ],
)
def test_a_reply_that_contradicts_itself_is_none(contradicting: Reply) -> None:
    assert opened(sealed(encode(contradicting))) is None


def test_a_reply_is_about_what_was_asked() -> None:
    asked = tuple(outcome.access for outcome in GRANTED.outcomes)
    assert answers(GRANTED, Kind.KNOCK, asked)
    assert not answers(GRANTED, Kind.KNOCK, asked[::-1])
    assert not answers(GRANTED, Kind.KNOCK, asked[:1])
    assert not answers(GRANTED, Kind.KNOCK, (*asked, Access.parse("tcp/443")))
    assert not answers(GRANTED, Kind.CLOSE, asked)
    bare = replace(GRANTED, status=Status.PENDING, outcomes=())
    assert answers(bare, Kind.KNOCK, asked)
    assert answers(bare, Kind.JOIN, ())
    assert not answers(bare, Kind.CLOSE, asked)
    assert not answers(replace(bare, status=Status.JOINED), Kind.KNOCK, asked)
    assert not answers(replace(bare, status=Status.CLOSED), Kind.KNOCK, asked)


def test_the_longest_message_fits() -> None:
    reply = replace(GRANTED, message="m" * MAX_MESSAGE)
    assert decode(encode(reply)) == reply
    with pytest.raises(Malformed):
        encode(replace(GRANTED, message="m" * (MAX_MESSAGE + 1)))
    with pytest.raises(Malformed):
        encode(replace(GRANTED, outcomes=(SSH,) * 9))


@quick
@given(st.text())
def test_a_clipped_message_is_the_longest_beginning_that_fits(message: str) -> None:
    clipped = clip(message)
    assert message.startswith(clipped)
    assert len(clipped.encode()) <= MAX_MESSAGE
    one_more = message[: len(clipped) + 1]
    assert clipped == message or len(one_more.encode()) > MAX_MESSAGE


# Whatever comes


@quick
@given(
    st.binary(max_size=2 * DATAGRAM_SIZE)
    | st.binary(min_size=DATAGRAM_SIZE, max_size=DATAGRAM_SIZE)
    | st.binary(min_size=DATAGRAM_SIZE - TAG_SIZE, max_size=DATAGRAM_SIZE - TAG_SIZE).map(
        lambda rest: address_of(PAIR, REQUEST_NONCE) + rest
    )
)
def test_any_bytes_are_passed_over_without_an_exception(payload: bytes) -> None:
    assert opened(payload) is None


def test_any_other_length_is_passed_over() -> None:
    payload = sealed(encode(GRANTED))
    assert opened(payload) == GRANTED
    for size in range(DATAGRAM_SIZE):
        assert opened(payload[:size]) is None
    assert opened(payload + b"\0") is None


def check_fuzzed(plain: bytes) -> None:
    """No exception, and what opens re-encodes to the very bytes."""
    reply = opened(sealed(plain))
    event("passed over" if reply is None else "opened")
    assert reply is None or encode(reply) == plain


@quick
@given(st.binary(min_size=PLAIN_SIZE, max_size=PLAIN_SIZE))
def test_random_plains_in_a_proper_box(plain: bytes) -> None:
    check_fuzzed(plain)


@thorough
@given(
    replies,
    st.lists(
        st.tuples(st.integers(0, PLAIN_SIZE - 1), st.integers(0, 255))
        | st.tuples(st.sampled_from((0, 1, 2, 3, 44, 53, 124, 125, 191)), st.integers(0, 12)),
        max_size=3,
    ),
)
def test_right_replies_with_bytes_changed(reply: Reply, changes: list[tuple[int, int]]) -> None:
    plain = bytearray(encode(reply))
    for at, value in changes:
        plain[at] = value
    check_fuzzed(bytes(plain))


def with_part(at: int, part: bytes) -> bytes:
    plain = encode(GRANTED)
    return plain[:at] + part + plain[at + len(part) :]


@pytest.mark.parametrize(
    ("at", "part"),
    [
        (0, b"\0"),
        (0, b"\2"),
        (1, b"\x08"),
        (2, b"\x01"),
        (2, b"\x03"),
        (2, b"\x09"),
        (3, b"\x01"),
        (12, bytes.fromhex("00000000000000000000ffffe0000001")),
        (28, bytes.fromhex("ff020000000000000000000000000001")),
        (44, b"\x01"),
        (44, struct.pack(">BHH", 6, 0, 22)),
        (44, struct.pack(">BHH", 6, 23, 22)),
        (53, b"\x0b"),
        (64, b"\x01"),
        (123, b"\x01"),
        (124, b"\x06"),
        (124, b"\x44"),
        (124, b"\xff"),
        (125, b"\xff"),
        (132, b"\x01"),
        (191, b"\x01"),
    ],
)
def test_a_reply_that_is_not_the_one_encoding_is_passed_over(at: int, part: bytes) -> None:
    """Each of these changes one field of a right reply; the box is proper."""
    assert opened(sealed(with_part(at, part))) is None
    with pytest.raises(Malformed):
        decode(with_part(at, part))


def test_no_bit_can_be_changed() -> None:
    payload = sealed(encode(GRANTED))
    for bit in range(8 * DATAGRAM_SIZE):
        changed = bytearray(payload)
        changed[bit // 8] ^= 1 << bit % 8
        assert opened(bytes(changed)) is None


def test_a_reply_is_to_one_request_of_one_key() -> None:
    payload = sealed(encode(GRANTED))
    other_nonce = bytes(NONCE_SIZE)
    other_pair = replace(PAIR, reply=b"x" * 32)
    assert open_reply(payload, pair=PAIR, request_nonce=other_nonce) is None
    assert open_reply(payload, pair=other_pair, request_nonce=REQUEST_NONCE) is None
    readdressed = address_of(PAIR, other_nonce) + payload[TAG_SIZE:]
    assert open_reply(readdressed, pair=PAIR, request_nonce=other_nonce) is None


def test_a_knocks_box_is_no_reply() -> None:
    """Were both directions sealed alike, a knock could be sent back as an answer to itself."""
    first = address_of(PAIR, REQUEST_NONCE)
    for key, associated in (
        (PAIR.knock, LABEL + first + REQUEST_NONCE),
        (PAIR.reply, LABEL + first),
        (PAIR.reply, first + REQUEST_NONCE),
    ):
        box = seal.seal(encode(GRANTED), associated=associated, nonce=NONCE, key=key)
        assert opened(first + NONCE + box) is None

"""What is sent, and which source it declares. No socket, no clock."""

from ipaddress import ip_address

import pytest

from keys import identity
from spa_client.compose import Composer, SourceRule, Wish, declared_source, same_network
from spa_protocol import seal
from spa_protocol.access import Access
from spa_protocol.knock import Close, Knock, open_request, verify_request
from spa_protocol.layout import DATAGRAM_SIZE, epoch_of
from spa_protocol.publickey import Sender
from spa_protocol.reason import Code, Status
from spa_protocol.reply import Outcome, Reply, seal_reply

SERVER_SECRET = bytes(range(32))
SERVER = seal.agreement_public(SERVER_SECRET)
NOW_US = 1_790_000_000_000_000
SSH, POSTGRES = Access.parse("tcp/22"), Access.parse("tcp/5432")
OWN, TO = ip_address("10.1.2.3"), ip_address("10.1.2.9")
ALICE = identity.Identity.from_secrets(b"\1" * 32, b"\2" * 32, "alice")


def request_of(payload: bytes) -> Knock | Close:
    """What a server reads in it, after every check."""
    sender = Sender.known_to(SERVER_SECRET, ALICE.public)
    opened = open_request(payload, lambda tag: sender if tag == tag_now(sender) else None)
    knock = verify_request(opened)
    return knock.request


def tag_now(sender: Sender) -> bytes:
    return sender.pair.tag_at(epoch_of(NOW_US))


def compose(wish: Wish, source=SourceRule.AUTO, target=None, *, own=OWN, to=TO) -> bytes:
    composer = Composer.toward(SERVER, ALICE, wish, source, target)
    return composer.compose(own, to, nonce=b"n" * 24, now_us=NOW_US).payload


def test_a_knock_says_what_was_wished_for() -> None:
    wish = Wish((SSH, POSTGRES), lifetime_s=900, once=True)
    target = ip_address("192.168.7.7")
    payload = compose(wish, ip_address("203.0.113.9"), target)
    assert len(payload) == DATAGRAM_SIZE
    expected = Knock(NOW_US, (SSH, POSTGRES), ip_address("203.0.113.9"), target, 900, once=True)
    assert request_of(payload) == expected


def test_a_close_says_what_was_wished_for() -> None:
    wish = Wish((SSH,), closing=True, reply_wanted=False)
    assert request_of(compose(wish)) == Close(NOW_US, (SSH,), OWN, None, reply_wanted=False)


def test_the_target_is_not_named_unless_told() -> None:
    assert request_of(compose(Wish((SSH,)))).target is None


def test_the_same_values_make_the_same_bytes_and_another_nonce_does_not() -> None:
    composer = Composer.toward(SERVER, ALICE, Wish((SSH,)))
    made = [composer.compose(OWN, TO, nonce=n * 24, now_us=NOW_US).payload for n in (b"a", b"a")]
    other = composer.compose(OWN, TO, nonce=b"b" * 24, now_us=NOW_US).payload
    assert made[0] == made[1]
    assert made[0][32:] != other[32:]


def test_a_reply_to_another_datagram_is_none() -> None:
    composer = Composer.toward(SERVER, ALICE, Wish((SSH,)))
    one, two = (composer.compose(OWN, TO, nonce=n * 24, now_us=NOW_US) for n in (b"1", b"2"))
    reply = Reply(Status.GRANTED, NOW_US, OWN, TO, (Outcome(SSH, Code.GRANTED, 30),))
    sealed = seal_reply(reply, pair=composer.pair, request_nonce=one.nonce, nonce=bytes(24))
    assert composer.open(sealed, one) == reply
    assert composer.open(sealed, two) is None
    assert composer.open(sealed[:-1], one) is None


NAMED = "198.51.100.7"


@pytest.mark.parametrize(
    ("rule", "own", "to", "declared"),
    [
        # own address global: declared wherever the target is
        ("auto", "8.8.4.4", "9.9.9.9", "8.8.4.4"),
        ("auto", "2600::5", "2620:fe::fe", "2600::5"),
        ("auto", "8.8.4.4", "10.0.0.1", "8.8.4.4"),
        # private: only in the target's network
        ("auto", "10.1.2.3", "10.1.2.250", "10.1.2.3"),
        ("auto", "10.1.2.3", "10.1.3.1", None),
        ("auto", "192.168.1.5", "9.9.9.9", None),
        ("auto", "100.64.0.9", "9.9.9.9", None),
        ("auto", "fd00::2", "fd00::9:9", "fd00::2"),
        ("auto", "fd00::2", "fd00:0:0:1::9", None),
        ("auto", "fe80::2", "fe80::3", "fe80::2"),
        # loopback and this host itself
        ("auto", "127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("auto", "::1", "::1", "::1"),
        ("auto", "10.1.2.3", "10.1.2.3", "10.1.2.3"),
        # told not to
        ("none", "8.8.4.4", "9.9.9.9", None),
        ("none", "10.1.2.3", "10.1.2.9", None),
        # told which: for targets of its family, the others as with auto
        (NAMED, "192.168.1.5", "9.9.9.9", NAMED),
        (NAMED, "fd00::2", "2620:fe::fe", None),
        (NAMED, "2600::5", "2620:fe::fe", "2600::5"),
    ],
)
def test_declared_source(rule: str, own: str, to: str, declared: str | None) -> None:
    given = SourceRule(rule) if rule in ("auto", "none") else ip_address(rule)
    result = declared_source(given, own=ip_address(own), to=ip_address(to))
    assert result == (ip_address(declared) if declared else None)


def test_addresses_of_two_families_are_in_no_common_network() -> None:
    assert not same_network(ip_address("0.0.0.1"), ip_address("::1"))

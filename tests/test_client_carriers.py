"""Knocking on real sockets: what is sent, what counts as a reply, and how long it all takes."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from itertools import islice

import pytest

from keys import identity
from spa_client.carriers import (
    Answer,
    Freshness,
    Silence,
    exchange,
    own_address,
    send_only,
    tag_numbers,
    waits,
)
from spa_client.compose import Composer, SourceRule, Wish
from spa_client.resolve import Target
from spa_protocol.layout import DATAGRAM_SIZE, TAG_SIZE, TAGS, epoch_of
from spa_protocol.reason import Code, Status
from spa_protocol.sshsig import KeyType
from tests.test_client_fake_server import (
    SSH,
    Action,
    FakeServer,
    Heard,
    grants,
    refuses,
    says_nothing,
    serving,
)

LONG_S = 20  # on the busiest machine, and less than what is not to be waited for


def knock(server: FakeServer, *targets: Target, **more: object) -> list[Answer | Silence]:
    return list(exchange(targets or (server.target,), server.composer(), **more))


def closed_port() -> int:
    """A UDP port of 127.0.0.1 on which nothing listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("timeout_s", "expected"),
    [
        (2.5, [0.3, 0.7, 1.0, 0.5]),
        (0.1, [0.1]),
        (0.5, [0.3, 0.2]),
        (4.0, [0.3, 0.7, 1.0, 1.0, 1.0]),
        (0.0, []),
    ],
)
def test_waits(timeout_s: float, expected: list[float]) -> None:
    assert list(waits(timeout_s)) == pytest.approx(expected)


def test_a_granted_knock_is_one_datagram_and_one_answer() -> None:
    with serving() as server:
        (answer,) = knock(server)
    assert isinstance(answer, Answer)
    assert answer.reply.status is Status.GRANTED
    assert [h.knock.request.accesses for h in server.heard] == [(SSH,)]
    assert not server.refused


def test_over_ipv6() -> None:
    with serving(host="::1") as server:
        (answer,) = knock(server)
    assert isinstance(answer, Answer)
    assert server.heard[0].knock.request.source == ip_address("::1")


def test_a_refusal_is_an_answer_and_is_not_repeated() -> None:
    with serving(refuses(Code.NO_ROLE)) as server:
        (answer,) = knock(server)
    assert isinstance(answer, Answer)
    assert answer.reply.outcomes[0].code is Code.NO_ROLE
    assert len(server.heard) == 1


def test_the_second_knock_is_answered_and_every_knock_is_new() -> None:
    def second_only(heard: Heard) -> Iterator[Action]:
        if heard.nth == 2:
            yield heard.reply()

    with serving(second_only) as server:
        (answer,) = knock(server)
    assert isinstance(answer, Answer)
    first, second = server.heard
    assert first.knock.nonce != second.knock.nonce
    assert first.knock.request.sent_at_us < second.knock.request.sent_at_us
    assert answer.datagram.nonce == second.knock.nonce


def test_a_late_reply_to_the_first_knock_counts() -> None:
    def first_only_late(heard: Heard) -> Iterator[Action]:
        if heard.nth == 1:
            yield 0.6
            yield heard.reply()

    with serving(first_only_late) as server:
        (answer,) = knock(server)
    assert isinstance(answer, Answer)
    assert answer.datagram.nonce == server.heard[0].knock.nonce


def test_silence_lasts_as_long_as_was_said_and_takes_four_knocks() -> None:
    begun = time.monotonic()
    with serving(says_nothing) as server:
        results = knock(server)
        lasted_s = time.monotonic() - begun
    assert results == [Silence(server.target, 7)]
    assert 2.5 <= lasted_s < LONG_S
    assert len({h.knock.nonce for h in server.heard}) == 4


def tags_sent(composer: Composer, **more: object) -> list[int]:
    """Which of the key's tags, by their numbers, the knocks of one exchange bore."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hearing:
        hearing.bind(("127.0.0.1", 0))
        hearing.settimeout(0.2)
        target = Target(ip_address("127.0.0.1"), hearing.getsockname()[1])
        if composer.wish.reply_wanted:
            list(exchange((target,), composer, **more))
        else:
            send_only((target,), composer)
        epoch = epoch_of(time.time_ns() // 1000)
        number_of = {
            composer.pair.tag_at(near, number): number
            for near in (epoch - 1, epoch)
            for number in range(TAGS)
        }
        numbers = []
        with contextlib.suppress(TimeoutError):
            while True:
                numbers.append(number_of[hearing.recv(2048)[:TAG_SIZE]])
    return numbers


def test_each_further_try_is_under_the_usual_tag_and_under_another_spare_one() -> None:
    with serving(says_nothing) as server:
        first, *further = tags_sent(server.composer(), tries=[0.01] * 12)
    assert first == 0
    assert further[0::2] == [0] * 11
    spare = further[1::2]
    assert len(set(spare)) == 11
    assert 0 not in spare


def test_all_spare_tags_serve_before_one_serves_again() -> None:
    with serving(says_nothing) as server:
        numbers = tags_sent(server.composer(), tries=[0.001] * 70)
    spare = [number for number in numbers if number]
    assert sorted(spare[:63]) == list(range(1, TAGS))
    assert spare[63:] == spare[: len(spare) - 63]


def test_who_may_have_to_confirm_signs_once_a_try() -> None:
    with serving(says_nothing) as server:
        composer = server.composer()
        composer = replace(composer, identity=replace(composer.identity, _seed=None))
        numbers = list(islice(tag_numbers(composer), 5))
    assert [len(each) for each in numbers] == [1] * 5
    assert [bool(number) for (number,) in numbers] == [False, True, False, True, False]


def test_without_a_reply_both_tags_are_tried_at_once() -> None:
    with serving(says_nothing) as server:
        usual, spare = tags_sent(server.composer(Wish((SSH,), reply_wanted=False)))
    assert usual == 0
    assert spare in range(1, TAGS)


def test_tries_that_the_caller_chooses() -> None:
    with serving(says_nothing) as server:
        assert knock(server, tries=[0.05, 0.1]) == [Silence(server.target, 3)]


def test_a_key_that_must_be_touched_knocks_once() -> None:
    public = replace(identity.generate().public, key_type=KeyType.SK_ED25519)
    with serving(says_nothing) as server:
        composer = server.composer()
        touched = replace(composer, identity=replace(composer.identity, public=public))
        results = list(exchange((server.target,), touched, timeout_s=0.5))
    assert results == [Silence(server.target, 1)]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_own_address(host: str) -> None:
    assert own_address(Target(ip_address(host), 9)) == ip_address(host)


def test_a_short_timeout_is_kept() -> None:
    begun = time.monotonic()
    with serving(says_nothing) as server:
        assert knock(server, timeout_s=0.2) == [Silence(server.target, 1)]
        assert 0.2 <= time.monotonic() - begun < 2.5


def test_junk_before_the_reply_is_not_heeded() -> None:
    def junk_first(heard: Heard) -> Iterator[Action]:
        for size in (0, 1, DATAGRAM_SIZE - 1, DATAGRAM_SIZE, DATAGRAM_SIZE + 1, 1400):
            yield os.urandom(size)
        whole = server.sealed(heard.reply(), heard)
        yield whole[:-1] + bytes([whole[-1] ^ 1])
        yield whole + b"\0"
        yield heard.reply(lifetime_s=77)

    with serving(junk_first) as server:
        (answer,) = knock(server)
    assert isinstance(answer, Answer)
    assert answer.reply.outcomes[0].lifetime_s == 77
    assert len(server.heard) == 1


def test_junk_alone_is_silence() -> None:
    with serving(lambda _: [os.urandom(DATAGRAM_SIZE)]) as server:
        assert knock(server, timeout_s=0.5) == [Silence(server.target, 3)]


def test_a_reply_to_somebody_elses_knock_is_not_heeded() -> None:
    """Sealed by the same server for another key, and for another nonce of this key."""
    other = identity.generate()

    def wrong_binding(heard: Heard) -> Iterator[Action]:
        with FakeServer(other, grants) as elsewhere:
            elsewhere.secret, elsewhere.sender = server.secret, server.sender
            yield elsewhere.sealed(heard.reply(), server.heard[0]) if heard.nth == 2 else b""

    with serving(wrong_binding) as server:
        first = list(exchange((server.target,), server.composer(), timeout_s=0.1))
        second = list(exchange((server.target,), server.composer(), timeout_s=0.1))
    assert [type(r) for r in first + second] == [Silence, Silence]


def test_two_replies_are_one_answer() -> None:
    with serving(lambda heard: [heard.reply(), heard.reply()]) as server:
        assert [type(r) for r in knock(server)] == [Answer]


def test_a_closed_port_is_told_and_waited_for_all_the_same() -> None:
    """Anybody can send an ICMP error, so it must not keep the reply from being heard."""
    with serving() as server:
        nowhere = Target(ip_address("127.0.0.1"), closed_port())
        (result,) = knock(server, nowhere, timeout_s=0.5)
    assert result == Silence(nowhere, 3, "connection refused")


def test_one_dead_address_delays_the_others_answer_not_at_all_and_the_end_by_half_a_second() -> (
    None
):
    with serving() as server:
        dead = Target(ip_address("127.0.0.1"), closed_port())
        begun = time.monotonic()
        results = exchange((dead, server.target), server.composer(), timeout_s=60)
        assert isinstance(next(results), Answer)
        assert time.monotonic() - begun < LONG_S
        (silence,) = results
        assert 0.5 <= time.monotonic() - begun < LONG_S
    assert silence == Silence(dead, 3, "connection refused")


def test_every_address_is_knocked_on_from_its_own_family() -> None:
    client = identity.generate()
    with serving() as four:
        six = FakeServer(four.client, grants, host="::1", port=four.port)
        six.secret, six.sender = four.secret, four.sender
        with six:
            results = knock(four, four.target, six.target)
    assert {str(r.target) for r in results if isinstance(r, Answer)} == {"127.0.0.1", "::1"}
    assert client.public != four.client.public


def test_what_cannot_be_sent_ends_at_once() -> None:
    """A link-local address without its interface is refused by the system itself."""
    nowhere = Target(ip_address("fe80::1"), 62201)
    begun = time.monotonic()
    with serving() as server:
        (result,) = knock(server, nowhere, timeout_s=60)
        assert time.monotonic() - begun < LONG_S
    assert isinstance(result, Silence)
    assert result.datagrams == 0
    assert result.error


def test_nobody_is_waited_for_where_no_reply_is_wanted() -> None:
    with serving(says_nothing) as server:
        composer = server.composer(Wish((SSH,), reply_wanted=False))
        begun = time.monotonic()
        assert send_only((server.target,), composer) == [Silence(server.target, 2)]
        assert time.monotonic() - begun < 2.5
        deadline = time.monotonic() + 5
        while not server.heard and time.monotonic() < deadline:
            time.sleep(0.01)
    assert not server.heard[0].knock.request.reply_wanted


def test_time_and_randomness_are_what_they_are_said_to_be() -> None:
    now_us = time.time_ns() // 1000
    fixed = Freshness(now_us=lambda: now_us, random=lambda size: b"\7" * size)
    with serving() as server:
        (answer,) = knock(server, freshness=fixed)
    assert isinstance(answer, Answer)
    assert (answer.datagram.nonce, answer.datagram.sent_at_us) == (b"\7" * 24, now_us)


@pytest.mark.parametrize(
    ("source", "declared"), [(SourceRule.AUTO, True), (SourceRule.NONE, False)]
)
def test_the_own_address_is_the_one_that_is_sent_from(source: SourceRule, declared: bool) -> None:
    with serving() as server:
        list(exchange((server.target,), server.composer(source=source)))
    expected = ip_address("127.0.0.1") if declared else None
    assert server.heard[0].knock.request.source == expected


def test_what_arrived_while_nobody_looked_is_still_heard() -> None:
    with serving() as one, serving() as two:
        two.secret, two.sender = one.secret, one.sender
        results = exchange((one.target, two.target), one.composer(), timeout_s=0.3)
        next(results)
        time.sleep(0.6)
        assert [type(r) for r in islice(results, 1)] == [Answer]

"""What a person reads, for every way in which a knock can end."""

import json
import time
from ipaddress import ip_address

import pytest

from keys.trouble import ExitCode
from spa_client.carriers import Answer, Result, Silence
from spa_client.compose import Datagram, Wish
from spa_client.outcome import Story, clock_lead_s, duration
from spa_client.resolve import Target
from spa_protocol.access import Access
from spa_protocol.reason import Code, Status
from spa_protocol.reply import Outcome, Reply

SSH, POSTGRES = Access.parse("tcp/22"), Access.parse("tcp/5432")
V4, V6 = Target(ip_address("10.0.0.5"), 62201), Target(ip_address("fd00::5"), 62201)
CLIENT = ip_address("10.0.0.9")
NOW_US = 1_790_000_000_000_000


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def answer(
    status=Status.GRANTED, *outcomes, target=V4, declared=None, seen=CLIENT, lead_s=0, message=""
) -> Answer:
    datagram = Datagram(b"", bytes(24), NOW_US, declared)
    server_time_us = NOW_US + 1000 + int(lead_s * 1_000_000)
    reply = Reply(status, server_time_us, seen, V4.address, outcomes, message)
    return Answer(target, datagram, reply, NOW_US + 2000)


def granted(access=SSH, lifetime_s=30) -> Outcome:
    return Outcome(access, Code.GRANTED, lifetime_s)


def story(*results: Result, **wish: object) -> Story:
    wish.setdefault("accesses", (SSH,))
    return Story("db1", 62201, "abcd", Wish(**wish), results)


def texts(told: Story) -> list[str]:
    return [line.text for line in told.lines()]


def test_granted() -> None:
    told = story(answer(Status.GRANTED, granted()))
    assert texts(told) == [f"db1 (10.0.0.5): tcp/22 open for 10.0.0.9 until {until(30)} (30 s)"]
    assert told.lines()[0].good
    assert told.exit_code is ExitCode.FINE


def until(lifetime_s: int) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(NOW_US // 1_000_000 + lifetime_s))


def test_granted_past_midnight_says_the_day() -> None:
    told = story(answer(Status.GRANTED, granted(lifetime_s=86_400)))
    assert "until 2026-09-2" in texts(told)[0]
    assert texts(told)[0].endswith("(1 d)")


def test_granted_once_and_for_a_declared_source() -> None:
    declared = ip_address("203.0.113.9")
    told = story(answer(Status.GRANTED, granted(), declared=declared), once=True)
    assert texts(told)[0].startswith("db1 (10.0.0.5): tcp/22 open once for 203.0.113.9 until")
    assert "the server saw 10.0.0.9" in texts(told)[1]
    assert told.exit_code is ExitCode.FINE


def test_an_address_is_not_said_twice() -> None:
    told = Story("10.0.0.5", 62201, "abcd", Wish((SSH,)), [answer(Status.GRANTED, granted())])
    assert texts(told)[0].startswith("10.0.0.5: tcp/22 open")


def test_granted_at_one_address_and_no_answer_from_another() -> None:
    told = story(answer(Status.GRANTED, granted()), Silence(V6, 2, "no route to host"))
    assert texts(told)[1] == "db1 (fd00::5): no answer: no route to host"
    assert [line.good for line in told.lines()] == [True, False]
    assert told.exit_code is ExitCode.FINE


def test_half_of_what_was_asked_for_is_not_success() -> None:
    refused = Outcome(POSTGRES, Code.NO_ROLE)
    told = story(answer(Status.GRANTED, granted(), refused), accesses=(SSH, POSTGRES))
    assert told.exit_code is ExitCode.REFUSED
    assert [line.good for line in told.lines()] == [True, False]


def test_refused_at_one_address_and_granted_at_another_is_success() -> None:
    refused = answer(Status.REFUSED, Outcome(SSH, Code.NOT_A_TARGET), target=V6)
    assert story(refused, answer(Status.GRANTED, granted())).exit_code is ExitCode.FINE


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (Code.NO_ROLE, "no role allows it; ask an operator, key id abcd"),
        (Code.NOT_FROM_HERE, "not allowed from this source (10.0.0.9); knock from another network"),
        (Code.NOT_NOW, "not allowed at this hour"),
        (Code.EXPIRED, "the permission has expired; ask an operator, key id abcd"),
        (Code.DECLARE_SOURCE, "if that is yours alone, add --source 10.0.0.9"),
        (Code.TOUCH, "the security key must be touched"),
        (Code.TOO_MANY, "too many at once; give some back"),
        (Code.SHARED_SOURCE, "the source is shared by many (10.0.0.9)"),
        (Code.NOT_A_TARGET, "not with these addresses; see --source and --target"),
        (Code.UNAVAILABLE, "the gate is unavailable; try again"),
    ],
)
def test_every_refusal(code: Code, said: str) -> None:
    told = story(answer(Status.REFUSED, Outcome(SSH, code)))
    assert texts(told)[0].startswith("db1 (10.0.0.5): refused tcp/22: ")
    assert said in texts(told)[0]
    assert told.exit_code is ExitCode.REFUSED
    assert not told.lines()[0].good


def test_every_refusal_code_is_tested() -> None:
    marks = test_every_refusal.pytestmark[0]
    assert {row[0] for row in marks.args[1]} == set(Code) - {Code.GRANTED}


@pytest.mark.parametrize(
    ("lead_s", "said"),
    [
        (94, "your clock is 94 s behind the server's"),
        (-40, "your clock is 40 s ahead of the server's"),
        (7200, "your clock is 7200 s behind the server's"),
    ],
)
def test_clock(lead_s: float, said: str) -> None:
    told = story(answer(Status.CLOCK, lead_s=lead_s))
    assert said in texts(told)[0]
    assert told.exit_code is ExitCode.REFUSED
    assert clock_lead_s(told.results[0]) == lead_s


def test_a_clock_that_is_nearly_too_far_off_is_told() -> None:
    told = story(answer(Status.GRANTED, granted(), lead_s=25))
    assert "your clock is 25 s behind" in texts(told)[1]
    assert told.exit_code is ExitCode.FINE


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (Status.GRANTED, "granted, without saying what"),
        (Status.REFUSED, "refused"),
        (Status.UNAVAILABLE, "the gate is unavailable; try again"),
        (Status.PENDING, "waits for somebody's approval"),
        (Status.JOINED, "an answer to another request"),
        (Status.JOIN_REFUSED, "an answer to another request"),
        (Status.CLOSED, "closed"),
    ],
)
def test_a_status_alone_grants_nothing(status: Status, said: str) -> None:
    told = story(answer(status))
    assert said in texts(told)[0]
    assert told.exit_code is ExitCode.REFUSED


def test_closed() -> None:
    told = story(answer(Status.CLOSED, granted(lifetime_s=0)), closing=True)
    assert texts(told) == ["db1 (10.0.0.5): tcp/22 closed for 10.0.0.9"]
    assert told.exit_code is ExitCode.FINE


@pytest.mark.parametrize("status", [Status.REFUSED, Status.GRANTED, Status.UNAVAILABLE])
def test_not_closed(status: Status) -> None:
    told = story(answer(status, granted()), closing=True)
    assert told.exit_code is ExitCode.REFUSED
    assert not any(line.good for line in told.lines())


def test_the_servers_message_is_passed_on() -> None:
    told = story(answer(Status.REFUSED, message="back at nine"))
    assert texts(told)[1] == "db1 (10.0.0.5): the server says: back at nine"


def test_the_servers_message_is_not_said_twice() -> None:
    refused = answer(Status.REFUSED, Outcome(SSH, Code.NO_ROLE), message=Code.NO_ROLE.sentence)
    assert len(texts(story(refused))) == 1
    clock = answer(Status.CLOCK, lead_s=94, message="your clock is 95 s behind the server's")
    assert len(texts(story(clock))) == 1


def test_nothing_was_open_to_be_closed() -> None:
    told = story(answer(Status.CLOSED, message="nothing was open"), closing=True)
    assert texts(told) == ["db1 (10.0.0.5): nothing was open at tcp/22 for 10.0.0.9"]
    assert told.exit_code is ExitCode.REFUSED
    assert told.is_shut


def test_no_answer_says_in_one_line_what_it_may_mean() -> None:
    told = story(Silence(V4, 3, "connection refused"), Silence(V6, 3))
    (line,) = texts(told)
    assert line.startswith("no answer from db1 (10.0.0.5: connection refused, fd00::5, udp/62201);")
    for meaning in ("another server's", "port", "UDP blocked", "clock", "key abcd is not enrolled"):
        assert meaning in line
    assert told.exit_code is ExitCode.NO_ANSWER


def test_nothing_sent() -> None:
    told = story(Silence(V4, 0, "network is unreachable"))
    (line,) = texts(told)
    assert line.startswith("cannot send to db1: 10.0.0.5: network is unreachable;")
    assert told.exit_code is ExitCode.TROUBLE


def test_no_reply_wanted() -> None:
    told = story(Silence(V4, 1), reply_wanted=False)
    assert "what came of it is unknown" in texts(told)[0]
    assert told.exit_code is ExitCode.FINE
    assert story(Silence(V4, 0, "no"), reply_wanted=False).exit_code is ExitCode.TROUBLE


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (30, "30 s"),
        (94, "1 min 34 s"),
        (900, "15 min"),
        (5400, "1 h 30 min"),
        (86_400 + 3661, "1 d 1 h"),
    ],
)
def test_duration(seconds: int, text: str) -> None:
    assert duration(seconds) == text


def test_json_says_everything_and_is_one_object() -> None:
    refused = Outcome(POSTGRES, Code.NOT_NOW)
    told = story(
        answer(Status.GRANTED, granted(), refused, declared=CLIENT, lead_s=2),
        Silence(V6, 3, "connection refused"),
        accesses=(SSH, POSTGRES),
    )
    said = json.loads(json.dumps(told.as_json()))
    assert (said["host"], said["result"], said["exit_code"]) == ("db1", "refused", 1)
    first, second = said["addresses"]
    assert first["address"] == "10.0.0.5"
    assert first["source"] == first["declared_source"] == first["seen_source"] == "10.0.0.9"
    assert first["clock_lead_s"] == 2.0
    assert first["accesses"][0]["until"].startswith("2026-09-")
    assert first["accesses"][1] == {
        "access": "tcp/5432",
        "code": "not-now",
        "reason": "not allowed at this hour",
        "lifetime_s": 0,
        "until": None,
    }
    assert second["error"] == "connection refused"


@pytest.mark.parametrize(
    ("results", "wish", "word"),
    [
        ([answer(Status.GRANTED, granted())], {}, "granted"),
        ([answer(Status.CLOSED, granted(lifetime_s=0))], {"closing": True}, "closed"),
        ([answer(Status.CLOSED)], {"closing": True}, "nothing open"),
        ([answer(Status.CLOCK)], {}, "refused"),
        ([Silence(V4, 3)], {}, "no answer"),
        ([Silence(V4, 0)], {}, "not sent"),
        ([Silence(V4, 1)], {"reply_wanted": False}, "sent"),
    ],
)
def test_json_result(results: list[Result], wish: dict[str, object], word: str) -> None:
    assert story(*results, **wish).as_json()["result"] == word

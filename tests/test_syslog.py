"""Live outputs: what is sent can be parsed by others, is escaped, and holds nobody up."""

import json
import os
import re
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spa_server.audit import journal, lines, syslog
from spa_server.audit.denials import Denials
from spa_server.audit.ledger import Ledger
from spa_server.audit.outputs import TELL_EVERY_US, Output, Outputs, OutputSpec, usual
from spa_server.audit.record import Event, Record
from spa_server.audit.syslog import ID, parse_address
from tests.test_ledger import Book, big
from tests.world import NOW_US

with warnings.catch_warnings():  # it imports what Python is about to drop
    warnings.simplefilter("ignore", DeprecationWarning)
    from syslog_rfc5424_parser import SyslogMessage

RECORD = Record(
    Event.KNOCK_REFUSED,
    NOW_US,
    identity="zoë",
    key_id="abcdefgh12345678",
    source="10.20.0.9",
    target="10.20.0.1",
    access="tcp/22",
    reason='no "role" allows it]',
    detail={"source_port": 40000},
)
WITHIN_S = 5.0
JOURNALS = "/run/systemd/journal/dev-log"


def until(is_true: Callable[[], bool]) -> None:
    end_s = time.monotonic() + WITHIN_S
    while not is_true():
        assert time.monotonic() < end_s
        time.sleep(0.005)


# RFC 5424


def parsed(record: Record, line_id: int = 7) -> SyslogMessage:
    return SyslogMessage.parse(syslog.message(line_id, record, host="gate1", pid=12).decode())


def test_a_line_is_what_another_parser_reads() -> None:
    message = parsed(RECORD)
    assert (message.severity.name, message.facility.name) == ("notice", "authpriv")
    assert (message.hostname, message.appname, message.procid) == ("gate1", "spa-server", 12)
    assert message.msgid == "knock.refused"
    assert message.timestamp == "2026-11-24T06:00:00Z"
    named = dict(message.sd[ID])
    assert named["event"] == "knock.refused"
    assert named["id"] == "7"
    assert named["identity"] == "zoë"
    assert json.loads(named["detail"].replace('\\"', '"')) == {"source_port": 40000}


def test_a_denial_has_no_number() -> None:
    assert "id" not in dict(parsed(RECORD, 0).sd[ID])


def sd_values(message: str) -> dict[str, str]:
    """Section 6.3 read by the letter: a value ends at a quote that is not escaped."""
    parameter = r' ([a-z_]+)="((?:[^"\\\]]|\\["\\\]])*)"'
    structured = re.search(rf"\[{ID}((?:{parameter})*)\] ", message)
    assert structured is not None
    found = re.findall(parameter, structured[1])
    return {name: re.sub(r'\\(["\\\]])', r"\1", value) for name, value in found}


anything = st.text(st.characters(codec="utf-8"), max_size=60)


@given(anything, anything, anything)
def test_whatever_a_value_holds_the_message_is_one_line_and_gives_it_back(
    identity: str, reason: str, source: str
) -> None:
    record = Record(
        Event.KNOCK_REFUSED, NOW_US, identity=identity, source=source, reason=reason,
        detail={"near": reason},
    )  # fmt: skip
    message = syslog.message(1, record, host="h", pid=1).decode()
    assert message.replace("\ufeff", "").isprintable()
    assert sd_values(message) == dict(lines.values_of(1, record))


@given(anything, anything)
def test_the_journal_gets_one_field_a_value_and_none_that_was_smuggled_in(
    identity: str, reason: str
) -> None:
    record = Record(Event.JOIN_REFUSED, NOW_US, identity=identity, reason=reason + "\nPRIORITY=0")
    sent = journal.message(3, record).decode()
    fields = [line.partition("=") for line in sent.removesuffix("\n").split("\n")]
    names = [name for name, _, _ in fields]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]*", name) for name in names)
    values = {name: value for name, _, value in fields}
    assert values["PRIORITY"] == "5"
    assert values["SPA_EVENT"] == "join.refused"
    assert values["SPA_ID"] == "3"
    assert values["SPA_REASON"] == dict(lines.values_of(3, record))["reason"]


def test_bytes_that_are_no_text_do_not_stop_an_output() -> None:
    record = Record(Event.POLICY_REFUSED, NOW_US, reason="/etc/\udcff", detail={"x": "\udcff"})
    assert b"\\udcff" in syslog.message(1, record, host="h", pid=1)
    assert b"\\udcff" in journal.message(1, record)


def test_a_long_value_is_cut() -> None:
    record = Record(Event.POLICY_REFUSED, NOW_US, reason="x" * 100_000)
    assert len(syslog.message(1, record, host="h", pid=1)) < 4096


@pytest.mark.parametrize("event", Event)
def test_every_event_has_a_severity_and_a_name_that_fits(event: Event) -> None:
    assert lines.severity_of(event) in {3, 4, 5, 6}
    assert re.fullmatch(r"[!-~]{1,32}", event.value)


# Where to


@pytest.mark.parametrize(
    ("text", "family", "target"),
    [
        ("udp://127.0.0.1:514", socket.AF_INET, ("127.0.0.1", 514)),
        ("udp://[fd77::1]:514", socket.AF_INET6, ("fd77::1", 514)),
        ("unix:///dev/log", socket.AF_UNIX, "/dev/log"),
    ],
)
def test_an_address_is_read(text: str, family: int, target: object) -> None:
    address = parse_address(text)
    assert (address.family, address.target) == (family, target)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "syslog",
        "journal",
        "syslog:",
        "syslog:tcp://127.0.0.1:514",
        "syslog:udp://log.example:514",
        "syslog:udp://127.0.0.1",
        "syslog:udp://127.0.0.1:0",
        "syslog:udp://::1:514",
        "syslog:unix://dev/log",
    ],
)
def test_what_is_no_output_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|write it like"):
        OutputSpec.parse(text)


# Sending


@pytest.fixture
def server(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "log"))
        listening.settimeout(WITHIN_S)
        yield listening


def output_to(path: Path, **settings: Any) -> Output:
    made = OutputSpec.parse(f"syslog:unix://{path}")
    return Output(made.name, made.make(), **settings)


@pytest.mark.parametrize("text", ["journald", "syslog:udp://127.0.0.1:514", "syslog:unix:///s"])
def test_an_output_is_what_the_same_words_name(text: str) -> None:
    """Else each look at server.toml finds that it has changed."""
    assert OutputSpec.parse(text) == OutputSpec.parse(text)


def test_nothing_gets_a_line_twice() -> None:
    """Not the same receiver that is named twice, nor the journal by its own syslog socket."""
    texts = ["journald", "journald", "syslog:udp://127.0.0.1:514", "syslog:udp://127.0.0.1:514"]
    specs = [*map(OutputSpec.parse, texts), OutputSpec.parse(f"syslog:unix://{JOURNALS}")]
    outputs = Outputs(specs)
    assert list(outputs.figures()) == ["journald", "syslog"]
    assert len(outputs._outputs) == 2
    outputs.close()
    alone = Outputs([OutputSpec.parse(f"syslog:unix://{JOURNALS}")])
    assert list(alone.figures()) == ["syslog"]
    alone.close()


def test_lines_arrive_in_order_with_their_numbers(server: socket.socket, tmp_path: Path) -> None:
    output = output_to(tmp_path / "log")
    output.put(40, [RECORD, RECORD])
    output.put(0, [RECORD])
    named = [sd_values(server.recv(65536).decode()) for _ in range(3)]
    assert [values.get("id") for values in named] == ["40", "41", None]
    output.close()
    assert (output.sent, output.lost) == (3, 0)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_lines_arrive_over_udp(family: socket.AddressFamily) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        listening.settimeout(WITHIN_S)
        host, port = listening.getsockname()[:2]
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        outputs = Outputs([OutputSpec.parse(f"syslog:udp://{where}")])
        outputs.written([RECORD], 1)
        assert SyslogMessage.parse(listening.recv(65536).decode()).msgid == "knock.refused"
        outputs.close()
        assert outputs.figures() == {"syslog": (1, 0)}


def test_the_journal_gets_its_datagram(server: socket.socket, tmp_path: Path) -> None:
    output = Output("journald", journal.Journal(tmp_path / "log"))
    output.put(5, [RECORD])
    assert b"SPA_ID=5\n" in server.recv(65536)
    output.close()


def test_a_receiver_that_comes_back_gets_what_waited(tmp_path: Path) -> None:
    output = output_to(tmp_path / "log")
    output.put(1, [RECORD] * 50)
    time.sleep(0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "log"))
        listening.settimeout(WITHIN_S)
        numbers = [sd_values(listening.recv(65536).decode())["id"] for _ in range(50)]
    assert numbers == [str(number) for number in range(1, 51)]
    output.close()
    assert output.lost == 0


def test_a_receiver_that_never_reads_holds_nobody_up(server: socket.socket, tmp_path: Path) -> None:
    """Its buffer fills, then the queue, then lines are dropped and counted; none twice."""
    output = output_to(tmp_path / "log", max_waiting=1000)
    for first in range(1, 5001, 10):  # and not for ever
        output.put(first, [RECORD] * 10)
    output.close()
    server.setblocking(False)
    received = 0
    while True:
        try:
            server.recv(65536)
        except BlockingIOError:
            break
        received += 1
    until(lambda: output.sent + output.lost == 5000)
    assert received == output.sent > 0
    assert output.lost >= 3000


def test_a_batch_that_does_not_fit_is_cut_not_thrown_away(tmp_path: Path) -> None:
    output = output_to(tmp_path / "nobody", max_waiting=10)
    output.put(1, [RECORD] * 25)
    assert output.lost == 15
    output.close()
    until(lambda: output.lost == 25)


def test_an_output_lives_on_after_a_line_that_cannot_be_written() -> None:
    class Fussy:
        def send(self, line_id: int, _record: Record) -> None:
            if line_id == 1:
                raise RuntimeError("no")

        def close(self) -> None:
            pass

    output = Output("syslog", Fussy())
    output.put(1, [RECORD, RECORD])
    until(lambda: output.sent == 1)
    assert output.lost == 1
    output.close()


# What is lost is told


def test_losses_are_told_once_a_minute_and_not_of_themselves(tmp_path: Path) -> None:
    outputs = Outputs([OutputSpec.parse(f"syslog:unix://{tmp_path / 'nobody'}")])
    outputs.written([RECORD] * 10_500, 1)
    told = outputs.losses(NOW_US)
    assert [(one.event, one.detail) for one in told] == [
        (Event.RECORDS_LOST, {"count": 500, "of": "syslog"})
    ]
    outputs.written([*told, RECORD], 10_501)
    assert outputs.losses(NOW_US + 1) == []
    later = outputs.losses(NOW_US + TELL_EVERY_US)
    assert [one.detail["count"] for one in later] == [1]
    outputs.written(later, 10_503)
    assert outputs.losses(NOW_US + 2 * TELL_EVERY_US) == []
    outputs.close()


def test_no_outputs_cost_no_thread() -> None:
    before = threading.active_count()
    outputs = Outputs([])
    outputs.written([RECORD], 1)
    assert threading.active_count() == before
    assert outputs.losses(NOW_US) == []
    outputs.close()


# What the ledger tells


def test_the_ledger_tells_of_each_line_once_with_its_number(tmp_path: Path) -> None:
    """Also of those that could not be written at first; and of denials, without a number."""
    book = Book(tmp_path)
    denials = Denials(tmp_path / "denials.db")
    ledger = Ledger(
        book.connection, book.registry.seen, unrecorded=tmp_path / "u", boot_id="b", denials=denials
    )
    told: list[tuple[int, str]] = []

    def observe(records: Sequence[Record], first_id: int) -> None:
        told.extend(
            (first_id + n if first_id else 0, record.event) for n, record in enumerate(records)
        )

    ledger.observers.append(observe)
    ledger.note([Record(Event.DAEMON_STARTED, NOW_US)], NOW_US)
    book.fill_the_disk()
    many = [msgspec.structs.replace(each, event=Event.KNOCK_ACCEPTED) for each in big()]
    ledger.note([*many, Record(Event.GATE_APPLIED, NOW_US)], NOW_US)
    assert len(told) == 1
    book.make_room()
    denied = Record(Event.CONNECTION_DENIED, NOW_US, source="10.0.0.9", access="tcp/22")
    ledger.note([denied, Record(Event.DAEMON_STOPPED, NOW_US)], NOW_US)
    kept = book.connection.execute("select id, event from event order by id").fetchall()
    assert [line for line in told if line[0]] == kept
    assert [line for line in told if not line[0]] == [(0, "connection.denied")]
    denials.close(NOW_US)
    book.connection.close()


def test_the_journal_is_the_usual_output_where_it_is_this_programs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """JOURNAL_STREAM is inherited: by what is started from a unit, but writes elsewhere."""
    with (tmp_path / "journal").open("w") as stream, (tmp_path / "log").open("w") as other:
        status = os.fstat(stream.fileno())
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.delenv("JOURNAL_STREAM", raising=False)
        assert usual() == ()
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert usual() == (OutputSpec("journald"),)
        monkeypatch.setattr(sys, "stderr", other)
        assert usual() == ()

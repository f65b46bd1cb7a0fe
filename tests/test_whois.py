"""`spa-server whois`: the question, the answer, and what is said where nobody is known."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from spa_protocol.access import Access, Protocol
from spa_server.attribution import Permitted
from spa_server.cli import main
from spa_server.connections import ConnectionLog
from spa_server.firewall.plan import Observed
from spa_server.flow import Flow
from spa_server.grants import Grant, GrantBook
from spa_server.policy.load import parse_policy
from spa_server.policy.model import Policy
from spa_server.whois import UNKNOWN, answer, explained, parse_access, parse_source
from tests.test_conntrack import Kernel
from tests.test_grants import BASE
from tests.world import NOW_US, SECOND

POLICY = parse_policy(
    {
        "services": {"scraped": "tcp/9100", "ssh": "tcp/22"},
        "always_open": [
            {"services": ["ssh"], "from": ["10.9.0.0/24"]},
            {"services": ["scraped"], "from": "anywhere"},
        ],
    },
    Path("policy.toml"),
    {},
)
CLIENT = ip_address("10.0.0.9")


# The question


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("10.0.0.9:40000", IPv4Address("10.0.0.9"), 40_000),
        (" 10.0.0.9:1 ", IPv4Address("10.0.0.9"), 1),
        ("[2001:db8::9]:65535", IPv6Address("2001:db8::9"), 65_535),
        ("[fe80::9%eth0]:40000", IPv6Address("fe80::9"), 40_000),
        ("[::ffff:10.0.0.9]:40000", IPv4Address("10.0.0.9"), 40_000),
    ],
)
def test_an_address_and_a_port(text: str, address: object, port: int) -> None:
    assert parse_source(text) == (address, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0.9",
        "10.0.0.9:",
        "10.0.0.9:0",
        "10.0.0.9:65536",
        "10.0.0.9:٤٠",
        "10.0.0.9:+40",
        ":40000",
        "2001:db8::9:40000",
        "2001:db8::9",
        "[2001:db8::9]",
        "[10.0.0.9:40000",
        "alice:40000",
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"^"):
        parse_source(text)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_as_the_gate_writes_it(address: IPv4Address | IPv6Address, port: int) -> None:
    host = f"[{address}]" if address.version == 6 else str(address)
    if address.version == 4 or address.ipv4_mapped is None:
        assert parse_source(f"{host}:{port}") == (address, port)


@given(st.text(max_size=30))
def test_no_text_raises_anything_else(text: str) -> None:
    try:
        address, port = parse_source(text)
    except ValueError:
        return
    assert isinstance(address, IPv4Address | IPv6Address)
    assert 1 <= port <= 65535


def test_one_port_only() -> None:
    assert parse_access("udp/53") == Access.parse("udp/53")
    with pytest.raises(ValueError, match="more than one port; write it like udp/53"):
        parse_access("udp/53-54")


# The answer


class Desk:
    """What a daemon has at hand."""

    def __init__(self, *grants: Grant) -> None:
        book = GrantBook()
        book.add(grants)
        self.holders = book.holders
        self.log = ConnectionLog(self.holders)
        self.kernel = Kernel()
        self.log.ends.follow(self.kernel, lambda: None)
        self.log.ends.is_complete = True

    def connect(self, permitted: Permitted) -> None:
        self.kernel.begin(permitted.flow, permitted.at_us)
        self.log.ends.expect(permitted, permitted.at_us)

    def ask(self, **asked: object) -> dict[str, Any]:
        question = {"source": str(CLIENT), "port": 40_000, **asked}
        observed = Observed(accesses=(Access.parse("tcp/8080"),))
        return answer(question, self.log, self.holders, POLICY, observed)


def flow(to: int = 22, port: int = 40_000) -> Flow:
    return Flow(CLIENT, port, ip_address("10.0.0.1"), Protocol.TCP, to)


ALICE = Permitted(flow(), NOW_US, "alice", "key", BASE.rule, 1)


def test_who_it_is_since_when_and_for_how_long() -> None:
    desk = Desk(replace(BASE, expires_at_us=NOW_US + 30 * SECOND))
    desk.connect(ALICE)
    told = desk.ask()
    assert told == {
        "connections": [
            {
                "source": "10.0.0.9",
                "source_port": 40_000,
                "target": "10.0.0.1",
                "access": "tcp/22",
                "identity": "alice",
                "ambiguous": [],
                "key_id": "key",
                "rule": BASE.rule,
                "grant": 1,
                "since": "2026-11-24T06:00:00Z",
                "open_until": "2026-11-24T06:00:30Z",
                "state": "established",
                "packets_in": 1,
                "bytes_in": 60,
                "packets_out": 1,
                "bytes_out": 60,
            }
        ],
        "remarks": [],
    }
    json.dumps(told)


def test_a_renewal_keeps_the_hole_open_and_changes_no_name() -> None:
    later = replace(BASE, grant_id=2, expires_at_us=NOW_US + 90 * SECOND, ends_at_s=90.0)
    desk = Desk(replace(BASE, expires_at_us=NOW_US + 30 * SECOND), later)
    desk.connect(ALICE)
    [found] = desk.ask()["connections"]
    assert (found["grant"], found["open_until"]) == (1, "2026-11-24T06:01:30Z")


def test_a_hole_that_is_closed_is_open_until_nothing() -> None:
    desk = Desk()
    desk.connect(ALICE)
    assert desk.ask()["connections"][0]["open_until"] is None


def test_all_that_fit_are_told_and_one_can_be_chosen() -> None:
    desk = Desk()
    for to in (22, 5432):
        desk.connect(replace(ALICE, flow=flow(to)))
    desk.connect(replace(ALICE, flow=flow(port=40_001)))
    assert [found["access"] for found in desk.ask()["connections"]] == ["tcp/22", "tcp/5432"]
    assert [found["access"] for found in desk.ask(to="tcp/5432")["connections"]] == ["tcp/5432"]
    assert desk.ask(to="udp/5432")["connections"] == []


def test_what_has_just_ended_is_not_told() -> None:
    desk = Desk()
    desk.connect(ALICE)
    desk.kernel.end(ALICE.flow, NOW_US + 1)
    assert desk.ask()["connections"] == []


def test_why_somebody_may_not_be_known() -> None:
    desk = Desk()
    desk.log.ends.is_complete = False
    desk.log.live.refused = 3
    reading, full = desk.ask()["remarks"]
    assert "still being read" in reading
    assert full == "0 connections are remembered, 3 more are not"


@pytest.mark.parametrize(
    ("source", "to", "why"),
    [
        ("10.0.0.9", "tcp/9100", "no knock is needed: always_open[1] lets tcp/9100 in from"),
        ("10.9.0.7", "tcp/22", "no knock is needed: always_open[0] lets tcp/22 in from 10.9.0.7"),
        ("10.0.0.9", "tcp/8080", "tcp/8080 is observed"),
        ("127.0.0.1", "tcp/5432", "this host speaks with itself"),
        ("10.0.0.9", "tcp/22", UNKNOWN),
    ],
)
def test_what_lets_a_connection_in_that_nobody_knocked_for(source: str, to: str, why: str) -> None:
    told = Desk().ask(source=source, to=to, target="10.0.0.1")
    assert told["connections"] == []
    assert told["why"].startswith(why)


@pytest.mark.parametrize(
    "asked",
    [{"source": "x"}, {"port": "x"}, {"port": None}, {"to": "tcp/1-2"}, {"to": 5}, {"target": 7}],
)
def test_what_is_no_question_raises(asked: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Desk().ask(**{"to": "tcp/22", "target": "10.0.0.1", **asked})


def test_an_empty_policy_explains_nothing() -> None:
    assert explained(flow(), Policy(), Observed()) == UNKNOWN


# The command


@contextmanager
def daemon(path: Path, reply: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[None]:
    """Answers at a control socket."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection, connection.makefile("rwb") as lines:
                    told = {"ok": True, **reply(json.loads(lines.readline()))}
                    lines.write(json.dumps(told).encode() + b"\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text(f'control = "{tmp_path}/control.sock"\n')
    return path


def whois(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--config", str(config), "whois", *arguments])


def test_the_command_names_the_person(config: Path) -> None:
    desk = Desk(replace(BASE, expires_at_us=NOW_US + 30 * SECOND))
    desk.connect(ALICE)
    asked = []

    def reply(question: dict[str, Any]) -> dict[str, Any]:
        asked.append(question)
        return desk.ask(**{name: value for name, value in question.items() if name != "do"})

    with daemon(config.parent / "control.sock", reply):
        told = whois(config, "10.0.0.9:40000", "--to", "tcp/22")
        as_json = whois(config, "10.0.0.9:40000", "--json")
    assert told.exit_code == as_json.exit_code == 0
    assert told.output.splitlines() == [
        "from        10.0.0.9:40000",
        "to          10.0.0.1 tcp/22, established",
        "identity    alice",
        "key         key",
        f"rule        {BASE.rule}",
        "grant       1",
        "since       2026-11-24T06:00:00Z",
        "hole        open until 2026-11-24T06:00:30Z",
        "received    60 bytes, 1 packets",
        "sent        60 bytes, 1 packets",
    ]
    assert json.loads(as_json.output) == desk.ask()
    about = {"do": "whois", "source": "10.0.0.9", "port": 40_000, "to": "tcp/22"}
    assert {name: asked[0][name] for name in about} == about


def test_nobody_is_an_answer_of_its_own(config: Path) -> None:
    with daemon(config.parent / "control.sock", lambda _: {"connections": [], "remarks": ["wait"]}):
        told = whois(config, "192.0.2.1:40000")
        as_json = whois(config, "192.0.2.1:40000", "--json")
    assert told.exit_code == as_json.exit_code == 1
    assert (
        "no connection from 192.0.2.1 port 40000 is open" in told.output or "as root" in told.output
    )
    assert "Wait." in told.output
    assert json.loads(as_json.stdout)["connections"] == []


def test_what_a_daemon_says_cannot_steer_a_terminal(config: Path) -> None:
    evil = replace(ALICE, identity="a\x1b[31m\nb", rule="r\x07")
    desk = Desk()
    desk.connect(evil)
    with daemon(config.parent / "control.sock", lambda _: desk.ask()):
        told = whois(config, "10.0.0.9:40000")
    assert "\x1b" not in told.output
    assert "\x07" not in told.output
    assert len(told.output.splitlines()) == 10


@pytest.mark.parametrize("arguments", [[], ["10.0.0.9"], ["10.0.0.9:40000", "--to", "tcp/1-9"]])
def test_usage(config: Path, arguments: list[str]) -> None:
    assert whois(config, *arguments).exit_code == 2

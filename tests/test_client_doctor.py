"""Which advice follows from what, rule by rule; and the whole examination against a fake server.

integration/test_doctor.py builds the troubles themselves.
"""

import dataclasses
import json
import socket
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keys import identity
from keys.trouble import ExitCode, Trouble
from spa_client.carriers import Answer, Silence
from spa_client.compose import Datagram, Wish
from spa_client.doctor.advice import Advice, Diagnosis, advise
from spa_client.doctor.findings import AddressFound, Examination, PortFound, Reach
from spa_client.resolve import Target
from spa_protocol.access import Access
from spa_protocol.knock import Close, Knock
from spa_protocol.layout import Address
from spa_protocol.reason import Code, Status
from spa_protocol.reply import Outcome, Reply
from tests.test_client_cli import Home, configured
from tests.test_client_fake_server import Heard, grants, refuses, says, says_nothing

SSH, VOICE = Access.parse("tcp/22"), Access.parse("udp/5060")
OWN, OTHER = ip_address("192.168.1.7"), ip_address("203.0.113.9")
CARRIER = ip_address("100.64.3.4")
V4, V6 = Target(ip_address("10.0.0.5"), 62201), Target(ip_address("fd00::5"), 62201)
SECOND_US = 1_000_000


def answer(
    code: Code = Code.GRANTED,
    *,
    status: Status | None = None,
    seen: Address = OWN,
    declared: Address | None = None,
    lead_s: float = 0,
    message: str = "",
    access: Access = SSH,
) -> Answer:
    status = status or (Status.GRANTED if code is Code.GRANTED else Status.REFUSED)
    plain = status in (Status.GRANTED, Status.REFUSED)
    outcomes = (Outcome(access, code, 30 if code is Code.GRANTED else 0),) if plain else ()
    server_us = round(lead_s * SECOND_US)
    reply = Reply(status, server_us, seen, None, outcomes, message)
    return Answer(V4, Datagram(b"", b"", 0, declared), reply, 0)


def address(
    result: Answer | Silence | None = None,
    *ports: PortFound,
    target: Target = V4,
    own: Address | None = OWN,
    lost: int = 0,
    seen: tuple[Address, ...] = (),
    closed: bool = False,
    unopened: Reach | None = None,
) -> AddressFound:
    """An address where of eight probes so many were lost, and others came from elsewhere."""
    probes: list[Answer | Silence] = [answer(seen=each) for each in seen]
    probes += [Silence(target, 1)] * lost
    found = answer() if result is None else result
    if isinstance(found, Answer):
        found = replace(found, target=target)
    return AddressFound(target, own, "", found, probes, list(ports), closed, unopened)


def open_port(access: Access = SSH) -> PortFound:
    return PortFound(access, Reach.OPEN, took_ms=1.0)


def port(reach: Reach, error: str = "") -> PortFound:
    return PortFound(SSH, reach, error)


def examined(*addresses: AddressFound, accesses: tuple[Access, ...] = (SSH,)) -> Examination:
    return Examination("db1", Wish(accesses), key_id="mykey", addresses=list(addresses))


def silent(error: str = "") -> Silence:
    return Silence(V4, 4, error)


REJECTED = "connection refused"

RULES: dict[str, tuple[Examination, Diagnosis, int, str]] = {
    "all is well": (
        examined(address(None, open_port())),
        Diagnosis.FINE,
        0,
        "everything works",
    ),
    "udp cannot be tried": (
        examined(address(answer(access=VOICE), PortFound(VOICE, Reach.UNASKED)), accesses=(VOICE,)),
        Diagnosis.FINE,
        0,
        "everything works",
    ),
    "one family is dead": (
        examined(address(None, open_port()), address(silent(), target=V6)),
        Diagnosis.PARTLY,
        0,
        "it works by 10.0.0.5, but not by fd00::5; -4 spares you the wait for it",
    ),
    "loss": (
        examined(address(None, open_port(), lost=3, seen=(OWN,) * 5)),
        Diagnosis.LOSS,
        0,
        "of 8 knocks or their replies 3 were lost on the way",
    ),
    "a clock that drifts": (
        examined(address(answer(lead_s=-20), open_port())),
        Diagnosis.CLOCK_DRIFTS,
        0,
        "this machine's clock is 20 s ahead of the server's",
    ),
    "a nat that works is none of the doctor's business": (
        examined(address(answer(seen=OTHER), open_port())),
        Diagnosis.FINE,
        0,
        "everything works",
    ),
    "silence": (
        examined(address(silent(), port(Reach.SILENT))),
        Diagnosis.SILENT,
        3,
        "udp/62201 is blocked on the way",
    ),
    "rejected": (
        examined(address(silent(REJECTED), port(Reach.SILENT))),
        Diagnosis.REJECTED,
        3,
        "the network answers for the server (connection refused)",
    ),
    "no gate": (
        examined(address(silent(REJECTED), port(Reach.OPEN), unopened=Reach.REFUSED)),
        Diagnosis.NO_GATE,
        3,
        "tcp/22 of 10.0.0.5 answers without one: db1 leads to another machine",
    ),
    "no gate, no service": (
        examined(address(silent(), port(Reach.REFUSED), unopened=Reach.REFUSED)),
        Diagnosis.NO_GATE,
        3,
        "or no gate stands there; ask the operator whether 10.0.0.5 is its address, before you",
    ),
    "a hole of before": (
        examined(address(silent(), port(Reach.OPEN), unopened=Reach.SILENT)),
        Diagnosis.OPEN_ALREADY,
        3,
        "a hole of before is still open",
    ),
    "a clock that is days off": (
        replace(examined(address(silent(), port(Reach.OPEN))), lead_s=172_800.0),
        Diagnosis.CLOCK,
        3,
        "this machine's clock is 2 d behind the server's, so the server hears no knock",
    ),
    "a clock before a file": (
        replace(examined(address(silent(), port(Reach.SILENT))), newer=Path("/k"), clock_s=0.0),
        Diagnosis.CLOCK,
        3,
        "clock says 1970-01-01 00:00 UTC, before /k was written",
    ),
    "an answer to another time, and a clock that is right": (
        replace(examined(address(silent(), port(Reach.SILENT))), lead_s=0.4),
        Diagnosis.SILENT,
        3,
        "udp/62201 is blocked on the way",
    ),
    "replies get lost": (
        examined(address(silent(), port(Reach.OPEN), closed=True)),
        Diagnosis.REPLIES_LOST,
        3,
        "drops what comes from udp/62201",
    ),
    "no route": (
        examined(address(silent(), own=None)),
        Diagnosis.ROUTE,
        4,
        "no way to 10.0.0.5",
    ),
    "clock": (
        examined(address(answer(status=Status.CLOCK, lead_s=120))),
        Diagnosis.CLOCK,
        1,
        "clock is 120 s behind the server's: set this machine's clock right",
    ),
    "unavailable": (
        examined(address(answer(status=Status.UNAVAILABLE))),
        Diagnosis.UNAVAILABLE,
        1,
        "the gate is unavailable",
    ),
    "pending": (
        examined(address(answer(status=Status.PENDING, message="ask Ann"))),
        Diagnosis.REFUSED,
        1,
        "the server refuses (ask Ann)",
    ),
    "no role": (
        examined(address(answer(Code.NO_ROLE))),
        Diagnosis.REFUSED,
        1,
        "no role of yours allows tcp/22: ask the operator for one, key mykey",
    ),
    "no role, in the server's words": (
        examined(address(answer(Code.NO_ROLE, message="ask #db"))),
        Diagnosis.REFUSED,
        1,
        "(it says: ask #db)",
    ),
    "hour": (
        examined(address(answer(Code.NOT_NOW, message="opens Mo 08:00"))),
        Diagnosis.REFUSED,
        1,
        "at this hour: try again when it does (it says: opens Mo 08:00)",
    ),
    "source": (
        examined(address(answer(Code.NOT_FROM_HERE, seen=OTHER))),
        Diagnosis.REFUSED,
        1,
        "does not allow tcp/22 from 203.0.113.9",
    ),
    "declare": (
        examined(address(answer(Code.DECLARE_SOURCE, seen=OTHER))),
        Diagnosis.REFUSED,
        1,
        "if 203.0.113.9, which the server saw, is an address of yours alone, knock with --source",
    ),
    "service down": (
        examined(address(None, port(Reach.REFUSED))),
        Diagnosis.NO_SERVICE,
        1,
        "nothing listens on tcp/22",
    ),
    "blocked": (
        examined(address(None, port(Reach.SILENT))),
        Diagnosis.PORT_BLOCKED,
        1,
        "a firewall between here and 10.0.0.5 drops it, or the service is down; ask",
    ),
    "blocked, behind a nat": (
        examined(address(answer(seen=OTHER), port(Reach.SILENT))),
        Diagnosis.PORT_BLOCKED,
        1,
        "should your NAT use another address for connections, give it by --source",
    ),
    "blocked, and loss": (
        examined(address(None, port(Reach.SILENT), lost=4, seen=(OWN,) * 4)),
        Diagnosis.PORT_BLOCKED,
        1,
        "(of 8 knocks 4 were lost, too)",
    ),
    "blocked by a rejection": (
        examined(address(None, port(Reach.ERROR, "no route to host"))),
        Diagnosis.PORT_BLOCKED,
        1,
        "the network says: no route to host",
    ),
    "misdeclared": (
        examined(address(answer(seen=OTHER, declared=OWN), port(Reach.SILENT))),
        Diagnosis.MISDECLARED,
        1,
        "opened for 192.168.1.7, which the knock declared, but the server saw 203.0.113.9: knock "
        "with --source none",
    ),
    "carrier-grade": (
        examined(address(answer(seen=OTHER), port(Reach.SILENT), own=CARRIER)),
        Diagnosis.CARRIER_NAT,
        1,
        "opened for 203.0.113.9, but behind a NAT of many addresses",
    ),
    "several addresses seen": (
        examined(
            address(answer(seen=OTHER), port(Reach.SILENT), seen=(ip_address("203.0.113.8"),))
        ),
        Diagnosis.CARRIER_NAT,
        1,
        "the server saw 203.0.113.9 and 203.0.113.8",
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_advice(rule: str) -> None:
    found, diagnosis, code, said = RULES[rule]
    advice = advise(found)
    assert (advice.diagnosis, int(advice.exit_code)) == (diagnosis, code), advice
    assert said in advice.sentence


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.GRANTED])
def test_every_refusal_has_its_own_advice(code: Code) -> None:
    advice = advise(examined(address(answer(code))))
    assert advice.diagnosis in (Diagnosis.REFUSED, Diagnosis.UNAVAILABLE)
    others = [advise(examined(address(answer(c)))).sentence for c in Code if c is not code]
    assert advice.sentence not in others


def test_what_ended_early_is_the_advice() -> None:
    for step, diagnosis in (("config", "config"), ("key", "key"), ("name", "name")):
        trouble = Trouble("it is broken", "mend it", exit_code=ExitCode.USAGE)
        found = Examination("db1", Wish(()), ended_at=step, trouble=trouble)
        assert advise(found) == Advice(
            Diagnosis(diagnosis), "it is broken; mend it", ExitCode.USAGE
        )


codes = st.sampled_from(list(Code))
reaches = st.sampled_from(list(Reach))
owns = st.sampled_from([OWN, OTHER, CARRIER, None])


@given(
    st.lists(
        st.tuples(codes, st.sampled_from(list(Status)), reaches, owns, owns, st.booleans()),
        min_size=1,
        max_size=2,
    )
)
def test_there_is_always_one_sentence(entries: list[tuple[object, ...]]) -> None:
    """Whatever is found: one line, no full stop, and 0 only where something works."""
    addresses = []
    for code, status, reach, own, declared, heard in entries:
        result = answer(code, status=status, seen=OTHER, declared=declared) if heard else silent()
        addresses.append(address(result, port(reach), own=own))
    found = examined(*addresses)
    advice = advise(found)
    assert advice.sentence
    assert "\n" not in advice.sentence
    assert not advice.sentence.endswith(".")
    works = any(
        a.granted(SSH) and a.ports[0].reach in (Reach.OPEN, Reach.UNASKED) for a in addresses
    )
    assert (advice.exit_code is ExitCode.FINE) is works


# The whole of it


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def told(home: Home, *arguments: str) -> dict[str, object]:
    done = home.run("doctor", "db1", *arguments, "--json", "--timeout", "1")
    found = json.loads(done.stdout)
    assert done.returncode == found["exit_code"]
    assert done.stderr == ""
    return dict(found)


def marks(found: dict[str, object]) -> dict[str, str]:
    return {check["check"]: check["mark"] for check in found["checks"]}


@pytest.fixture
def listening() -> str:
    with socket.create_server(("127.0.0.1", 0), backlog=8) as listener:
        yield f"tcp/{listener.getsockname()[1]}"


def test_all_is_well(home: Home, listening: str) -> None:
    with configured(home) as server:
        found = told(home, listening)
    assert found["diagnosis"] == "fine"
    assert set(marks(found).values()) == {"ok"}
    knocks = [h.knock.request for h in server.heard if isinstance(h.knock.request, Knock)]
    closes = [h.knock.request for h in server.heard if isinstance(h.knock.request, Close)]
    assert [str(a) for k in knocks for a in k.accesses] == [listening]
    assert [[str(a) for a in c.accesses] for c in closes] == [["tcp/9"]] * 8


def test_lost_probes_are_counted(home: Home, listening: str) -> None:
    def hears_half(heard: Heard) -> list[object]:
        return [heard.reply()] if heard.nth % 2 else []

    with configured(home, hears_half):
        found = told(home, listening)
    assert found["diagnosis"] == "loss"
    assert found["addresses"][0]["probes"] == {"sent": 8, "answered": 4}
    assert marks(found)["reply"] == "odd"


def test_a_clock_that_is_off(home: Home) -> None:
    with configured(home, says(Status.CLOCK, lead_s=-120)):
        found = told(home, "tcp/22")
    assert found["diagnosis"] == "clock"
    assert marks(found) == {
        "config": "ok",
        "key": "ok",
        "name": "ok",
        "route": "ok",
        "reply": "ok",
        "clock": "bad",
        "source": "ok",
        "policy": "-",
    }


def test_silence(home: Home, listening: str) -> None:
    with configured(home, says_nothing):
        assert told(home, "tcp/1")["diagnosis"] == "no gate"
        assert told(home, listening)["diagnosis"] == "no gate"


def test_an_address_that_a_reply_names_is_never_signed(home: Home) -> None:
    def elsewhere(heard: Heard) -> list[object]:
        reply = heard.reply(Status.REFUSED, Code.DECLARE_SOURCE)
        return [dataclasses.replace(reply, source=OTHER)]

    with configured(home, elsewhere, 'source = "none"') as server:
        found = told(home, "tcp/22")
    assert f"knock with --source {OTHER}" in found["advice"]
    assert [h.knock.request.source for h in server.heard] == [None] * len(server.heard)


def test_what_a_person_reads_cannot_steer_the_terminal(home: Home) -> None:
    with configured(home, says(Status.PENDING, message="\x1b[2Jhello")):
        done = home.run("doctor", "db1", "tcp/22", "--timeout", "1")
    assert "\x1b" not in done.stdout
    assert r"\x1b[2Jhello" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("advice: the server refuses (")


def test_the_key_needs_a_passphrase_and_nobody_is_there(home: Home) -> None:
    with configured(home) as server:
        identity.save(server.client, home.key, "secret", overwrite=True)
        found = told(home, "tcp/22")
    assert found["diagnosis"] == "key"
    assert "needs its passphrase and there is nobody to ask" in found["advice"]


def test_without_an_access(home: Home) -> None:
    with configured(home, grants):
        found = told(home)
    assert (found["diagnosis"], found["exit_code"]) == ("config", 2)
    assert "say which access, like: spa-client doctor db1 tcp/22" in found["advice"]


def test_what_the_policy_refuses_in_part(home: Home, listening: str) -> None:
    def one(heard: Heard) -> list[object]:
        reply = heard.reply()
        if isinstance(heard.knock.request, Close):
            return [reply]
        first, second = reply.outcomes
        return [heard.reply(outcomes=(first, Outcome(second.access, Code.NO_ROLE)))]

    with configured(home, one):
        found = told(home, listening, "tcp/22")
    assert found["diagnosis"] == "refused"
    assert "no role of yours allows tcp/22:" in found["advice"]


def test_refused(home: Home) -> None:
    with configured(home, refuses(Code.NOT_NOW)):
        assert told(home, "tcp/22")["diagnosis"] == "refused"

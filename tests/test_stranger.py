"""docs/protocol.md suffices to write a client, and says what is so.

The client is tests/stranger.py, written from that page alone. What it composes must open at our
side, and what we answer must open at its side.
"""

import re
import sys
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from spa_protocol import keytext, layout, reply, seal
from spa_protocol.access import Access
from spa_protocol.knock import (
    AuthenticKnock,
    Close,
    Join,
    Knock,
    OpenedKnock,
    open_request,
    verify_request,
)
from spa_protocol.layout import LABEL, NONCE_SIZE, PLAIN_SIZE, epoch_of
from spa_protocol.publickey import PublicKey, Sender
from spa_protocol.reason import Code, Reason, Status
from spa_protocol.reply import Outcome, Reply
from spa_protocol.sshsig import KeyType, signed_message
from tests import stranger
from tests.stranger import Client
from tests.test_vectors import RIGHT, VECTORS, Vector, named, octets, request_of

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = (ROOT / "docs" / "protocol.md").read_text()
_PARTS: Final = re.split(r"^##+ (\d+(?:\.\d+)?) ", PAGE, flags=re.MULTILINE)
SECTIONS: Final = dict(zip(_PARTS[1::2], _PARTS[2::2], strict=True))
"""The text of each section by its number, without that of its subsections."""
NOW_US: Final = 1_795_500_000_000_000
NONCE: Final = bytes(range(NONCE_SIZE))
ENDPOINT: Final = keytext.Endpoint("db1.example")

quick = settings(deadline=None)
thorough = settings(deadline=None, max_examples=400)


@dataclass(frozen=True)
class Meeting:
    """A stranger, and the same client as our server knows it."""

    client: Client
    sender: Sender

    @classmethod
    def of(cls, client: Client, server_secret: bytes, *, is_invite: bool = False) -> "Meeting":
        public = PublicKey(KeyType.ED25519, client.signing_public, client.agreement_public)
        return cls(client, Sender.known_to(server_secret, public, is_invite=is_invite))

    def heard(self, datagram: bytes) -> AuthenticKnock:
        """What we make of a datagram of the stranger's, found by its tag."""
        tags = {self.sender.pair.tag_at(epoch_of(NOW_US)): self.sender}
        opened = open_request(datagram, tags.get)
        assert isinstance(opened, OpenedKnock)
        knock = verify_request(opened)
        assert isinstance(knock, AuthenticKnock)
        return knock

    def answered(self, ours: Reply, request_nonce: bytes = NONCE) -> stranger.Reply | None:
        """What the stranger makes of our reply."""
        datagram = reply.seal_reply(
            ours, pair=self.sender.pair, request_nonce=request_nonce, nonce=b"r" * NONCE_SIZE
        )
        return self.client.open_reply(datagram, request_nonce)


SERVER_SECRET: Final = b"a server that nobody has met yet"
SERVER: Final = seal.agreement_public(SERVER_SECRET)
STRANGER: Final = Client(b"s" * 32, b"a" * 32, SERVER)
MET: Final = Meeting.of(STRANGER, SERVER_SECRET)


def test_the_stranger_knows_nothing_of_this_project() -> None:
    source = Path(stranger.__file__).read_text()
    modules = set(re.findall(r"^\s*(?:import|from) (\w+)", source, re.MULTILINE))
    assert modules - sys.stdlib_module_names == {"nacl"}


# With the vectors' inputs


def client_of(vector: Vector) -> Client:
    """The stranger in the place of whoever made a vector's datagram."""
    server = seal.agreement_public(octets(vector, "server_secret"))
    if "token" in vector:
        return Client.of_invite(octets(vector, "token"), server)
    return Client(octets(vector, "signing_seed"), octets(vector, "agreement_secret"), server)


def body_in_words(vector: Vector) -> bytes:
    """Bytes 0 to 87 of a vector's body, from what it says in words."""
    if "token" in vector:
        server = seal.agreement_public(octets(vector, "server_secret"))
        new = Client(octets(vector, "signing_seed"), octets(vector, "agreement_secret"), server)
        return stranger.join(NOW_US, new)
    fields: dict[str, Any] = vector["fields"]
    ends = {"source": fields["source"], "target": fields["target"]}
    if fields["kind"] == "close":
        return stranger.close(
            fields["sent_at_us"], fields["accesses"], reply_wanted=fields["reply"], **ends
        )
    return stranger.knock(
        fields["sent_at_us"],
        fields["accesses"],
        lifetime_s=fields["lifetime_s"],
        once=fields["once"],
        reply_wanted=fields["reply"],
        **ends,
    )


@pytest.mark.parametrize(
    "vector", [vector for vector in RIGHT if "fields" in vector or "token" in vector], ids=named
)
def test_the_stranger_makes_the_same_body(vector: Vector) -> None:
    assert body_in_words(vector) + bytes(40) == octets(vector, "body")


@pytest.mark.parametrize("vector", RIGHT, ids=named)
def test_the_stranger_makes_the_same_datagram(vector: Vector) -> None:
    signed, nonce = octets(vector, "body")[:88], octets(vector, "nonce")
    assert client_of(vector).request(signed, nonce) == octets(vector, "datagram")


@pytest.mark.parametrize("vector", [v for v in VECTORS["spares"] if "body" in v], ids=named)
def test_the_stranger_makes_the_same_datagram_under_a_spare_tag(vector: Vector) -> None:
    signed, nonce = octets(vector, "body")[:88], octets(vector, "nonce")
    made = client_of(vector).request(signed, nonce, vector["number"])
    assert made == octets(vector, "datagram")


def test_the_stranger_sends_again_under_both_tags() -> None:
    first, *further = stranger.tag_numbers(20)
    assert first == (0,)
    assert {usual for usual, _ in further} == {0}
    assert len({spare for _, spare in further} & set(range(1, 64))) == 19


@pytest.mark.parametrize("vector", VECTORS["replies"], ids=named)
def test_the_stranger_opens_the_replies(vector: Vector) -> None:
    opened = client_of(vector).open_reply(
        octets(vector, "datagram"), octets(vector, "request_nonce")
    )
    tcp, udp = 6, 17
    expected = {
        "granted": (0, "203.0.113.9", "198.51.100.4", [((tcp, 22, 22), 30, 0)], ""),
        "refused": (
            1,
            "2001:db8::7",
            "2001:db8:1::1",
            [((tcp, 22, 22), 0, 3), ((udp, 53, 53), 0, 1)],
            "opens Mo 08:00 Europe/Berlin",
        ),
    }
    ssh, seen = (tcp, 22, 22), ("203.0.113.9", "198.51.100.4")
    of_one_knock = {
        "granted-to-target-declared": (0, *seen, [(ssh, 30, 0)], ""),
        "refused-to-target-declared": (1, *seen, [(ssh, 0, 3)], "opens Mo 08:00 Europe/Berlin"),
        "clock-to-target-declared": (2, *seen, [], "your clock is 94 s behind the server's"),
        "closed-to-a-close": (6, *seen, [(ssh, 0, 0)], ""),
        "nothing-was-open-to-a-close": (6, *seen, [], "nothing was open"),
    }
    status, source, target, outcomes, message = (expected | of_one_knock)[vector["name"]]
    at_us = 1_795_500_094_000_000 if status == 2 else 1_795_500_000_000_005
    assert opened == stranger.Reply(status, at_us, source, target, outcomes, message)
    if vector["name"] in of_one_knock:
        assert stranger.fits(3 if status == 6 else 1, [ssh], opened)


# Face to face


def test_its_knock_opens_at_our_side() -> None:
    signed = stranger.knock(
        NOW_US,
        ["tcp/22", "udp/60000-60010"],
        source="192.0.2.7",
        lifetime_s=900,
        once=True,
    )
    knock = MET.heard(STRANGER.request(signed, NONCE))
    accesses = (Access.parse("tcp/22"), Access.parse("udp/60000-60010"))
    assert knock.request == Knock(
        NOW_US, accesses, ip_address("192.0.2.7"), None, 900, once=True, reply_wanted=True
    )
    assert (knock.nonce, knock.touched) == (NONCE, False)


def test_its_close_opens_at_our_side() -> None:
    signed = stranger.close(NOW_US, ["sctp/9"], target="2001:db8::1", reply_wanted=False)
    expected = Close(
        NOW_US, (Access.parse("sctp/9"),), None, ip_address("2001:db8::1"), reply_wanted=False
    )
    assert MET.heard(STRANGER.request(signed, NONCE)).request == expected


def test_it_joins_with_an_invite_of_ours() -> None:
    token = bytes(range(32))
    line = keytext.Invite(token, SERVER, ENDPOINT).reveal()
    read_token, server, where = stranger.read_invite(line)
    assert (read_token, server, where) == (token, SERVER, "db1.example:62201")
    invite = Client.of_invite(read_token, server)
    door = Meeting.of(invite, SERVER_SECRET, is_invite=True)
    knock = door.heard(invite.request(stranger.join(NOW_US, STRANGER), NONCE))
    assert knock.request == Join(NOW_US, MET.sender.public)
    told = door.answered(Reply(Status.JOINED, NOW_US, None, None, (), "welcome"))
    assert told is not None
    assert (told.status, told.message) == (3, "welcome")


def test_its_key_line_can_be_enrolled() -> None:
    public, comment = keytext.parse_key(STRANGER.key_line("a stranger"))
    assert (public, comment) == (MET.sender.public, "a stranger")
    assert public.key_id == STRANGER.key_id()


def test_it_reads_our_server_line() -> None:
    line = str(keytext.ServerLine(SERVER, ENDPOINT))
    assert stranger.read_server_line(line) == (SERVER, "db1.example:62201")
    with pytest.raises(stranger.Refused):
        stranger.read_server_line(line.replace("db1", "db2"))


ranges = st.tuples(st.integers(1, 65535), st.integers(0, 31)).map(
    lambda pair: f"{pair[0]}-{min(sum(pair), 65535)}"
)
accesses = st.lists(
    st.builds("{}/{}".format, st.sampled_from(("tcp", "udp", "sctp")), ranges),
    min_size=1,
    max_size=8,
    unique_by=lambda text: text.partition("/")[0],
)


@quick
@given(
    accesses,
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**32 - 1),
    st.none() | st.sampled_from(("192.0.2.7", "10.0.0.1")),
    st.none() | st.just("198.51.100.4"),
)
def test_whatever_it_asks_for_is_heard_as_it_was_meant(
    texts: list[str],
    once: bool,
    reply_wanted: bool,
    lifetime_s: int,
    source: str | None,
    target: str | None,
) -> None:
    signed = stranger.knock(
        NOW_US,
        texts,
        source=source,
        target=target,
        lifetime_s=lifetime_s,
        once=once,
        reply_wanted=reply_wanted,
    )
    expected = Knock(
        NOW_US,
        tuple(map(Access.parse, texts)),
        ip_address(source) if source else None,
        ip_address(target) if target else None,
        lifetime_s,
        once,
        reply_wanted,
    )
    assert MET.heard(STRANGER.request(signed, NONCE)).request == expected


GRANTED: Final = Reply(
    Status.GRANTED,
    NOW_US,
    ip_address("192.0.2.7"),
    ip_address("198.51.100.4"),
    (
        Outcome(Access.parse("tcp/22"), Code.GRANTED, 30),
        Outcome(Access.parse("udp/1-9"), Code.TOUCH),
    ),
    "grüße",
)


def as_the_stranger_tells(ours: Reply) -> stranger.Reply:
    return stranger.Reply(
        int(ours.status),
        ours.server_time_us,
        str(ours.source) if ours.source else None,
        str(ours.target) if ours.target else None,
        [
            ((int(o.access.protocol), o.access.first, o.access.last), o.lifetime_s, int(o.code))
            for o in ours.outcomes
        ],
        ours.message,
    )


def test_our_reply_opens_at_its_side() -> None:
    assert MET.answered(GRANTED) == as_the_stranger_tells(GRANTED)
    datagram = reply.seal_reply(
        GRANTED, pair=MET.sender.pair, request_nonce=NONCE, nonce=b"r" * NONCE_SIZE
    )
    assert STRANGER.open_reply(datagram, bytes(NONCE_SIZE)) is None
    assert STRANGER.open_reply(datagram[:-1], NONCE) is None
    for bit in range(0, 8 * len(datagram), 7):
        changed = bytearray(datagram)
        changed[bit // 8] ^= 1 << bit % 8
        assert STRANGER.open_reply(bytes(changed), NONCE) is None


def test_the_longest_and_the_emptiest_reply_open_at_its_side() -> None:
    outcomes = tuple(Outcome(Access.parse(f"tcp/{port}"), Code.GRANTED, 1) for port in range(1, 9))
    for ours in (
        Reply(Status.GRANTED, 2**64 - 1, None, None, outcomes, "m" * 67),
        Reply(Status.PENDING, 0, None, None),
    ):
        assert MET.answered(ours) == as_the_stranger_tells(ours)


edges = st.tuples(st.sampled_from((0, 1, 2, 3, 12, 28, 53, 64, 124)), st.integers(0, 12))
anywhere = st.tuples(st.integers(0, PLAIN_SIZE - 1), st.integers(0, 255))


@thorough
@given(st.lists(edges | anywhere, max_size=3), st.sampled_from((0, 12, 28)), st.integers(0, 16))
def test_both_refuse_the_same_replies(
    changes: list[tuple[int, int]], cleared: int, size: int
) -> None:
    """Two readers of section 8.1 that share no code, and a proper box around anything."""
    plain = bytearray(reply.encode(GRANTED))
    if cleared:
        plain[cleared : cleared + size] = bytes(size)
    for at, value in changes:
        plain[at] = value
    address = reply.address_of(MET.sender.pair, NONCE)
    box = seal.seal(
        bytes(plain),
        associated=LABEL + address + NONCE,
        nonce=NONCE,
        key=MET.sender.pair.reply,
    )
    ours = reply.open_reply(address + NONCE + box, pair=MET.sender.pair, request_nonce=NONCE)
    theirs = STRANGER.open_reply(address + NONCE + box, NONCE)
    event("refused" if ours is None else "read")
    assert theirs == (as_the_stranger_tells(ours) if ours else None)


# What the page says is so


def example() -> dict[str, bytes]:
    """The labelled bytes of section 13."""
    found: dict[str, str] = {}
    label = ""
    for line in SECTIONS["13"].splitlines():
        match = re.fullmatch(r"    (.{18})([0-9a-f]+)", line)
        if match:
            label = match[1].strip() or label
            found[label] = found.get(label, "") + match[2]
    return {label: bytes.fromhex(text) for label, text in found.items()}


def test_the_worked_example_is_right() -> None:
    vector, answer = VECTORS["knocks"][0], VECTORS["replies"][0]
    client, nonce = client_of(vector), octets(vector, "nonce")
    signed = stranger.knock(NOW_US, ["tcp/22"])
    message = client.message(signed, nonce)
    epoch = epoch_of(NOW_US)
    assert example() == {
        "server secret": octets(vector, "server_secret"),
        "server public": client.server,
        "signing seed": client.seed,
        "signing public": client.signing_public,
        "agreement secret": client.agreement_secret,
        "agreement public": client.agreement_public,
        "dh": client.dh,
        "K.tag": client.derived(b"tag"),
        "K.knock": client.derived(b"knock"),
        "K.reply": client.derived(b"reply"),
        "u64(epoch)": epoch.to_bytes(8),
        "tag": client.tag(NOW_US),
        "body": octets(vector, "body"),
        "nonce": nonce,
        "message": message,
        "SHA-512(message)": signed_message(message)[38:],
        "structure": signed_message(message),
        "signature": client.signature(signed, nonce),
        "associated data": LABEL + client.tag(NOW_US),
        "sealed": octets(vector, "datagram")[32:],
        "datagram": octets(vector, "datagram"),
        "address": client.reply_address(nonce),
        "reply nonce": octets(answer, "nonce"),
        "reply plaintext": octets(answer, "body"),
        "reply datagram": octets(answer, "datagram"),
    }
    assert f"the tag of epoch {epoch} " in SECTIONS["13"]
    assert request_of(vector["name"]) == Knock(NOW_US, (Access.parse("tcp/22"),))


def test_the_lines_of_the_worked_example_are_right() -> None:
    client = client_of(VECTORS["knocks"][0])
    token = octets(VECTORS["joins"][0], "token")
    lines = [line.strip() for line in SECTIONS["13"].splitlines() if line.startswith("    ")]
    assert str(keytext.ServerLine(client.server, ENDPOINT)) in lines
    assert keytext.Invite(token, client.server, ENDPOINT).reveal() in lines
    assert client.key_line("alice@example") in lines
    assert client.key_id() in lines


def rows(text: str, *columns: str) -> list[list[str]]:
    """The cells of every table in a text that begins with these columns."""
    found, inside = [], False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line[:1] == "|" else []
        if tuple(cells[: len(columns)]) == columns:
            inside = True
        elif not cells:
            inside = False
        elif inside and set(cells[0]) != {"-"}:
            found.append(cells)
    return found


BYTE_TABLES: Final = {
    "2.2": (64,),
    "3": (240, 192),
    "4.1": (128,),
    "4.2": (5,),
    "4.4": (128,),
    "5.3": (102,),
    "8.1": (192, 10),
}


def byte_tables(text: str) -> list[list[tuple[int, int]]]:
    """Offset and size of every field, table by table."""
    starts = [match.start() for match in re.finditer(r"^\| offset ", text, re.MULTILINE)]
    return [
        [(int(offset), int(size)) for offset, size, *_ in rows(text[start:end], "offset", "size")]
        for start, end in pairwise([*starts, len(text)])
    ]


@pytest.mark.parametrize("number", BYTE_TABLES)
def test_the_byte_tables_leave_no_gap(number: str) -> None:
    tables = byte_tables(SECTIONS[number])
    for table in tables:
        ends = [offset + size for offset, size in table]
        assert [offset for offset, _ in table] == [0, *ends[:-1]]
    assert tuple(sum(size for _, size in table) for table in tables) == BYTE_TABLES[number]


def test_the_manual_page_has_the_same_tables() -> None:
    manual = (ROOT / "man" / "spa-protocol.7").read_text()
    tables = [
        [(int(offset), int(size)) for offset, size in re.findall(r"^(\d+)\t(\d+)\t", part, re.M)]
        for part in manual.split(".TS")
        if "offset\tsize" in part
    ]
    assert len(tables) == 6
    for table in tables:
        assert table in byte_tables(PAGE)


def test_every_byte_table_is_checked() -> None:
    with_tables = {n for n, text in SECTIONS.items() if "| offset | size |" in text}
    assert with_tables == set(BYTE_TABLES)


def test_the_tables_of_names_are_complete() -> None:
    statuses = {int(number): name for number, name, *_ in rows(SECTIONS["8.2"], "status")}
    assert statuses == {int(status): status.name.lower().replace("_", " ") for status in Status}
    assert [int(number) for number, *_ in rows(SECTIONS["8.3"], "code")] == list(map(int, Code))
    classes = [name.strip("`") for name, *_ in rows(SECTIONS["6.2"], "class")]
    assert set(classes) == {str(reason) for reason in Reason}


def test_the_constants_are_the_codes() -> None:
    stated = {name: value for name, value, *_ in rows(SECTIONS["2.3"], "constant")}
    for name, value in {
        "version": str(layout.VERSION),
        "label": f'"{LABEL.decode()}"',
        "length of a datagram": f"{layout.DATAGRAM_SIZE} bytes",
        "usual UDP port": str(layout.DEFAULT_PORT),
        "tag epoch": f"{layout.EPOCH_S} s",
        "accesses in a request": f"1 to {layout.MAX_ACCESSES}",
        "ports in a request": f"1 to {layout.MAX_PORTS},",
        "message in a reply": f"at most {layout.MAX_MESSAGE} bytes",
        "freshness": f"{layout.DEFAULT_FRESHNESS_S} s;",
    }.items():
        assert stated[name].startswith(value)


# References


def test_the_headings_are_in_order() -> None:
    numbers = [tuple(map(int, number.split("."))) for number in _PARTS[1::2]]
    assert numbers == sorted(set(numbers))


def test_the_page_refers_to_sections_that_it_has() -> None:
    text = " ".join(PAGE.split())
    own = re.sub(r"(?:RFC \d+|BLAKE2 paper|PROTOCOL\.\w+),? section [\d.]+", "", text)
    said = re.findall(r"\b[Ss]ections? (\d+(?:\.\d+)?)", own)
    in_brackets = re.findall(r"\((\d{1,2}(?:\.\d)?)(?:, (?:rule|type) \d)?\)", own)
    assert len(said + in_brackets) > 40
    assert set(said + in_brackets) <= set(SECTIONS)


CITED: Final = re.compile(
    r"docs/protocol\.md,? sections? "
    r"(\d+(?:\.\d+)?(?:(?: \([a-z]+\))?(?:,| and| to) \d+(?:\.\d+)?)*)"
)
SOURCES: Final = ("spa_protocol", "keys", "spa_client", "spa_server", "tests", "integration", "man")


def cited(text: str) -> list[str]:
    """The sections of docs/protocol.md that a text cites, also across its line ends."""
    plain = re.sub(r"\s*\n[ #]*", " ", text)
    return [n for match in CITED.finditer(plain) for n in re.findall(r"\d+(?:\.\d+)?", match[1])]


def test_citations_are_found_as_they_are_written() -> None:
    assert cited("docs/protocol.md sections 6 (failures) and 8 (replies).") == ["6", "8"]
    assert cited("# see docs/protocol.md\n    # section 5.3.") == ["5.3"]
    assert cited("docs/protocol.md sections 4 to 6, 8") == ["4", "6", "8"]


def test_every_section_that_the_source_cites_exists() -> None:
    files = [
        path
        for folder in SOURCES
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".nft", ".md", ".1", ".5", ".7", ".8"}
    ]
    found = {(path.name, number) for path in files for number in cited(path.read_text())}
    assert len(found) > 20
    assert {(name, number) for name, number in found if number not in SECTIONS} == set()

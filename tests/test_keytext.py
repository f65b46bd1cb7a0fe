"""Keys and invites as lines of text: docs/protocol.md section 9."""

import base64
import hashlib
from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spa_protocol import seal
from spa_protocol.keytext import (
    BadKeyText,
    Endpoint,
    Invite,
    ServerLine,
    format_key,
    parse_key,
)
from spa_protocol.publickey import PublicKey
from spa_protocol.sshsig import KeyType

SIGNING: Final = seal.signing_public(bytes(range(32)))
AGREEMENT: Final = seal.agreement_public(bytes(range(1, 33)))
PUBLIC: Final = PublicKey(KeyType.ED25519, SIGNING, AGREEMENT)
SERVER: Final = seal.agreement_public(bytes(range(2, 34)))
TOKEN: Final = bytes(range(3, 35))
DB1: Final = Endpoint("db1.internal", 62201)

KEY_LINE: Final = format_key(PUBLIC, "alice@laptop")
SERVER_LINE: Final = str(ServerLine(SERVER, DB1))
INVITE: Final = Invite(TOKEN, SERVER, DB1).reveal()

SMALL_ORDER_AGREEMENT: Final = [
    bytes(32),
    b"\1" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
]
"""The points of order 1, 2, 4 and 8 in every encoding: cr.yp.to/ecdh.html."""
BAD_SIGNING: Final = [
    bytes(32),
    b"\1" + bytes(31),
    (2**255 - 20).to_bytes(32, "little"),
    b"\2" + bytes(31),
    b"\xff" * 32,
]
"""Of order 4, 1 and 2, off the curve, and not canonical."""

quick = settings(deadline=None)
names = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,20}", fullmatch=True)
endpoints = st.builds(
    Endpoint, names | st.ip_addresses().map(str), st.integers(min_value=1, max_value=65535)
)
keys = st.binary(min_size=32, max_size=32)


def packed(value: bytes, text: str = "") -> str:
    """Bytes with their checksum, as section 9.1 has it."""
    covered = value + text.encode()
    checksum = hashlib.blake2b(covered, digest_size=4, person=b"spa1 text").digest()
    return base64.b64encode(value + checksum).decode()


def for_url(text: str) -> str:
    return text.replace("+", "-").replace("/", "_")


# What is right


def test_the_lines_to_the_letter() -> None:
    assert f"spa-key {packed(bytes([1]) + SIGNING + AGREEMENT)} alice@laptop" == KEY_LINE
    assert f"spa-server {packed(SERVER, 'db1.internal:62201')} db1.internal:62201" == SERVER_LINE
    standard = packed(b"\1" + TOKEN + SERVER, "db1.internal:62201")
    assert f"spa://db1.internal:62201/{for_url(standard)}" == INVITE


@quick
@given(st.sampled_from(KeyType), keys, keys, st.text())
def test_key_lines_come_back(key_type: KeyType, seed: bytes, secret: bytes, comment: str) -> None:
    public = PublicKey(key_type, seal.signing_public(seed), seal.agreement_public(secret))
    line = format_key(public, comment)
    assert parse_key(line) == (public, " ".join(comment.split()))
    assert len(line.splitlines()) == 1 or not comment.isprintable()


@quick
@given(keys, endpoints)
def test_server_lines_come_back(public: bytes, endpoint: Endpoint) -> None:
    line = ServerLine(public, endpoint)
    assert ServerLine.parse(str(line)) == line


@quick
@given(keys, keys, endpoints)
def test_invites_come_back(token: bytes, server: bytes, endpoint: Endpoint) -> None:
    invite = Invite(token, server, endpoint)
    assert Invite.parse(invite.reveal()) == invite


def test_blanks_around_and_between_do_not_matter() -> None:
    word, rest, comment = KEY_LINE.split()
    assert parse_key(f"\t{word}  {rest}\t {comment} \n") == (PUBLIC, comment)
    word, rest, where = SERVER_LINE.split()
    assert ServerLine.parse(f" {word}\t{rest}  {where}\r\n") == ServerLine(SERVER, DB1)
    assert Invite.parse(f"  {INVITE}\n") == Invite(TOKEN, SERVER, DB1)


def test_a_keys_comment_is_anybodys_to_change() -> None:
    word, rest, _ = KEY_LINE.split()
    assert parse_key(f"{word} {rest}") == (PUBLIC, "")
    assert parse_key(f"{word} {rest} bob's  old one") == (PUBLIC, "bob's  old one")


def test_a_comment_cannot_begin_another_line() -> None:
    assert format_key(PUBLIC, f"alice\n{KEY_LINE}\r\n").count("\n") == 0


# What is torn, mistyped or another thing


def test_a_torn_server_line_is_refused_or_says_the_same() -> None:
    """The usual port may be left out; nothing else may."""
    for size in range(len(SERVER_LINE)):
        torn = SERVER_LINE[:size]
        if torn.endswith("db1.internal"):
            assert ServerLine.parse(torn) == ServerLine.parse(SERVER_LINE)
            continue
        with pytest.raises(BadKeyText):
            ServerLine.parse(torn)


def test_a_torn_invite_or_key_is_refused() -> None:
    for size in range(len(INVITE)):
        with pytest.raises(BadKeyText):
            Invite.parse(INVITE[:size])
    for size in range(len(KEY_LINE) - len(" alice@laptop")):
        with pytest.raises(BadKeyText):
            parse_key(KEY_LINE[:size])


def mistyped(line: str) -> list[str]:
    """The line with each of its characters changed, doubled, left out, or swapped with the next."""
    changes = []
    for at, character in enumerate(line):
        other = "B" if character == "A" else "A"
        before, after = line[:at], line[at + 1 :]
        changes += [before + other + after, before + character * 2 + after, before + after]
        changes.append(before + after[:1] + character + after[1:])
    return [change for change in changes if change != line]


def test_a_mistyped_line_is_refused() -> None:
    bare_key = KEY_LINE.removesuffix(" alice@laptop")
    doubled_blank = {line.replace(" ", "  ", 1) for line in (bare_key, SERVER_LINE)}
    doubled_blank.add("  ".join(SERVER_LINE.rsplit(" ", 1)))
    for wrong in mistyped(bare_key):
        if wrong not in doubled_blank:
            with pytest.raises(BadKeyText):
                parse_key(wrong)
    for wrong in mistyped(SERVER_LINE):
        if wrong not in doubled_blank:
            with pytest.raises(BadKeyText):
                ServerLine.parse(wrong)
    for wrong in mistyped(INVITE):
        with pytest.raises(BadKeyText):
            Invite.parse(wrong)


def test_one_thing_is_not_taken_for_another() -> None:
    lines = {parse_key: KEY_LINE, ServerLine.parse: SERVER_LINE, Invite.parse: INVITE}
    for parse in lines:
        for other, line in lines.items():
            if other is not parse:
                with pytest.raises(BadKeyText):
                    parse(line)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "spa-key",
        f"ssh-ed25519 {KEY_LINE.split()[1]}",
        f"spa-key {packed(PUBLIC.packed[:-1])}",
        f"spa-key {packed(PUBLIC.packed + b'0')}",
        f"spa-key {packed(b'')}",
        f"spa-key {packed(PUBLIC.packed, 'alice')}",
        f"spa-key {base64.b64encode(PUBLIC.packed).decode()}",
        f"spa-key {packed(PUBLIC.packed)[:-1]}é",
        f"spa-key {packed(PUBLIC.packed)}==",
        f"spa-key {packed(bytes([0]) + PUBLIC.packed[1:])}",
        f"spa-key {packed(bytes([3]) + PUBLIC.packed[1:])}",
        f"spa-server {packed(SERVER, 'db1:62201')}",
        f"spa-server {packed(SERVER, 'db1:62201')} db1:62201 more",
        f"spa-server {packed(SERVER, 'db1:62201')} db2:62201",
        f"spa-server {packed(SERVER, 'db1:62201')} db1:62202",
        f"spa-server {packed(SERVER, 'db1')} db1",
        f"spa-server {packed(SERVER + b'0', 'db1:62201')} db1:62201",
        f"spa://db1:62201/{for_url(packed(bytes([2]) + TOKEN + SERVER, 'db1:62201'))}",
        f"spa://db1:62201/{for_url(packed(bytes([1]) + TOKEN, 'db1:62201'))}",
        f"spa:///{for_url(packed(bytes([1]) + TOKEN + SERVER, 'db1:62201'))}",
        INVITE.removeprefix("spa://"),
        f"spa://db2:62201/{INVITE.rpartition('/')[2]}",
        INVITE.replace("spa://", "spa:"),
        INVITE.replace("spa://", "https://"),
        INVITE + "=",
    ],
)
def test_what_is_none_of_them_is_refused(wrong: str) -> None:
    for parse in (parse_key, ServerLine.parse, Invite.parse):
        with pytest.raises(BadKeyText):
            parse(wrong)


def test_an_invite_has_one_spelling() -> None:
    """The letters - and _ may not be written + and /, nor the other way round."""
    invite = Invite(b"\xfb\xff" * 16, b"\xff\xfb" * 16, DB1)
    start, _, value = invite.reveal().rpartition("/")
    assert {"-", "_"} <= set(value)
    with pytest.raises(BadKeyText):
        Invite.parse(f"{start}/{value.replace('-', '+')}")
    with pytest.raises(BadKeyText):
        Invite.parse(f"{start}/{value.replace('_', '/')}")


@quick
@given(st.text() | st.text().map("spa://{}".format) | st.text().map("spa-key {}".format))
def test_any_text_is_refused_in_one_way(text: str) -> None:
    for parse in (parse_key, ServerLine.parse, Invite.parse):
        with pytest.raises(BadKeyText):
            parse(text)


# Where to knock


@pytest.mark.parametrize(
    ("text", "host", "port", "written"),
    [
        ("db1", "db1", 62201, "db1:62201"),
        ("db1:1", "db1", 1, "db1:1"),
        ("192.0.2.1:65535", "192.0.2.1", 65535, "192.0.2.1:65535"),
        ("2001:db8::1", "2001:db8::1", 62201, "[2001:db8::1]:62201"),
        ("[2001:db8::1]", "2001:db8::1", 62201, "[2001:db8::1]:62201"),
        ("[2001:db8::1]:22", "2001:db8::1", 22, "[2001:db8::1]:22"),
        ("[fe80::1%eth0]:22", "fe80::1%eth0", 22, "[fe80::1%eth0]:22"),
        ("::", "::", 62201, "[::]:62201"),
        ("bücher.example", "bücher.example", 62201, "bücher.example:62201"),
    ],
)
def test_endpoint(text: str, host: str, port: int, written: str) -> None:
    assert Endpoint.parse(text) == Endpoint(host, port)
    assert str(Endpoint.parse(text)) == written
    assert Endpoint.parse(written) == Endpoint(host, port)


NOWHERE: Final = """
    :  :22  db1:  db1:0  db1:65536  db1:-1  db1:+1  db1:1_0  db1:٢  db1:22:22  [db1]:22
    [::1  ::1]  [::1]22  [::1]:  []:22  [[::1]]:22  2001:db8::1::2  [::1%a/b]  a/b  a@b  [db1:22
"""


@pytest.mark.parametrize(
    "text", ["", "a b", "a\x1bm", "a\0b", "\ud800", "db1:" + "1" * 5000, *NOWHERE.split()]
)
def test_what_names_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(BadKeyText):
        Endpoint.parse(text)


# Keys that must never be used


@pytest.mark.parametrize("agreement", SMALL_ORDER_AGREEMENT, ids=bytes.hex)
def test_an_agreement_key_of_small_order_is_refused(agreement: bytes) -> None:
    for written in (agreement, agreement[:-1] + bytes([agreement[-1] | 0x80])):
        with pytest.raises(BadKeyText, match="may not be used"):
            parse_key(format_key(PublicKey(KeyType.ED25519, SIGNING, written)))
        with pytest.raises(seal.WeakKey):
            seal.pair_keys(TOKEN, written, agreement=written, server=SERVER, signing=SIGNING)


@pytest.mark.parametrize("signing", BAD_SIGNING, ids=bytes.hex)
def test_a_weak_signing_key_is_refused(signing: bytes) -> None:
    with pytest.raises(BadKeyText, match="may not be used"):
        parse_key(format_key(PublicKey(KeyType.ED25519, signing, AGREEMENT)))


# A key's name


def test_the_key_id() -> None:
    packed_key = b"\1" + SIGNING + AGREEMENT
    digest = hashlib.blake2b(packed_key, digest_size=10, person=b"spa1 key id").digest()
    assert PUBLIC.packed == packed_key
    assert PUBLIC.key_id == base64.b32encode(digest).decode().lower()
    assert len(PUBLIC.key_id) == 16
    assert PublicKey(KeyType.SK_ED25519, SIGNING, AGREEMENT).key_id != PUBLIC.key_id


# Secrets stay where they are


def tells(text: str) -> bool:
    """Whether a text shows a part of the invite's secret, as text or as hex."""
    value = INVITE.rpartition("/")[2]
    pieces = [value[at : at + 8] for at in range(0, len(value) - 8, 4)]
    return any(piece in text for piece in pieces) or TOKEN.hex()[:16] in text


def test_an_invite_is_not_shown() -> None:
    invite = Invite.parse(INVITE)
    assert not tells(repr(invite))
    assert not tells(str(invite))
    assert not tells(f"{invite}")
    assert not tells(repr([invite]))
    assert tells(invite.reveal())


MISPLACED: Final = [
    INVITE[:-1],
    INVITE + "A",
    INVITE.replace("/", ""),
    INVITE.replace("62201/", "62201 "),
    INVITE.replace("62201/", "62201?"),
    INVITE.replace("62201/", "62201:"),
    INVITE.removeprefix("spa://"),
    INVITE.removeprefix("spa:"),
    f"{INVITE}/more",
    f"{INVITE} more/and more",
    f"invite: {INVITE}",
    f"spa-key {INVITE}",
    f"spa-server {INVITE} db1",
    f"spa-server {packed(SERVER)} {INVITE}",
    f"spa-server {packed(SERVER)} '{INVITE}'",
]


def test_no_error_shows_an_invites_secret() -> None:
    for spoilt in MISPLACED + mistyped(INVITE):
        for parse in (parse_key, ServerLine.parse, Invite.parse, Endpoint.parse):
            error = complaint(parse, spoilt)
            if error is not None:
                assert not tells(str(error))
                assert error.__suppress_context__ or error.__context__ is None


def complaint(parse: Callable[[str], object], text: str) -> BadKeyText | None:
    try:
        parse(text)
    except BadKeyText as error:
        return error
    return None


def test_shared_secrets_are_not_shown() -> None:
    pair = seal.pair_keys(TOKEN, AGREEMENT, agreement=AGREEMENT, server=SERVER, signing=SIGNING)
    assert repr(pair) == "PairKeys(...)"
    assert str(pair) == "PairKeys(...)"


@pytest.mark.parametrize(
    ("right", "spelt"),
    [
        ("db1:22", "db1:022"),
        ("[2001:db8::1]:62201", "2001:db8::1"),
        ("[fe80::1%eth0]:62201", "[fe80::1%eth0]:62201"),
        ("db1%eth0:62201", "db1%eth0:62201"),
    ],
)
def test_a_line_spells_its_host_and_port_in_one_way(right: str, spelt: str) -> None:
    """Section 9.6; what a person types at a prompt may be less exact."""
    public = seal.agreement_public(b"s" * 32)
    endpoint = Endpoint.parse(right)
    for line, read in (
        (str(ServerLine(public, endpoint)), ServerLine.parse),
        (Invite(b"t" * 32, public, endpoint).reveal(), Invite.parse),
    ):
        with pytest.raises(BadKeyText):
            read(line.replace(str(endpoint), spelt))


def test_blanks_and_tabs_part_the_words_of_a_line_and_nothing_else_does() -> None:
    line = str(ServerLine(seal.agreement_public(b"s" * 32), Endpoint("db1", 22)))
    apart = line.replace(" ", " \t")
    assert ServerLine.parse(f" {apart}\r\n") == ServerLine.parse(line)
    for odd in ("\v", "\f", "\x1c", "\x85", "\u2003", "\n"):
        with pytest.raises(BadKeyText):
            ServerLine.parse(line.replace(" ", odd, 1))

"""`spa-server import-fwknop`: what an access.conf becomes, and what is said of the rest."""

import json
import os
import shutil
import subprocess
from datetime import UTC
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from keys import tomlfile
from keys.registry import Registry
from keys.trouble import Trouble
from spa_protocol.access import Access
from spa_protocol.keytext import Invite
from spa_server import cli, setup
from spa_server.fwknop import reading
from spa_server.fwknop.reading import MAX_DEPTH, MAX_LINE
from spa_server.fwknop.stanza import Place
from spa_server.fwknop.translation import Translation, translate
from spa_server.fwknop.variables import KNOWN, LOST, SECRET
from spa_server.fwknop.writing import policy_text
from spa_server.policy.lines import lines_of
from spa_server.policy.load import parse_policy
from spa_server.policy.model import Policy
from spa_server.policy.testing import Result as Outcome
from spa_server.policy.testing import run_tests
from tests.growth import growth

NOW_US = 1_795_000_000_000_000  # 2026-11-18
INSTALLED = Path("/etc/fwknop/access.conf")
SECRETS = ("Sesame-1", "U2VzYW1lLTI=", "Sesame-3")

# What the file in Debian's package says, without its comments.
AS_INSTALLED = "SOURCE ANY\nKEY_BASE64 __CHANGEME__\nHMAC_KEY_BASE64 __CHANGEME__\n"

REAL = f"""\
# Two people and a job.
SOURCE:             10.20.0.0/16, 192.168.7.9
OPEN_PORTS          tcp/22, TCP/5432, udp/53      # ssh and the database
RESTRICT_PORTS      udp/53
KEY                 {SECRETS[0]}
HMAC_KEY_BASE64     {SECRETS[1]}; a comment
FW_ACCESS_TIMEOUT   20
REQUIRE_USERNAME    alice
REQUIRE_SOURCE      Y
ACCESS_EXPIRE       01/02/2028

SOURCE              ANY
OPEN_PORTS          tcp/443
GPG_DECRYPT_ID      ABCD1234
GPG_DECRYPT_PW      {SECRETS[2]}
GPG_REMOTE_ID       1234ABCD, bob@example.org
MAX_FW_TIMEOUT      3600
ENABLE_CMD_EXEC     N
"""


def translated(text: str, path: Path) -> Translation:
    path.write_text(text)
    return translate(reading.read(path), NOW_US, UTC)


def loaded(translation: Translation) -> Policy:
    """The policy, by the strict loader, after all of its tests have passed."""
    path, text = Path("policy.toml"), policy_text(translation, Path("access.conf"))
    policy = parse_policy(tomlfile.parse(text, path), path, lines_of(text))
    tested = run_tests(policy, path, (), None)
    assert [one for one in tested if one.result is not Outcome.PASSED] == []
    assert {one.test.role for one in tested} == set(policy.roles)
    return policy


def notes(translation: Translation) -> list[str]:
    return [f"{n.place.line} {n.variable}: {n.what}; {n.hint}" for n in translation.notes]


def test_a_real_file_becomes_a_policy_that_passes_its_tests(tmp_path: Path) -> None:
    made = translated(REAL, tmp_path / "access.conf")
    policy = loaded(made)
    (alice,), (both,) = (policy.roles[name].allows for name in ("alice", "stanza2"))
    assert list(map(str, alice.accesses)) == ["tcp/22", "tcp/5432"]
    assert str(alice.sources) == "10.20.0.0/16, 192.168.7.9/32"
    assert (alice.lifetime_s, alice.max_lifetime_s) == (20, 300)
    assert {r.value for r in alice.require} == {"declared-source"}
    assert alice.expires_at_us == 1_830_384_000_000_000  # 2028-01-02
    assert (both.lifetime_s, both.max_lifetime_s, both.require) == (30, 3600, frozenset())
    assert str(both.sources) == "0.0.0.0/0"
    assert made.people == {
        "alice": ("alice",),
        "gpg-1234ABCD": ("stanza2",),
        "bob@example.org": ("stanza2",),
    }
    assert [note.split(";")[0] for note in notes(made)] == [
        "5 KEY: shared keys are not carried over",
        "14 GPG_DECRYPT_ID: GnuPG is not used",
    ]


def test_where_fwknop_opened_any_port_nothing_is_opened(tmp_path: Path) -> None:
    made = translated(AS_INSTALLED, tmp_path / "access.conf")
    assert loaded(made).allows == ()
    assert made.people == {"stanza1": ("stanza1",)}
    assert notes(made) == [
        "1 OPEN_PORTS: fwknopd opened whatever port was asked for; the role allows nothing; "
        "write what it needs in stanza1",
        "2 KEY_BASE64: shared keys are not carried over; "
        "let whoever has one join by an invite, with a key of their own",
    ]


def test_what_the_comment_of_such_a_role_says_to_write_can_be_written(tmp_path: Path) -> None:
    made = translated("SOURCE 10.0.0.0/8\nREQUIRE_SOURCE Y\n", tmp_path / "access.conf")
    text = policy_text(made, Path("access.conf")).partition("[[tests]]")[0]
    lines = text[text.index("# [[roles") :].replace("\n# ", "\n").removeprefix("# ")
    path = Path("p.toml")
    written = f'[services]\nssh = "tcp/22"\n[roles.stanza1]\n{lines}'
    (allow,) = parse_policy(tomlfile.parse(written, path), path).allows
    assert (str(allow.sources), len(allow.require)) == ("10.0.0.0/8", 1)


def test_the_file_of_the_package() -> None:
    if not INSTALLED.exists():
        pytest.skip(f"{INSTALLED} is not there: fwknop-server is not installed")
    made = translate(reading.read(INSTALLED), NOW_US)
    assert loaded(made).allows == ()
    assert {note.variable for note in made.notes} >= {"OPEN_PORTS", "KEY_BASE64"}


@pytest.mark.parametrize("variable", sorted(LOST))
def test_each_variable_that_is_not_carried_over_is_told(variable: str, tmp_path: Path) -> None:
    text = f"SOURCE ANY\nOPEN_PORTS tcp/22\n{variable} Y\n"
    if variable == "DESTINATION":
        text = text.replace("DESTINATION Y", "DESTINATION 10.0.0.1")
    made = translated(text, tmp_path / "access.conf")
    (note,) = [note for note in made.notes if note.variable == variable]
    assert note.place.line == 3
    assert note.hint
    goes_elsewhere = variable in {"FORCE_NAT", "CMD_CYCLE_OPEN"}
    assert len(loaded(made).allows) == (0 if goes_elsewhere else 1)


@pytest.mark.parametrize("line", ["ENABLE_CMD_EXEC N", "FORWARD_ALL n", "DESTINATION any"])
def test_what_changes_nothing_is_not_told(line: str, tmp_path: Path) -> None:
    made = translated(f"SOURCE ANY\nOPEN_PORTS tcp/22\n{line}\n", tmp_path / "access.conf")
    assert made.notes == ()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("OPEN_PORT tcp/80", "was OPEN_PORTS meant?"),
        ("open_ports tcp/80", "was OPEN_PORTS meant?"),
        ("LOCAL_PORT 22", "where it was to restrict something, write that"),
        ("ENABLE_FORWARD_ACCESS Y", "not known, also to fwknopd 2.6"),
        ("RESTRICT_PORTS tcp/22", "no port is left of OPEN_PORTS; the role allows nothing"),
        ("OPEN_PORTS tcp/23", "2 OPEN_PORTS: set again in line 3, and fwknopd takes the last"),
        ("FW_ACCESS_TIMEOUT 600", "longer than MAX_FW_TIMEOUT, which is 300 s"),
        ("REQUIRE_USERNAME bob smith", "the name is taken as bob-smith"),
        ("REQUIRE_USERNAME \x1b[2J", "the name is taken as 2J"),
        ("GPG_REMOTE_ID , ,", "GPG"),
    ],
)
def test_what_else_is_told(line: str, told: str, tmp_path: Path) -> None:
    text = f"SOURCE ANY\nOPEN_PORTS tcp/22\n{line}\n"
    made = translated(text, tmp_path / "access.conf")
    loaded(made)
    assert told == "GPG" or any(told in note for note in notes(made)), notes(made)
    assert all(str(note).isprintable() for note in made.notes)


def test_who_is_one_person(tmp_path: Path) -> None:
    """By the same name, or by the same key; and never by a key that was not put in yet."""
    stanzas = [
        "REQUIRE_USERNAME alice\nKEY a",
        "REQUIRE_USERNAME alice\nKEY b",
        "REQUIRE_USERNAME ALICE\nKEY c",
        "KEY same",
        "KEY same\nHMAC_KEY other",
        "KEY __CHANGEME__",
        "KEY __CHANGEME__",
        "GPG_FINGERPRINT_ID AB12",
        "GPG_REMOTE_ID ab12",
    ]
    text = "".join(f"SOURCE 10.0.{i}.0/24\n{each}\n" for i, each in enumerate(stanzas))
    made = translated(text, tmp_path / "access.conf")
    loaded(made)
    assert made.people == {
        "alice": ("alice", "alice-2"),
        "ALICE-2": ("ALICE-2-2",),
        "stanza4": ("stanza4", "stanza4-2"),
        "stanza6": ("stanza6",),
        "stanza7": ("stanza7",),
        "gpg-AB12": ("gpg-AB12", "gpg-AB12-2"),
    }


def test_a_stanza_that_repeats_another_is_left_out(tmp_path: Path) -> None:
    one = "SOURCE ANY\nOPEN_PORTS tcp/22\nKEY a\n"
    made = translated(one + one + one.replace("KEY a", "KEY b"), tmp_path / "access.conf")
    assert len(loaded(made).roles) == 2
    assert any(
        "4 SOURCE: the same as" in note and ":1, and left out" in note for note in notes(made)
    )
    without = "SOURCE ANY\nOPEN_PORTS tcp/22\n"
    assert len(translated(without * 2, tmp_path / "access.conf").roles) == 2


@pytest.mark.parametrize("line", ["ACCESS_EXPIRE 11/17/2026", "ACCESS_EXPIRE_EPOCH 1"])
def test_a_stanza_that_has_expired_is_left_out(line: str, tmp_path: Path) -> None:
    made = translated(f"SOURCE ANY\nOPEN_PORTS tcp/22\n{line}\n", tmp_path / "access.conf")
    assert loaded(made).roles == {}
    assert [note.what for note in made.notes] == ["the stanza has expired, and is left out"]
    never = "SOURCE ANY\nOPEN_PORTS tcp/22\nACCESS_EXPIRE_EPOCH 0\n"
    (allow,) = loaded(translated(never, tmp_path / "access.conf")).allows
    assert allow.expires_at_us is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "{file}: no stanza; a stanza begins with a line like: SOURCE ANY"),
        ("# SOURCE ANY\n\n  # x\n;y", "{file}: no stanza"),
        ("KEY a\nSOURCE ANY", "{file}:1: KEY: stands outside a stanza; a stanza begins with"),
        ("FOO a\nSOURCE ANY", "{file}:1: a line that stands outside a stanza"),
        ("source ANY", "{file}:1: source: fwknopd knows variables in capitals only"),
        ("SOURCE ANY\nKEY", "{file}:2: KEY: no value is there"),
        ("SOURCE ANY\nOPEN_PORTS ;tcp/22", "{file}:2: OPEN_PORTS: no value is there"),
        ("SOURCE ANY\n" + "x" * 40, "{file}:2: no value is there"),
        ("SOURCE db.example.org", "'db.example.org' is a name, and fwknopd takes addresses only"),
        ("SOURCE 2001:db8::1", "{file}:1: SOURCE: '2001:db8::1' is IPv6, which fwknopd does not"),
        ("SOURCE fd00::/8", "is IPv6"),
        ("SOURCE 10.0.0.0/33", "{file}:1: SOURCE: '10.0.0.0/33' is no address or network"),
        ("SOURCE 10.0.0.0/0.0.0.255", "is no address or network"),
        ("SOURCE 10.0.0.300", "is no address or network"),
        ("SOURCE NET", "is a name"),
        ("SOURCE 10.0.0.1,", "{file}:1: SOURCE: a comma too many"),
        ("SOURCE ANY\nOPEN_PORTS tcp/0", "{file}:2: OPEN_PORTS: 'tcp/0' is out of range"),
        ("SOURCE ANY\nOPEN_PORTS tcp/65536", "is out of range; write a port from 1 to 65535"),
        ("SOURCE ANY\nOPEN_PORTS tcp/22-30", "'tcp/22-30' is no port that fwknopd can open"),
        ("SOURCE ANY\nOPEN_PORTS icmp/8", "is no port that fwknopd can open"),
        ("SOURCE ANY\nOPEN_PORTS ANY", "is no port that fwknopd can open"),
        ("SOURCE ANY\nOPEN_PORTS tcp/²", "is no port that fwknopd can open"),
        ("SOURCE ANY\nRESTRICT_PORTS 22", "{file}:2: RESTRICT_PORTS: '22' is no port"),
        ("SOURCE ANY\nFW_ACCESS_TIMEOUT soon", "FW_ACCESS_TIMEOUT: no number of seconds"),
        ("SOURCE ANY\nFW_ACCESS_TIMEOUT -3", "FW_ACCESS_TIMEOUT: no number of seconds"),
        ("SOURCE ANY\nMAX_FW_TIMEOUT 99999999999", "MAX_FW_TIMEOUT: no number of seconds"),
        ("SOURCE ANY\nACCESS_EXPIRE 2027-01-02", "ACCESS_EXPIRE: no date; write it like 12/31/"),
        ("SOURCE ANY\nACCESS_EXPIRE 13/01/2027", "ACCESS_EXPIRE: no date"),
        ("SOURCE ANY\nACCESS_EXPIRE 01/01/1950", "ACCESS_EXPIRE: out of range"),
        ("SOURCE ANY\nACCESS_EXPIRE_EPOCH never", "ACCESS_EXPIRE_EPOCH: no seconds since 1970"),
        ("SOURCE ANY\n%include gone.conf", "{file}:2: %include: {folder}/gone.conf cannot be read"),
        ("%include .", "{file}:1: %include: {folder} is no file"),
        ("%include_folder gone", "{file}:1: %include_folder: {folder}/gone is no directory"),
        ("%include access.conf", "{file}:1: %include: {file} is read already, from the beginning"),
        ("SOURCE ANY\nKEY " + "x" * MAX_LINE, "{file}:2: longer than the 1023 characters"),
        ("SOURCE ANY\0", "{file} is binary, and no access.conf"),
    ],
)
def test_bad_input_is_one_clear_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "access.conf"
    file.write_text(text)
    done = run("import-fwknop", str(file))
    assert done.exit_code == 4, done.output
    assert done.stdout == ""
    assert message.format(file=file, folder=tmp_path) in done.stderr
    assert done.stderr.count("\n") == 1
    assert "x" * 20 not in done.stderr


def run(*arguments: str, config: Path | None = None) -> Result:
    """The program itself, with what its user sees."""
    options = [] if config is None else ["--config", str(config)]
    return CliRunner().invoke(cli.main, [*options, *arguments])


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "gone", "gone cannot be read: no such file or directory"),
        (tmp_path, "is no file"),
        (Path("/dev/null"), "/dev/null is no file"),
    ):
        done = run("import-fwknop", str(path))
        assert (done.exit_code, done.stderr.count("\n")) == (4, 1)
        assert message in done.stderr
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    assert "is binary" in run("import-fwknop", str(tmp_path / "binary")).stderr


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    file = tmp_path / "access.conf"
    file.write_text(REAL)
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("root reads every file")
    assert "permission denied" in run("import-fwknop", str(file)).stderr


def test_included_files(tmp_path: Path) -> None:
    """The stanza goes on after the include; a folder's files come in the order of their names."""
    (tmp_path / "d").mkdir()
    for name in ("b.conf", "a.conf", "c.txt"):
        (tmp_path / "d" / name).write_text(f"SOURCE ANY\nREQUIRE_USERNAME {name[0]}\n")
    (tmp_path / "other.conf").write_text("SOURCE 10.0.0.1\nREQUIRE_USERNAME other\n")
    text = (
        "%include_folder d\nSOURCE 10.0.0.2\n%include other.conf\nREQUIRE_USERNAME main\n"
        "%include_keys /nowhere/keys.conf\n"
    )
    made = translated(text, tmp_path / "access.conf")
    assert list(made.people) == ["a", "b", "other", "main"]
    assert made.roles[2].place == Place(tmp_path / "other.conf", 1)
    assert any("5 %include_keys: shared keys" in note for note in notes(made))


def test_includes_without_end(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text("%include b.conf\n")
    (tmp_path / "b.conf").write_text("\n%include a.conf\n")
    with pytest.raises(Trouble, match=r"b.conf:2: %include: .*a.conf is read already"):
        reading.read(tmp_path / "a.conf")
    for number in range(MAX_DEPTH + 2):
        (tmp_path / f"{number}.conf").write_text(f"%include {number + 1}.conf\n")
    with pytest.raises(Trouble, match=f"more than {MAX_DEPTH} files deep"):
        reading.read(tmp_path / "0.conf")
    (tmp_path / "twice.conf").write_text("%include c.conf\n%include c.conf\n")
    (tmp_path / "c.conf").write_text("SOURCE ANY\n")
    with pytest.raises(Trouble, match=r"twice.conf:2: .* is read already, by .*twice.conf:1"):
        reading.read(tmp_path / "twice.conf")


def test_line_ends_of_windows_change_nothing(tmp_path: Path) -> None:
    file = tmp_path / "access.conf"
    unix = policy_text(translated(REAL, file), file)
    file.write_bytes(REAL.replace("\n", "\r\n").encode())
    assert policy_text(translate(reading.read(file), NOW_US, UTC), file) == unix


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_no_secret_is_ever_printed(options: list[str], tmp_path: Path) -> None:
    file = tmp_path / "access.conf"
    file.write_text(REAL)
    done = run("import-fwknop", str(file), *options)
    assert done.exit_code == 0, done.output
    assert not any(secret in done.output for secret in SECRETS)
    secret = [s for stanza in reading.read(file) for s in stanza.settings if s.variable in SECRET]
    assert len(secret) == 3
    assert not any(word in repr(s) for word in SECRETS for s in secret)
    for line in (f"{SECRETS[0]}\n", f"{SECRETS[0]} x\n", f"KEY{SECRETS[0]}\n"):
        file.write_text(f"SOURCE ANY\n{line}")
        assert SECRETS[0] not in run("import-fwknop", str(file)).output


def test_what_is_printed(tmp_path: Path) -> None:
    """The policy on stdout, notes and commands on stderr."""
    file, policy = tmp_path / "access.conf", tmp_path / "policy.toml"
    file.write_text(REAL)
    done = run("import-fwknop", str(file))
    policy.write_text(done.stdout)
    tested = run("policy", "test", str(policy), "--no-registry", config=_empty(tmp_path))
    assert tested.exit_code == 0, tested.output
    assert f"# {file}:2: for alice\n[roles.alice]\n" in done.stdout
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"{file}:5: KEY: shared keys are not carried over; let ")
    assert "spa-keys invite alice --role alice" in lines
    assert "spa-keys invite bob@example.org --role stanza2" in lines


def _empty(tmp_path: Path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text("")
    return path


def test_a_file_is_written_and_none_is_overwritten(tmp_path: Path) -> None:
    file, output = tmp_path / "access.conf", tmp_path / "policy.toml"
    file.write_text(REAL)
    done = run("import-fwknop", str(file), "--output", str(output))
    assert done.exit_code == 0, done.output
    assert "spa-keys invite alice --role alice\n" in done.stdout
    assert output.stat().st_mode & 0o777 == 0o644
    output.write_text("mine")
    again = run("import-fwknop", str(file), "--output", str(output))
    assert (again.exit_code, output.read_text()) == (4, "mine")
    assert "exists already; choose another name, or give --force" in again.stderr
    forced = run("import-fwknop", str(file), "--output", str(output), "--force")
    assert (forced.exit_code, "roles.alice" in output.read_text()) == (0, True)
    nowhere = run("import-fwknop", str(file), "--output", str(tmp_path / "gone" / "p.toml"))
    assert (nowhere.exit_code, "is no directory" in nowhere.stderr) == (4, True)


@pytest.mark.parametrize("options", ["--force", "--invite", "--approve", "--host x"])
def test_options_that_go_together(options: str, tmp_path: Path) -> None:
    assert run("import-fwknop", str(tmp_path / "gone"), *options.split()).exit_code == 2


def test_the_same_for_other_programs(tmp_path: Path) -> None:
    file = tmp_path / "access.conf"
    file.write_text(REAL)
    told = json.loads(run("import-fwknop", str(file), "--json").stdout)
    assert told["people"][0] == {
        "identity": "alice",
        "roles": ["alice"],
        "command": "spa-keys invite alice --role alice",
    }
    assert told["notes"][0]["line"] == 5
    assert told["policy"] == run("import-fwknop", str(file)).stdout


def test_invites_are_made_for_everybody(tmp_path: Path) -> None:
    config, file = tmp_path / "server.toml", tmp_path / "access.conf"
    list(setup.initialise(config))
    file.write_text(REAL)
    options = ("--output", str(tmp_path / "new.toml"), "--invite", "--host", "db1", "--approve")
    done = run("import-fwknop", str(file), *options, config=config)
    assert done.exit_code == 0, done.output
    lines = dict(line.split(" ") for line in done.stdout.splitlines())
    assert list(lines) == ["alice", "gpg-1234ABCD", "bob@example.org"]
    assert {str(Invite.parse(line).endpoint) for line in lines.values()} == {"db1:62201"}
    registry = Registry(tmp_path / "spa.db", read_only=True)
    made = {i.identity: (i.roles, i.needs_approval) for i in registry.invites()}
    registry.close()
    assert made["alice"] == (frozenset({"alice"}), True)
    assert made["bob@example.org"] == (frozenset({"stanza2"}), True)
    assert "spa://" not in (tmp_path / "new.toml").read_text()


@pytest.mark.once
def test_of_ten_times_the_stanzas_each_takes_as_long(tmp_path: Path) -> None:
    """From the file to the policy that has passed its tests."""

    def translate_some(count: int) -> None:
        text = "".join(
            f"SOURCE 10.{n >> 8}.{n & 255}.0/24\nKEY k{n}\nOPEN_PORTS tcp/22,tcp/{9 + n % 50}\n"
            for n in range(count)
        )
        made = translated(text, tmp_path / "access.conf")
        assert len(made.people) == count
        loaded(made)

    assert growth(translate_some, 100, times=10) < 3


_NETWORKS = st.one_of(
    st.just("ANY"),
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
    st.ip_addresses(v=4).map(str),
)
_PORTS = st.tuples(st.sampled_from(["tcp", "udp", "TCP"]), st.integers(1, 65535)).map(
    lambda pair: f"{pair[0]}/{pair[1]}"
)
_WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n;\0"), max_size=90)
_SETTINGS = st.one_of(
    st.lists(_PORTS, min_size=1, max_size=9).map(lambda ports: f"OPEN_PORTS {','.join(ports)}"),
    st.lists(_PORTS, min_size=1, max_size=9).map(
        lambda ports: f"RESTRICT_PORTS {', '.join(ports)}"
    ),
    st.integers(0, 2**32 - 1).map(lambda n: f"FW_ACCESS_TIMEOUT {n}"),
    st.integers(0, 2**32 - 1).map(lambda n: f"MAX_FW_TIMEOUT {n}"),
    st.integers(0, 253_402_214_400).map(lambda n: f"ACCESS_EXPIRE_EPOCH {n}"),
    st.dates().filter(lambda d: d.year > 1970).map(lambda d: f"ACCESS_EXPIRE {d:%m/%d}/{d.year}"),
    _WORDS.map(lambda word: f"REQUIRE_USERNAME x{word}"),
    _WORDS.map(lambda word: f"GPG_REMOTE_ID y{word}"),
    _WORDS.map(lambda word: f"KEY k{word}"),
    st.sampled_from(["REQUIRE_SOURCE Y", "ENABLE_CMD_EXEC Y", "FORCE_NAT 10.0.0.1 22"]),
)
_STANZAS = st.tuples(
    st.lists(_NETWORKS, min_size=1, max_size=6).map(", ".join), st.lists(_SETTINGS, max_size=7)
).map(lambda pair: "\n".join([f"SOURCE {pair[0]}", *pair[1], ""]))


@given(stanzas=st.lists(_STANZAS, min_size=1, max_size=6))
@pytest.mark.once
def test_every_translation_loads_and_passes_its_tests(
    stanzas: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "property.conf"
    made = translated("".join(stanzas), path)
    policy = loaded(made)
    assert len(policy.roles) <= len(stanzas)
    named = {name for roles in made.people.values() for name in roles}
    assert named == set(policy.roles)
    opened = {port for text in stanzas for line in text.split("\n") for port in _ports(line)}
    assert {access for allow in policy.allows for access in allow.accesses} <= opened


def _ports(line: str) -> list[Access]:
    name, _, value = line.partition(" ")
    return [Access.parse(port) for port in value.split(",")] if name == "OPEN_PORTS" else []


_ANY_LINE = st.one_of(
    st.tuples(st.sampled_from([*sorted(KNOWN), "%include", "%include_folder", "X"]), st.text()).map(
        " ".join
    ),
    st.text(),
    st.just("SOURCE ANY"),
)


@given(
    content=st.one_of(
        st.binary(), st.lists(_ANY_LINE).map(lambda t: "\n".join(t).encode("utf-8", "replace"))
    )
)
def test_nothing_crashes_the_parser(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.conf"
    path.write_bytes(content)
    told = ""
    try:
        loaded(translate(reading.read(path), NOW_US, UTC))
    except Trouble as trouble:
        told = str(trouble)
    assert told.isprintable()
    assert not told or str(path) in told


@pytest.mark.skipif(shutil.which("fwknopd") is None, reason="fwknop-server is not installed")
@pytest.mark.parametrize(
    ("line", "is_taken"),
    [
        ("OPEN_PORTS tcp/22, udp/53", True),
        ("OPEN_PORTS TCP/22 # tail", True),
        ("OPEN_PORTS tcp/99999", False),
        ("OPEN_PORTS icmp/8", False),
        ("SOURCE 10.0.0.5/255.0.0.0", True),
        ("SOURCE db.example.org", False),
        ("SOURCE 2001:db8::1", False),
        ("REQUIRE_USERNAME alice bob", True),
        ("ACCESS_EXPIRE 01/02/2028", True),
        ("ACCESS_EXPIRE 2028-01-02", False),
        ("FOO bar", True),
    ],
)
def test_fwknopd_takes_and_refuses_the_same(line: str, is_taken: bool, tmp_path: Path) -> None:
    file = tmp_path / "access.conf"
    file.write_text(f"SOURCE ANY\nKEY abcdefgh\n{line}\nKEY abcdefgh\n")
    file.chmod(0o600)
    done = subprocess.run(
        ["fwknopd", "-a", file, "-D"], capture_output=True, check=False, timeout=20
    )
    assert (b"FW_ACCESS_TIMEOUT" in done.stdout) is is_taken, done
    ours = run("import-fwknop", str(file))
    assert (ours.exit_code == 0) is is_taken, ours.output

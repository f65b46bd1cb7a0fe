"""server.toml: what it may say, and with which words anything else is refused."""

from ipaddress import ip_network
from pathlib import Path

import pytest

from keys.tomlfile import FileProblem
from spa_protocol.access import Access
from spa_server.config import CONFIG_PATH, CONFIG_VARIABLE, Mode, load_config, reread
from spa_server.firewall.plan import Observed
from spa_server.gatehouse import plan_gate
from spa_server.policy.model import Policy


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "server.toml"


def test_an_empty_file_is_a_working_configuration(file: Path) -> None:
    file.touch()
    config = load_config(file)
    assert (config.policy, config.key) == (
        Path("/etc/spa/policy.toml"),
        Path("/etc/spa/server.key"),
    )
    assert config.database == Path("/var/lib/spa/spa.db")
    assert config.control == Path("/run/spa/control.sock")
    assert (config.knock_port, config.capture, config.freshness_s) == (62201, "nflog", 30)
    assert config.outer is None
    assert config.shared_sources == ()
    assert (config.mode, config.observe) == (Mode.ENFORCE, ())
    assert config.path == file


def test_paths_are_taken_from_the_directory_of_the_file(file: Path) -> None:
    file.write_text('policy = "policy.toml"\nkey = "keys/server.key"\ndatabase = "/srv/spa.db"\n')
    config = load_config(file)
    assert config.policy == file.parent / "policy.toml"
    assert config.key == file.parent / "keys" / "server.key"
    assert config.database == Path("/srv/spa.db")


def test_the_marks_stand_beside_the_configuration(file: Path) -> None:
    """Where only root may write; those places that the daemon's user may write have none."""
    file.write_text('database = "lasting/spa.db"\ncontrol = "passing/control.sock"\n')
    config = load_config(file)
    assert config.gate_wanted == file.parent / "gate.wanted"
    assert config.gate_wanted_before == file.parent / "lasting" / "gate.wanted"
    assert config.gate_pending == file.parent / "gate.pending"
    assert config.unrecorded == file.parent / "passing" / "unrecorded"


def test_everything_can_be_said(file: Path) -> None:
    file.write_text(
        'knock_port = 443\ncapture = "interface:eth0"\nouter = ["eth0", "wg-office"]\n'
        'shared_sources = ["192.0.2.0/28", "2001:db8::/32"]\nfreshness = "1m30s"\n'
        'mode = "observe"\nobserve = ["postgres", "ssh"]\n'
    )
    config = load_config(file)
    assert (config.knock_port, config.capture, config.freshness_s) == (443, "interface:eth0", 90)
    assert config.outer == ("eth0", "wg-office")
    assert config.shared_sources == (ip_network("192.0.2.0/28"), ip_network("2001:db8::/32"))
    assert (config.mode, config.observe) == (Mode.OBSERVE, ("postgres", "ssh"))


def test_what_becomes_of_knocks_when_the_disk_is_full(file: Path) -> None:
    file.touch()
    assert not load_config(file).serves_when_full
    for word, serves in (("deny", False), ("serve", True)):
        file.write_text(f'when_disk_full = "{word}"\n')
        assert load_config(file).serves_when_full == serves
    file.write_text('when_disk_full = "panic"\n')
    with pytest.raises(FileProblem, match='expected "deny" or "serve"'):
        load_config(file)


def test_no_interface_is_an_outer_one_where_the_list_is_empty(file: Path) -> None:
    """Other than no list: then those with a default route are."""
    file.write_text("outer = []\n")
    assert load_config(file).outer == ()


def test_the_environment_names_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("knock_port = 1234\n")
    monkeypatch.setenv(CONFIG_VARIABLE, str(file))
    assert load_config().knock_port == 1234
    other = file.with_name("other.toml")
    other.write_text("knock_port = 4321\n")
    assert load_config(other).knock_port == 4321


def test_only_the_usual_file_may_be_missing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names a file means it; without one named, the defaults are a configuration."""
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    monkeypatch.setattr("spa_server.config.CONFIG_PATH", file)
    assert load_config().knock_port == 62201
    with pytest.raises(FileProblem, match="no such file"):
        load_config(file)
    monkeypatch.setenv(CONFIG_VARIABLE, str(file))
    with pytest.raises(FileProblem, match="no such file"):
        load_config()
    assert str(CONFIG_PATH) == "/etc/spa/server.toml"


BAD = [
    ("knock_port = ", "", "not TOML: invalid value (at line 1, column 14)"),
    ("knock_port = 0", "knock_port", "expected a number >= 1"),
    ("knock_port = 65536", "knock_port", "expected a number <= 65535"),
    ('knock_port = "62201"', "knock_port", "expected a number, got text"),
    ("knock_port = true", "knock_port", "expected a number, got true or false"),
    ("knockport = 62201", "", "knockport: is not known"),
    ("[server]\nknock_port = 1", "", "server: is not known"),
    ("policy = 7", "policy", "expected text, got a number"),
    ('capture = "pcap"', "capture", 'expected "nflog" or "interface:NAME"'),
    ('capture = "interface:"', "capture", 'expected "nflog" or "interface:NAME"'),
    ('capture = "interface:a/b"', "capture", 'expected "nflog" or "interface:NAME"'),
    (
        'capture = "interface:a-name-far-too-long"',
        "capture",
        'expected "nflog" or "interface:NAME"',
    ),
    ('outer = "eth0"', "outer", "expected a list, got text"),
    ("outer = [7]", "outer[0]", "expected text, got a number"),
    ('outer = ["eth0\\" accept"]', "outer", "'eth0\" accept' is no name of a network interface"),
    ('outer = ["eth0;x"]', "outer", "'eth0;x' is no name of a network interface"),
    ('outer = [""]', "outer", "'' is no name of a network interface"),
    ('shared_sources = ["lb"]', "shared_sources", "'lb' is no network; write it like"),
    (
        'shared_sources = ["192.0.2.1/24"]',
        "shared_sources",
        "'192.0.2.1/24' has host bits set; write 192.0.2.0/24",
    ),
    ('freshness = "30"', "freshness", "'30' is no duration; write it like 30s"),
    ('freshness = "0s"', "freshness", "'0s' is not between 1s and 300s"),
    ('freshness = "1h"', "freshness", "'1h' is not between 1s and 300s"),
    ("freshness = 30", "freshness", "expected text, got a number"),
    ("max_keys = 99", "max_keys", "expected"),
    ("max_keys = 2000001", "max_keys", "expected"),
    ('mode = "Observe"', "mode", 'expected "enforce" or "observe"'),
    ("mode = true", "mode", "expected text, got true or false"),
    ('observe = "ssh"', "observe", "expected a list, got text"),
    ("observe = [22]", "observe[0]", "expected text, got a number"),
]


@pytest.mark.parametrize(("text", "where", "problem"), BAD, ids=[text for text, _, _ in BAD])
def test_what_is_wrong_is_named_with_its_file_and_key(
    file: Path, text: str, where: str, problem: str
) -> None:
    file.write_text(text + "\n")
    with pytest.raises(FileProblem) as raised:
        load_config(file)
    place = f"{file}: {where}: " if where else f"{file}: "
    assert str(raised.value).startswith(place + problem)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_text(file: Path) -> None:
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(FileProblem, match="not a text file in UTF-8"):
        load_config(file)


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="is a directory"):
        load_config(tmp_path)


def test_rereading_takes_what_may_change_while_a_daemon_runs(file: Path) -> None:
    file.write_text("knock_port = 1234\n")
    config = load_config(file)
    file.write_text('knock_port = 4321\nmode = "observe"\nobserve = ["ssh"]\n')
    now = reread(config)
    assert (now.mode, now.observe) == (Mode.OBSERVE, ("ssh",))
    assert now.knock_port == 1234
    file.write_text('mode = "watch"\n')
    with pytest.raises(FileProblem, match="mode: expected"):
        reread(config)
    file.unlink()
    with pytest.raises(FileProblem, match="no such file"):
        reread(config)


SSH = Access.parse("tcp/22")
POLICY = Policy({"web": (Access.parse("tcp/80"), Access.parse("udp/80")), "ssh": (SSH,)})


@pytest.mark.parametrize(
    ("text", "observed"),
    [
        ("", Observed()),
        ('mode = "observe"', Observed(everything=True)),
        ('observe = ["ssh", "web"]', Observed(accesses=(SSH, *POLICY.services["web"]))),
        ('mode = "observe"\nobserve = ["ssh"]', Observed(everything=True, accesses=(SSH,))),
    ],
)
def test_services_are_observed_by_their_names(file: Path, text: str, observed: Observed) -> None:
    file.write_text(f"outer = []\n{text}\n")
    assert plan_gate(load_config(file), POLICY).observed == observed


@pytest.mark.parametrize("mode", ["", 'mode = "observe"'])
def test_a_service_that_the_policy_has_not_got_cannot_be_observed(file: Path, mode: str) -> None:
    """Also where everything is: else the typo would be found on the day of closing."""
    file.write_text(f'outer = []\npolicy = "/p.toml"\nobserve = ["ssh", "shh"]\n{mode}\n')
    with pytest.raises(FileProblem) as raised:
        plan_gate(load_config(file), POLICY)
    assert str(raised.value) == f"{file}: observe: no service 'shh' in /p.toml; known: ssh, web"

"""The systemd units: they load, give nothing away, and close the gate before the network is up."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

UNITS: Final = Path(__file__).parents[1] / "packaging" / "systemd"
GATE: Final = UNITS / "spa-gate.service"
DAEMON: Final = UNITS / "spa-server.service"
PROGRAM: Final = "/usr/bin/spa-server"
MOST_EXPOSURE: Final = 2.0

both = pytest.mark.parametrize("unit", [GATE, DAEMON], ids=lambda unit: unit.stem)
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def words(unit: Path, section: str, key: str) -> list[str]:
    """The words of a setting, of all its lines together."""
    text = re.search(rf"^\[{section}\]$(.*?)(?=^\[|\Z)", unit.read_text(), re.MULTILINE | re.DOTALL)
    assert text is not None
    return " ".join(re.findall(rf"^{key}=(.*)$", text[1], re.MULTILINE)).split()


@pytest.fixture
def installed(tmp_path: Path) -> list[Path]:
    """The units in a directory of their own, their program one that is there."""
    copies = []
    for unit in (GATE, DAEMON):
        copy = tmp_path / unit.name
        text = unit.read_text()
        assert PROGRAM in text
        copy.write_text(text.replace(PROGRAM, "/bin/true"))
        copies.append(copy)
    return copies


@needs_systemd
def test_systemd_finds_nothing_wrong(installed: list[Path]) -> None:
    """Unknown settings, missing programs, units that wait for each other."""
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *installed],
        capture_output=True,
        text=True,
        check=False,
    )
    about_ours = [line for line in done.stderr.splitlines() if "spa-" in line]
    assert about_ours == []
    assert done.returncode == 0, done.stderr


@needs_systemd
@both
def test_little_is_exposed(unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", unit],
        capture_output=True,
        text=True,
        check=True,
        env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
    )
    overall = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert overall is not None, done.stdout
    assert float(overall[1]) <= MOST_EXPOSURE


@both
def test_they_run_as_a_user_of_their_own_with_one_capability(unit: Path) -> None:
    assert words(unit, "Service", "User") == ["spa"]
    assert words(unit, "Service", "Group") == ["spa"]
    assert words(unit, "Service", "CapabilityBoundingSet") == ["CAP_NET_ADMIN"]
    assert words(unit, "Service", "AmbientCapabilities") == ["CAP_NET_ADMIN"]
    assert words(unit, "Service", "NoNewPrivileges") == ["yes"]
    assert words(unit, "Service", "SupplementaryGroups") == []


@both
def test_what_is_open_does_not_depend_on_the_runtime_directory(unit: Path) -> None:
    """A gate on trial and the socket live there: the end of one unit must not take it away."""
    assert words(unit, "Service", "RuntimeDirectory") == ["spa"]
    assert words(unit, "Service", "RuntimeDirectoryPreserve") == ["yes"]
    assert words(unit, "Service", "StateDirectory") == ["spa"]


def test_the_gate_is_closed_before_any_interface_is_configured() -> None:
    """network-pre.target is what every network manager comes after (systemd.special(7))."""
    assert "network-pre.target" in words(GATE, "Unit", "Before")
    assert "network-pre.target" in words(GATE, "Unit", "Wants")
    assert words(GATE, "Unit", "DefaultDependencies") == ["no"]
    assert words(GATE, "Install", "WantedBy") == ["sysinit.target"]


def test_the_gate_comes_after_the_rules_that_flush_all_others() -> None:
    """Debian's nftables.service begins with `flush ruleset`."""
    assert "nftables.service" in words(GATE, "Unit", "After")


def test_the_gate_is_loaded_only_where_the_operator_wanted_it_and_then_whatever_is_wrong() -> None:
    assert words(GATE, "Unit", "ConditionPathExists") == [
        "|/etc/spa/gate.wanted",
        "|/var/lib/spa/gate.wanted",  # 0.1.0's
    ]
    start = " ".join(words(GATE, "Service", "ExecStart"))
    assert start == f"{PROGRAM} gate apply --closed-on-error"
    assert words(GATE, "Service", "Type") == ["oneshot"]
    assert words(GATE, "Service", "ExecStop") == []


def test_the_daemon_comes_after_the_gate_and_comes_back() -> None:
    assert "spa-gate.service" in words(DAEMON, "Unit", "After")
    assert "spa-gate.service" in words(DAEMON, "Unit", "Wants")
    assert words(DAEMON, "Service", "Type") == ["notify"]
    assert words(DAEMON, "Service", "Restart") == ["always"]
    assert words(DAEMON, "Unit", "StartLimitIntervalSec") == ["0"]
    assert words(DAEMON, "Service", "ExecReload") == [PROGRAM, "reload"]
    assert words(DAEMON, "Service", "ExecStart") == [PROGRAM, "run"]

"""What README.md tells an operator and a person to type, typed on hosts booted with systemd."""

import re

import pytest

from integration.booted import readme
from integration.booted.company import Company
from integration.booted.walk import PATH, Walk
from integration.lab import Reach

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def walk(company: Company) -> Walk:
    return Walk(company)


@pytest.mark.parametrize("heading", PATH)
def test_each_line_does_what_readme_says(walk: Walk, heading: str) -> None:
    """In the order in which they stand there: a line that fails leaves the others untyped."""
    for step, said in walk.go(heading, PATH[heading]):
        told = f"{step.who.value}: {step.line}\n{said.shown}"
        assert "Traceback" not in said.shown, told
        assert re.search(step.shows, said.shown, re.DOTALL), told
        assert step.until is not None or said.status == step.status, told


def test_no_line_for_a_shell_is_left_out() -> None:
    """But those that are for whoever develops it."""
    text = readme.README.read_text(encoding="utf-8")
    with_lines = {h for h in re.findall(r"^## (.*)$", text, re.MULTILINE) if readme.lines(h)}
    assert with_lines - {"See it", "Develop"} == set(PATH)


def test_the_manual_is_there_for_root_and_for_the_person(walk: Walk) -> None:
    for page in ("1 spa-client", "1 spa-keys", "5 spa-policy", "7 spa-protocol", "8 spa-server"):
        assert page.split()[1] in walk.root(f"man {page}")
    assert "spa-client" in walk.alice("man spa-client")
    assert "spa-keys" in walk.alice("man spa-keys")


def test_the_client_alone_says_that_it_is_the_client_alone(walk: Walk) -> None:
    for line in ("spa-server", "spa-server status"):
        done = walk.company.laptop.type(line, user="alice", check=False)
        assert done.returncode == 4
        assert done.stderr.startswith("spa-server: this is an installation of the client alone")
        assert done.stderr.count("\n") == 1


def test_the_port_is_shut_to_whoever_does_not_knock(walk: Walk) -> None:
    walk.root("spa-server gate confirm; spa-server close --all || true")
    laptop, server = walk.company.laptop.host, walk.company.server.host
    assert laptop.reach_tcp(server.v4, 22) is Reach.SILENT
    assert laptop.reach_tcp(server.v4, 5432) is Reach.SILENT


def test_after_a_reboot_everything_is_as_it_was(walk: Walk) -> None:
    server = walk.company.server
    assert server.reboot() == "running", server.type("systemctl --failed").stdout
    units = "spa-gate spa-server"
    assert server.type(f"systemctl is-active {units}").stdout.split() == ["active"] * 2
    assert walk.company.laptop.host.reach_tcp(server.host.v4, 22) is Reach.SILENT


def test_the_checkout_was_needed_for_nothing_more(walk: Walk) -> None:
    """What was installed does not lean on the directory that it was installed from."""
    walk.company.server.type("mv ~/spaknock ~/elsewhere && spa-server status")
    walk.company.server.type("mv ~/elsewhere ~/spaknock", at="/")

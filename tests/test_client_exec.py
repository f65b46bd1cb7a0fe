"""Running a program behind a knock: what it gets, how it ends, and what is closed behind it."""

import os
import signal
import sys
from pathlib import Path

import pytest

from spa_client import running
from spa_client.running import CannotRun
from spa_protocol.knock import Close, Knock
from spa_protocol.reason import Code, Status
from tests.test_client_cli import HASTE, Home, configured, the_line, wait_until
from tests.test_client_fake_server import Heard, Script, refuses, says_nothing


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_the_exit_code_and_the_streams_are_the_program_s(home: Home) -> None:
    with configured(home) as server:
        shell = 'echo "$0 $SPA_ADDRESS"; echo oops >&2; exit 7'
        done = home.run("exec", "-q", "db1", "ssh", "--", "sh", "-c", shell, "{address}!")
        assert (done.returncode, done.stdout, done.stderr) == (
            7,
            "127.0.0.1! 127.0.0.1\n",
            "oops\n",
        )
        assert len(server.heard) == 1


def test_options_behind_the_dashes_are_the_program_s(home: Home) -> None:
    with configured(home):
        done = home.run("exec", "db1", "ssh", "-q", "--", "echo", "--close", "-q", "--", "--help")
    assert done.stdout == "--close -q -- --help\n"


def test_what_the_configuration_asks_for(home: Home) -> None:
    with configured(home, more='access = ["udp/53"]') as server:
        assert home.run("exec", "db1", "--", "true").returncode == 0
    assert [str(a) for a in server.heard[0].knock.request.accesses] == ["udp/53"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("db1", "ssh"), 2, "say what to run, behind '--'"),
        (("db1", "ssh", "--"), 2, "say what to run, behind '--'"),
        (("db1", "--", "true"), 2, "say which access"),
        (("db9", "ssh", "--", "true"), 2, "no host 'db9'"),
        (("db1", "ssh", "--once", "--hold", "--", "true"), 2, "exclude each other"),
        (("db1", "ssh", "--", "no-such-program"), 127, "no program 'no-such-program'"),
        (("db1", "ssh", "--", "/etc/passwd"), 126, "/etc/passwd cannot be run"),
        (("db1", "ssh", "--", "/no/such/program"), 127, "no program '/no/such/program'"),
    ],
)
def test_usage(home: Home, arguments: tuple[str, ...], code: int, said: str) -> None:
    with configured(home) as server:
        done = home.run("exec", *arguments)
    assert done.returncode == code
    assert said in the_line(done)
    assert server.heard == []


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [(refuses(Code.NOT_NOW), 1, "not allowed at this hour"), (says_nothing, 3, "no answer")],
)
@pytest.mark.parametrize("option", ["-q", "--close", "--hold"])
def test_without_a_grant_nothing_runs(
    home: Home, script: Script, code: int, said: str, option: str
) -> None:
    proof = home.directory / "proof"
    with configured(home, script):
        done = home.run("exec", "db1", "ssh", option, *HASTE, "--", "touch", str(proof))
    assert done.returncode == code
    assert said in the_line(done)
    assert not proof.exists()


def closes_what_it_granted(heard: Heard) -> list[object]:
    closing = isinstance(heard.knock.request, Close)
    return [heard.reply(Status.CLOSED, lifetime_s=0) if closing else heard.reply()]


def test_close_names_what_the_knock_declared(home: Home) -> None:
    with configured(home, closes_what_it_granted) as server:
        done = home.run("exec", "db1", "ssh", "tcp/80", "--close", "--", "sh", "-c", "exit 3")
    assert done.returncode == 3
    knock, close = (heard.knock.request for heard in server.heard)
    assert isinstance(knock, Knock)
    assert isinstance(close, Close)
    assert (close.source, close.accesses) == (knock.source, knock.accesses)
    assert "tcp/22, tcp/80 closed for 127.0.0.1" in done.stderr


def test_only_what_was_granted_is_closed(home: Home) -> None:
    def one_of_two(heard: Heard) -> list[object]:
        reply = heard.reply()
        if isinstance(heard.knock.request, Knock):
            first, second = reply.outcomes
            refused = type(second)(second.access, Code.NO_ROLE)
            return [heard.reply(outcomes=(first, refused))]
        return [heard.reply(Status.CLOSED, lifetime_s=0)]

    with configured(home, one_of_two) as server:
        done = home.run("exec", "db1", "ssh", "tcp/80", "--close", "--", "true")
    assert done.returncode == 1
    assert [str(a) for a in server.heard[-1].knock.request.accesses] == ["tcp/22"]
    assert isinstance(server.heard[-1].knock.request, Close)


def test_a_close_that_nobody_answers_does_not_change_the_exit_code(home: Home) -> None:
    def deaf_to_closes(heard: Heard) -> list[object]:
        return [] if isinstance(heard.knock.request, Close) else [heard.reply()]

    with configured(home, deaf_to_closes):
        done = home.run("exec", "-q", "db1", "ssh", "--close", *HASTE, "--", "sh", "-c", "exit 3")
    assert done.returncode == 3
    assert "no answer from db1" in done.stderr


def test_hold_renews_while_it_runs(home: Home) -> None:
    def brief(heard: Heard) -> list[object]:
        closing = isinstance(heard.knock.request, Close)
        return [heard.reply(Status.CLOSED, lifetime_s=0) if closing else heard.reply(lifetime_s=1)]

    with configured(home, brief) as server:
        done = home.run("exec", "-q", "db1", "ssh", "--hold", "--close", "--", "sleep", "2")
    assert done.returncode == 0
    kinds = [type(heard.knock.request) for heard in server.heard]
    assert kinds[-1] is Close
    assert kinds[:-1].count(Knock) >= 3


def test_hold_says_when_it_is_refused_and_the_program_goes_on(home: Home) -> None:
    def once(heard: Heard) -> list[object]:
        if heard.nth == 1:
            return [heard.reply(lifetime_s=1)]
        return [heard.reply(Status.REFUSED, Code.NO_ROLE)]

    with configured(home, once):
        done = home.run("exec", "-q", "db1", "ssh", "--hold", "--", "sh", "-c", "sleep 2; exit 3")
    assert done.returncode == 3
    assert "refused tcp/22: no role allows it" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_without_something_to_do_behind_it_the_program_takes_the_process_over(
    home: Home, number: signal.Signals
) -> None:
    shell = "echo $$; exec sleep 30"
    with configured(home):
        process = home.start("exec", "db1", "ssh", "--", "sh", "-c", shell, stdout=-1, stderr=-1)
        pid = int(process.stdout.readline())
        assert pid == process.pid
        process.send_signal(number)
        process.communicate(timeout=10)
    assert process.returncode == -number


def test_the_pipe_signal_is_the_program_s_again(home: Home) -> None:
    """Python ignores it, and a program that inherits that would see write errors instead."""
    grep = ("grep", "SigIgn", "/proc/self/status")
    with configured(home, closes_what_it_granted):
        for option in ("-q", "--close"):
            done = home.run("exec", "-q", "db1", "ssh", option, "--", *grep)
            assert not int(done.stdout.split()[1], 16) & (1 << (signal.SIGPIPE - 1)), option


def test_a_signal_that_ends_the_program_is_in_the_exit_code(home: Home) -> None:
    with configured(home, closes_what_it_granted):
        done = home.run("exec", "-q", "db1", "ssh", "--close", "--", "sh", "-c", "kill -15 $$")
    assert done.returncode == 128 + signal.SIGTERM


def test_ctrl_c_reaches_the_program_and_the_close_is_sent(home: Home) -> None:
    """As a terminal does it: to the whole group."""
    shell = "trap 'exit 9' INT; echo ready; while :; do sleep 0.05; done"
    with configured(home, closes_what_it_granted) as server:
        argv = ("exec", "-q", "db1", "ssh", "--close", "--", "sh", "-c", shell)
        process = home.start(*argv, stdout=-1, stderr=-1, start_new_session=True)
        assert process.stdout.readline() == b"ready\n"
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=10)
        assert (process.returncode, stderr) == (9, b"")
        wait_until(lambda: isinstance(server.heard[-1].knock.request, Close))


def test_a_request_to_end_is_passed_on(home: Home) -> None:
    shell = "trap 'exit 8' TERM; echo ready; while :; do sleep 0.05; done"
    with configured(home, closes_what_it_granted):
        argv = ("exec", "-q", "db1", "ssh", "--close", "--", "sh", "-c", shell)
        process = home.start(*argv, stdout=-1, stderr=-1, start_new_session=True)
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
    assert process.returncode == 8


def test_a_program_is_found_as_a_shell_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "tool"
    program.write_text("#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotRun, match="no program 'tool'"):
        running.find_program("tool")
    program.chmod(0o755)
    assert running.find_program("tool") == str(program)
    assert running.find_program(str(program)) == str(program)


def test_the_system_s_refusal_is_one_line(tmp_path: Path) -> None:
    program = tmp_path / "tool"
    program.write_bytes(b"\x7fELF nonsense")
    program.chmod(0o755)
    with pytest.raises(CannotRun, match=r"tool cannot be run: exec format error"):
        running.watch(str(program), ["tool"], dict(os.environ))


def test_watching_leaves_the_signals_as_they_were() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    assert running.watch(sys.executable, ["python", "-c", "raise SystemExit(4)"], os.environ) == 4
    assert {number: signal.getsignal(number) for number in before} == before


def test_the_address_stands_where_it_is_written() -> None:
    argv = ["psql", "-h", "{address}", "host={address},{address} {x}"]
    assert running.with_address(argv, "::1") == ["psql", "-h", "::1", "host=::1,::1 {x}"]

"""`spa-server` where only the client was installed: it is on the PATH all the same."""

import subprocess
import sys

_WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {library!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
sys.argv = ["spa-server", "--version"]
from spa_server.program import main
main()
"""


def call_without(library: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", _WITHOUT.format(library=library)]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_without_the_servers_libraries_it_says_in_one_line_what_to_install() -> None:
    done = call_without("opening_hours")
    assert done.stdout == ""
    assert done.stderr == (
        "spa-server: this is an installation of the client alone: opening_hours is missing;"
        " on a host to be guarded: pip install '.[server]'\n"
    )
    assert done.returncode == 4


def test_with_them_it_runs() -> None:
    done = call_without("there_is_no_such_library")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("spa-server ")


def test_what_of_ours_is_missing_is_a_bug_and_no_advice() -> None:
    assert "Traceback" in call_without("keys").stderr

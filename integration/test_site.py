"""The hosts of the tests are no host of this machine's, whatever that may guard."""

import subprocess
import sys
from pathlib import Path

# A mount namespace of its own, in which /etc is a copy: a machine that is itself guarded, by a
# configuration that no program can read and a policy that lacks every role of the tests.
GUARDED = """
mount -t tmpfs none "$1" && cp -a /etc/. "$1" && mkdir -p "$1"/spa && mount --bind "$1" /etc &&
echo "no TOML" > /etc/spa/server.toml && echo "[roles.other]" > /etc/spa/policy.toml &&
exec "$2" -c "$3"
"""
USED = """
from integration.lab import Lab
from integration.site import Site

with Lab() as lab:
    site = Site(lab, lab.host("server"))
    alice = site.enrol("alice", "ops")
    site.apply_gate()
    site.start()
    site.keys("invite", "bob", "--role", "voter", "--host", "server")
    site.keys("grant", "alice", "dba")
    site.keys("ungrant", "alice", "dba")
    alice.knock(lab.host("client"), "tcp/22")
    site.keys("revoke", "alice", "--yes")
    print(site.keys("list", "--all", "--json").stdout)
"""


def test_what_the_machine_guards_is_not_the_tests_host(tmp_path: Path) -> None:
    argv = ["unshare", "-m", "sh", "-c", GUARDED, "-", tmp_path, sys.executable, USED]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"identity": "alice"' in done.stdout

"""From fwknop: a real access.conf becomes policy and invites, and both guard a host side by side.

docs/from-fwknop.md, step by step. The part with fwknopd needs it installed.
"""

import base64
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Final

import pytest

from integration.lab import Host, Lab, Reach, Running
from integration.site import PROGRAMS, Site

OPENED: Final = 22
SHUT: Final = 5432
WITHIN_S: Final = 0.5
READY: Final = "Starting fwknopd main event loop"
LIFETIME_S: Final = 3
# As an administrator of fwknop sets a host up: fwknopd's own rules come before the last one.
IPTABLES: Final = (
    "-A INPUT -i lo -j ACCEPT",
    "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
    "-A INPUT -j DROP",
)
needs_fwknop = pytest.mark.skipif(
    not all(map(shutil.which, ("fwknop", "fwknopd", "iptables"))),
    reason="fwknop-client, fwknop-server and iptables are not installed",
)


@dataclass
class Scene:
    """A host with an access.conf, and two others; alice may come from the one, not the other."""

    lab: Lab
    site: Site
    client: Host
    other: Host
    access: Path
    rijndael: str
    hmac: str

    @property
    def server(self) -> Host:
        """The guarded host."""
        return self.site.host

    @property
    def env(self) -> dict[str, str]:
        """Alice's home."""
        home = self.site.directory / "home"
        home.mkdir(exist_ok=True)
        return {"HOME": str(home), "XDG_CONFIG_HOME": ""}

    def spa_client(
        self, at: Host, *arguments: str, text: str | None = None
    ) -> CompletedProcess[str]:
        """What alice runs."""
        argv: list[str | Path] = [PROGRAMS / "spa-client", *arguments]
        return at.run(argv, env=self.env, text=text, check=False)

    def reach(self, at: Host, port: int) -> Reach:
        """What comes of connecting."""
        return at.reach_tcp(self.server.v4, port, within_s=WITHIN_S)

    def set_mode(self, mode: str) -> None:
        """Writes `mode` into server.toml, and has it put in force."""
        lines = self.site.config.read_text().splitlines()
        kept = [line for line in lines if not line.startswith("mode =")]
        self.site.config.write_text("\n".join([f'mode = "{mode}"', *kept, ""]))
        self.site.apply_gate()

    def iptables(self, *rules: str) -> None:
        """The rules of the host, beside ours."""
        self.server.run(["iptables", "-F"])
        for rule in rules:
            self.server.run(["iptables", *rule.split()])

    def start_fwknopd(self) -> Running:
        """With its defaults, as `systemctl start fwknop-server` does."""
        directory = self.access.parent
        config = directory / "fwknopd.conf"
        interface = next(iter(self.server.places.values())).interface
        config.write_text(f"PCAP_INTF {interface};\nFWKNOP_RUN_DIR {directory};\n")
        config.chmod(0o600)
        files = ("-c", config, "-a", self.access, "-d", directory / "digests", "-p")
        running = self.server.start(["fwknopd", "-f", *files, directory / "pid"])
        running.wait_for(READY, within_s=20)
        return running

    def fwknop(self, at: Host) -> None:
        """A knock of fwknop's."""
        keys = ("--key-base64-rijndael", self.rijndael, "--key-base64-hmac", self.hmac)
        where = ("-A", f"tcp/{OPENED}", "-a", str(at.v4), "-D", str(self.server.v4))
        at.run(["fwknop", *where, *keys, "--use-hmac"], env=self.env)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        server, client, other = map(lab.host, ("server", "client", "other"))
        for port in (OPENED, SHUT):
            server.serve(port)
        directory = lab.new_file("fwknop")
        directory.mkdir()
        rijndael, hmac = (base64.b64encode(secrets.token_bytes(n)).decode() for n in (32, 64))
        access = directory / "access.conf"
        access.write_text(
            f"# one person\nSOURCE {client.v4}\nOPEN_PORTS tcp/{OPENED}\n"
            f"KEY_BASE64 {rijndael}\nHMAC_KEY_BASE64 {hmac}\nFW_ACCESS_TIMEOUT {LIFETIME_S}\n"
        )
        access.chmod(0o600)
        yield Scene(lab, Site(lab, server), client, other, access, rijndael, hmac)


def open_by_fwknop(scene: Scene) -> bool:
    """Whether a knock of fwknop's opens the port, which takes it some tenths of a second."""
    scene.fwknop(scene.client)
    return any(scene.reach(scene.client, OPENED) is Reach.OPEN for _ in range(6))


@needs_fwknop
def test_side_by_side_fwknop_guards_and_we_watch(scene: Scene) -> None:
    """Both hear on udp/62201: libpcap sees a packet before nftables drops it."""
    scene.iptables(*IPTABLES)
    scene.set_mode("observe")
    scene.site.start()
    fwknopd = scene.start_fwknopd()
    try:
        assert scene.reach(scene.client, OPENED) is Reach.SILENT
        assert open_by_fwknop(scene)
        assert scene.reach(scene.client, SHUT) is Reach.SILENT
        assert scene.reach(scene.other, OPENED) is Reach.SILENT
        seen = scene.site.events("connection.would-deny")
        assert str(scene.other.v4) in {line["source"] for line in seen}
    finally:
        fwknopd.stop()
        scene.iptables()
        scene.site.stop()
        scene.set_mode("enforce")


def test_access_conf_policy_invite_join_knock(scene: Scene) -> None:
    """And in the end exactly the port is open that fwknopd opened, to the same source alone."""
    policy = scene.site.directory / "policy.toml"
    to = ("--output", str(policy), "--force", "--invite", "--host", str(scene.server.v4))
    done = scene.site.server("import-fwknop", str(scene.access), *to)
    assert scene.rijndael not in done.stdout + done.stderr + policy.read_text()
    person, line = done.stdout.split()
    assert person == "stanza1"
    scene.site.server("policy", "test")
    scene.site.apply_gate()
    scene.site.start()
    joined = scene.spa_client(
        scene.client, "join", "-", "--name", "site", "--no-passphrase", text=line
    )
    assert joined.returncode == 0, joined
    assert scene.reach(scene.client, OPENED) is Reach.SILENT
    knocked = scene.spa_client(scene.client, "knock", "site", f"tcp/{OPENED}")
    assert knocked.returncode == 0, knocked
    assert scene.reach(scene.client, OPENED) is Reach.OPEN
    assert scene.reach(scene.client, SHUT) is Reach.SILENT
    assert scene.reach(scene.other, OPENED) is Reach.SILENT
    (hole,) = scene.site.holes()
    assert (hole["identity"], hole["access"]) == ("stanza1", f"tcp/{OPENED}")
    assert hole["remaining_s"] <= LIFETIME_S
    for at, port in ((scene.client, SHUT), (scene.other, OPENED)):
        refused = scene.spa_client(at, "knock", "site", f"tcp/{port}")
        assert refused.returncode == 1, refused


@needs_fwknop
def test_and_back(scene: Scene) -> None:
    """The gate goes, fwknop's rules come back, and its knocks open the port as before."""
    scene.site.server("gate", "remove", "--yes")
    scene.iptables(*IPTABLES)
    fwknopd = scene.start_fwknopd()
    try:
        assert scene.reach(scene.client, OPENED) is Reach.SILENT
        assert open_by_fwknop(scene)
    finally:
        fwknopd.stop()
        scene.iptables()

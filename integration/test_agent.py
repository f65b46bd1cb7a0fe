"""Keys in ssh-agent, security keys, several devices and their rotation, at a real daemon.

The agent is OpenSSH's own. So is the security key, where it is installed (sk-dummy.so of Debian's
openssh-tests); another is made by the published format.
"""

import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from integration.lab import Host, Lab, Reach, echoes
from integration.site import PROGRAMS, Person, RecordSince, Site
from spa_protocol.keytext import parse_key
from tests.ssh_agents import (
    FakeAgent,
    RealAgent,
    SecurityKey,
    holding,
    public_half,
    real_agent,
    sk_provider,
    ssh_keygen,
)

pytestmark = pytest.mark.skipif(
    shutil.which("ssh-agent") is None, reason="openssh-client is needed"
)

POLICY = """
[services]
ssh = "tcp/22"
vault = "tcp/80"
postgres = "tcp/5432"

[roles.ops]
[[roles.ops.allow]]
services = ["ssh"]
lifetime = "3s"

[[roles.ops.allow]]
services = ["vault"]
lifetime = "3s"
require = ["touch"]

[roles.dba]
[[roles.dba.allow]]
services = ["postgres"]
max_lifetime = "1h"
sessions = "cut"
"""
with_sk_dummy = pytest.mark.skipif(
    sk_provider() is None, reason="OpenSSH's security key in software (openssh-tests) is needed"
)
_names = (f"person{number}" for number in count())


@dataclass
class Scene:
    """A guarded server, a client, and an agent that whoever is at the client can ask."""

    lab: Lab
    site: Site
    client: Host
    agent: RealAgent

    @property
    def server(self) -> Host:
        return self.site.host

    def person(self, *roles: str) -> Person:
        """Somebody whose key is in a file."""
        return self.site.enrol(next(_names), *roles)

    def with_agent(self, *options: str, roles: tuple[str, ...] = ("ops",)) -> Person:
        """Somebody whose key was made with these options, enrolled."""
        name = next(_names)
        person = Person(name, self.site, self.lab.new_file(f"home-{name}"))
        person.env |= self.agent.environment
        self.site.enrol_key(name, self.spa_keys(person, "generate", *options).strip(), *roles)
        return person

    def spa_keys(self, person: Person, *arguments: str) -> str:
        """What `spa-keys` prints on this person's machine."""
        options = () if arguments[0] == "show" or "--finish" in arguments else ("--no-passphrase",)
        argv = [PROGRAMS / "spa-keys", *arguments, *options]
        return self.client.run(argv, env=person.env).stdout

    def knock(self, person: Person, *arguments: str) -> CompletedProcess[str]:
        return person.knock(self.client, *arguments, check=False)

    def reach(self, port: int) -> Reach:
        return self.client.reach_tcp(self.server.v4, port)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        server, client = map(lab.host, ("server", "client"))
        for port in (22, 80, 5432):
            server.serve(port)
        site = Site(lab, server, policy=POLICY)
        site.apply_gate()
        site.start()
        place = lab.new_file("agent")
        place.mkdir()
        with real_agent(place) as agent:
            yield Scene(lab, site, client, agent)


@pytest.fixture(autouse=True)
def _closed_before(scene: Scene) -> None:
    scene.site.close_everything()


@pytest.fixture
def record(scene: Scene) -> RecordSince:
    return scene.site.record_from_now()


class TestAgent:
    def test_a_knock_signed_by_the_agent_opens_a_port(
        self, scene: Scene, record: RecordSince, tmp_path: Path
    ) -> None:
        key = ssh_keygen(tmp_path / "id")
        scene.agent.ssh_add(key)
        person = scene.with_agent("--ssh", str(public_half(key)))
        assert scene.reach(22) is Reach.SILENT
        knocked = scene.knock(person, "tcp/22")
        assert (knocked.returncode, knocked.stderr) == (0, "")
        assert scene.reach(22) is Reach.OPEN
        record.line("knock.accepted", identity=person.name, key_id=person.key_id())

    def test_without_the_key_nothing_is_sent(
        self, scene: Scene, record: RecordSince, tmp_path: Path
    ) -> None:
        key = ssh_keygen(tmp_path / "id")
        scene.agent.ssh_add(key)
        person = scene.with_agent("--ssh", str(public_half(key)))
        scene.agent.ssh_add("-d", key)
        knocked = scene.knock(person, "tcp/22")
        assert knocked.returncode == 4
        assert knocked.stderr.count("\n") == 1
        assert scene.reach(22) is Reach.SILENT
        assert record.lines("knock.accepted") == record.lines("knock.refused") == []

    def test_connect_takes_the_agent_too(self, scene: Scene, tmp_path: Path) -> None:
        key = ssh_keygen(tmp_path / "id")
        scene.agent.ssh_add(key)
        person = scene.with_agent("--ssh", str(public_half(key)))
        argv = [PROGRAMS / "spa-client", "connect", "site", "22", "--quiet"]
        done = scene.client.run(argv, env=person.env, text="hello\n")
        assert done.stdout == "hello\n"


class TestSecurityKey:
    def fake(self, scene: Scene, **how: object) -> FakeAgent:
        key = SecurityKey(seed=bytes([next(self.seeds)]) * 32)
        return FakeAgent(scene.lab.new_file("fake-agent"), holding(key, **how))

    seeds = count(1)

    def enrolled(self, scene: Scene, fake: FakeAgent) -> Person:
        name = next(_names)
        person = Person(name, scene.site, scene.lab.new_file(f"home-{name}"))
        person.env |= fake.environment
        scene.site.enrol_key(name, scene.spa_keys(person, "generate", "--agent").strip(), "ops")
        return person

    def test_touched(self, scene: Scene, record: RecordSince) -> None:
        with self.fake(scene) as fake:
            person = self.enrolled(scene, fake)
            assert scene.knock(person, "tcp/80").returncode == 0
        assert scene.reach(80) is Reach.OPEN
        record.line("knock.accepted", identity=person.name)

    def test_not_touched(self, scene: Scene, record: RecordSince) -> None:
        with self.fake(scene, flags=0) as fake:
            person = self.enrolled(scene, fake)
            refused = scene.knock(person, "tcp/80")
            assert refused.returncode == 1
            assert "touch your" in refused.stderr
            assert scene.reach(80) is Reach.SILENT
            assert scene.knock(person, "tcp/22").returncode == 0
        record.line("knock.refused", identity=person.name, access="tcp/80")

    def test_a_key_in_a_file_cannot_be_touched(self, scene: Scene) -> None:
        refused = scene.knock(scene.person("ops"), "tcp/80")
        assert refused.returncode == 1
        assert scene.reach(80) is Reach.SILENT

    def test_somebody_is_told_to_touch(self, scene: Scene) -> None:
        with self.fake(scene, after_s=0.6) as fake:
            person = self.enrolled(scene, fake)
            knocked = scene.knock(person, "tcp/80")
        assert knocked.returncode == 0
        assert knocked.stderr == "spa-client: touch your security key\n"

    def test_a_touch_that_comes_too_late_is_asked_for_again(self, scene: Scene) -> None:
        with self.fake(scene) as fake:
            person = self.enrolled(scene, fake)
            quick = fake.respond
            late = iter([21.0])

            def respond(request: bytes) -> bytes | None:
                time.sleep(next(late, 0.0))
                return quick(request)

            fake.respond = respond
            knocked = scene.knock(person, "tcp/80")
        assert knocked.returncode == 0
        assert knocked.stderr.splitlines() == [
            "spa-client: touch your security key",
            "spa-client: that came after 21 s, and the knock is stale; again, sooner",
        ]
        assert scene.reach(80) is Reach.OPEN

    @with_sk_dummy
    @pytest.mark.parametrize("is_touched", [True, False])
    def test_of_openssh(self, scene: Scene, tmp_path: Path, is_touched: bool) -> None:
        provider = sk_provider() or ""
        options = () if is_touched else ("-O", "no-touch-required")
        key = ssh_keygen(tmp_path / "id_sk", "-w", provider, *options, kind="ed25519-sk")
        scene.agent.ssh_add("-S", provider, key)
        person = scene.with_agent("--ssh", str(public_half(key)))
        assert scene.knock(person, "tcp/80").returncode == (0 if is_touched else 1)
        assert scene.reach(80) is (Reach.OPEN if is_touched else Reach.SILENT)
        assert scene.knock(person, "tcp/22").returncode == 0


class TestDevices:
    def test_each_has_a_key_of_its_own(self, scene: Scene, record: RecordSince) -> None:
        person = scene.person("ops")
        laptop = person.key_id()
        phone = person.generate("phone")
        scene.site.enrol_key(person.name, phone)
        for key in ("default", "phone"):
            assert scene.knock(person, "tcp/22", "--key", key).returncode == 0
        for key_id in (laptop, parse_key(phone)[0].key_id):
            record.line("knock.accepted", identity=person.name, key_id=key_id)
        scene.site.keys("revoke", laptop)
        assert scene.knock(person, "tcp/22", "--timeout", "0.5").returncode == 3
        assert scene.knock(person, "tcp/22", "--key", "phone").returncode == 0


class TestRotation:
    def test_the_old_key_goes_with_the_first_knock_of_the_new(
        self, scene: Scene, record: RecordSince
    ) -> None:
        person = scene.person("ops")
        old = person.key_id()
        line = scene.spa_keys(person, "rotate").strip()
        new = parse_key(line)[0].key_id
        scene.site.keys("enroll", person.name, "--key", line, "--replaces", old)
        assert scene.knock(person, "tcp/22").returncode == 0  # both are good

        refused = scene.knock(person, "tcp/5432", "--key", "default.next")
        assert refused.returncode == 1
        assert scene.knock(person, "tcp/22").returncode == 0  # a refusal proves nothing

        assert scene.knock(person, "tcp/22", "--key", "default.next").returncode == 0
        assert scene.knock(person, "tcp/22", "--timeout", "0.5").returncode == 3
        told = record.line("keys.changed", key_id=old, reason="key.revoked")
        assert told["detail"]["actor"] == f"key:{new}"

        scene.spa_keys(person, "rotate", "--finish")
        assert person.key_id() == new
        assert scene.knock(person, "tcp/22").returncode == 0

    def test_a_session_goes_on_under_the_new_key(self, scene: Scene) -> None:
        """Though it would be cut with its hole: the new key holds that now."""
        person = scene.person("dba")
        line = scene.spa_keys(person, "rotate").strip()
        scene.site.keys("enroll", person.name, "--key", line, "--replaces", person.key_id())
        assert scene.knock(person, "tcp/5432", "--lifetime", "1h").returncode == 0
        with scene.client.connection(scene.server.v4, 5432) as session:
            session.setblocking(True)
            assert echoes(session, within_s=1.0)
            options = ("--key", "default.next", "--lifetime", "1h")
            assert scene.knock(person, "tcp/5432", *options).returncode == 0
            assert scene.knock(person, "tcp/5432", "--timeout", "0.5").returncode == 3
            assert echoes(session, within_s=1.0)
        (hole,) = scene.site.holes()
        assert hole["key_id"] == parse_key(line)[0].key_id

    def test_or_when_the_overlap_ends(self, scene: Scene) -> None:
        person = scene.person("ops")
        line = scene.spa_keys(person, "rotate").strip()
        options = ("--replaces", person.key_id(), "--overlap", "2s")
        scene.site.keys("enroll", person.name, "--key", line, *options)
        assert scene.knock(person, "tcp/22").returncode == 0
        time.sleep(2.2)
        assert scene.knock(person, "tcp/22", "--timeout", "0.5").returncode == 3
        assert scene.knock(person, "tcp/22", "--key", "default.next").returncode == 0

    def test_a_daemon_that_starts_meanwhile_knows_of_it(self, scene: Scene) -> None:
        person = scene.person("ops")
        line = scene.spa_keys(person, "rotate").strip()
        scene.site.keys("enroll", person.name, "--key", line, "--replaces", person.key_id())
        scene.site.restart()
        assert scene.knock(person, "tcp/22", "--key", "default.next").returncode == 0
        assert scene.knock(person, "tcp/22", "--timeout", "0.5").returncode == 3


class TestRevoking:
    @pytest.mark.parametrize("by", ["identity", "key"])
    def test_a_cut_session_ends_within_a_second(self, scene: Scene, by: str) -> None:
        person = scene.person("dba")
        assert scene.knock(person, "tcp/5432", "--lifetime", "1h").returncode == 0
        with scene.client.connection(scene.server.v4, 5432) as session:
            session.setblocking(True)
            assert echoes(session, within_s=1.0)
            ended: list[float] = []
            watching = threading.Thread(target=until_it_ends, args=(session, ended))
            watching.start()
            what = person.name if by == "identity" else person.key_id()
            scene.site.keys("revoke", what, "--yes")
            watching.join(timeout=5)
        assert ended, "the session lives on"
        revoked_at_s = revocation(scene.site.database, person.key_id())
        took_s = ended[0] - revoked_at_s
        print(f"revoked, and cut {took_s * 1000:.0f} ms later")
        assert took_s < 1.0
        assert scene.reach(5432) is Reach.SILENT


def until_it_ends(session: socket.socket, ended: list[float]) -> None:
    """Notes when the other end is gone, as the kernel tells it."""
    session.settimeout(4)
    try:
        session.recv(1)
    except TimeoutError:
        return
    except OSError:
        pass
    ended.append(time.time())


def revocation(database: Path, key_id: str) -> float:
    """When the registry wrote it down, in seconds since 1970."""
    sql = "SELECT at_us FROM registry_change WHERE key_id = ? AND action = 'key.revoked'"
    with closing(sqlite3.connect(database)) as connection:
        ((at_us,),) = connection.execute(sql, [key_id])
    return float(at_us) / 1_000_000

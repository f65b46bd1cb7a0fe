"""A host with a past: configuration, policy, registry and a record, in a directory."""

from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from keys import identity, schema, serverkey
from keys.registry import Registry
from spa_protocol.access import Access
from spa_server import clock
from spa_server.audit import wording
from spa_server.audit.backlog import Batch
from spa_server.audit.denials import Denials, beside
from spa_server.audit.ledger import Ledger
from spa_server.audit.record import Event, Record
from spa_server.grants import Grant
from spa_server.policy.model import Sessions

DAY: Final = 86_400_000_000
SECOND: Final = 1_000_000
TARGET: Final = ip_address("10.20.0.1")

POLICY: Final = """\
[services]
ssh = "tcp/22"
postgres = "tcp/5432"
console = ["tcp/8443", "tcp/9090-9099"]
exporter = "tcp/9100"
legacy = "tcp/514"

[roles.ops]
review_by = 2026-01-31
[[roles.ops.allow]]
services = ["ssh", "console"]
lifetime = "1m"
max_lifetime = "8h"

[[roles.ops.allow]]
services = ["legacy"]
from = ["10.8.0.0/16"]

[roles.dba]
[[roles.dba.allow]]
services = ["postgres"]
from = ["10.20.0.0/16", "2001:db8:20::/48"]
when = "Mo-Su 00:00-24:00"
timezone = "Europe/Berlin"

[[always_open]]
services = ["exporter"]
from = ["10.9.0.0/24"]
"""


class Host:
    """One host; `now_us` is when it was made, and everything is told in days before."""

    def __init__(self, path: Path, policy: str = POLICY) -> None:
        self.now_us = clock.now_us()
        self.path = path
        self.config = path / "server.toml"
        self.config.write_text(
            'policy = "policy.toml"\ndatabase = "spa.db"\nkey = "server.key"\ncontrol = "c.sock"\n'
        )
        (path / "policy.toml").write_text(policy)
        key = serverkey.generate()
        self.secret = key.secret
        serverkey.save(key, path / "server.key")
        self.database = path / "spa.db"
        self.connection = schema.connect(self.database)
        self.registry = Registry(self.connection)
        self.denials = Denials(beside(self.database))
        self.ledger = Ledger(
            self.connection,
            self.registry.seen,
            unrecorded=path / "unrecorded",
            boot_id="this boot",
            denials=self.denials,
        )

    def close(self) -> None:
        """Writes what waits."""
        self.denials.close(self.now_us)
        self.connection.close()

    def ago(self, days: float) -> int:
        """Microseconds since the Unix epoch."""
        return self.now_us - round(days * DAY)

    def enrol(self, name: str, *roles: str, days_ago: float = 300, comment: str = "") -> str:
        """A new key for somebody; its id."""
        at_us = self.ago(days_ago)
        key = identity.generate().public
        self.registry.enroll(name, key, comment=comment, now_us=at_us, actor="ines", roles=roles)
        return key.key_id

    def note(self, event: Event, days_ago: float, **fields: Any) -> None:
        """A line of the record."""
        at_us = self.ago(days_ago)
        self.ledger.note([Record(event, at_us, **fields)], at_us)

    def opens(
        self, name: str, rule: str, access: str, source: str = "10.20.3.4", *, days_ago: float = 1
    ) -> Grant:
        """A hole for somebody."""
        at_us = self.ago(days_ago)
        grant = Grant(
            self.ledger.next_grant_id(),
            f"key of {name}",
            name,
            rule,
            ip_address(source),
            TARGET,
            Access.parse(access),
            False,
            Sessions.KEEP,
            at_us,
            at_us + 30 * SECOND,
            0.0,
        )
        opened = wording.granted(Event.HOLE_OPENED, grant, at_us)
        self.ledger.commit(Batch(grants=[grant], records=[opened]), at_us)
        return grant

    def uses(
        self, name: str, rule: str, access: str, source: str = "10.20.3.4", *, days_ago: float = 1
    ) -> None:
        """A hole, and a connection that comes through it."""
        grant = self.opens(name, rule, access, source, days_ago=days_ago)
        at_us = grant.opened_at_us + SECOND
        record = Record(
            Event.CONNECTION_PERMITTED,
            at_us,
            identity=name,
            key_id=grant.key_id,
            source=source,
            target=str(TARGET),
            access=access,
            rule=rule,
            grant_id=grant.grant_id,
        )
        self.ledger.note([record], at_us)

    def denies(
        self,
        source: str,
        access: str,
        count: int = 1,
        days_ago: float = 1,
        event: Event = Event.CONNECTION_DENIED,
    ) -> None:
        """Packets that were denied, or would have been."""
        detail = {"count": count} if count > 1 else {}
        self.note(event, days_ago, source=source, target=str(TARGET), access=access, detail=detail)
        self.denials.flush(self.ago(days_ago))

    def refuses(self, name: str | None, reason: str, days_ago: float = 1) -> None:
        """A knock that was refused."""
        self.note(Event.KNOCK_REFUSED, days_ago, identity=name, source="192.0.2.9", reason=reason)
        self.denials.flush(self.ago(days_ago))


def busy(host: Host) -> None:
    """Three people, a quarter of a year."""
    host.note(Event.DAEMON_STARTED, 100)
    host.note(Event.POLICY_LOADED, 100)
    host.enrol("alice", "ops", days_ago=500, comment="laptop")
    host.enrol("bob", "dba", days_ago=120)
    host.enrol("carol", "ops", "dba", days_ago=10)
    host.enrol("dave", days_ago=40)
    for days in range(1, 80, 3):
        host.uses("alice", "roles.ops.allow[0]", "tcp/22", days_ago=days)
        host.uses("bob", "roles.dba.allow[0]", "tcp/5432", "10.20.9.7", days_ago=days + 0.5)
        host.denies("203.0.113.7", "tcp/23", 40 + days, days_ago=days)
        host.denies("198.51.100.9", f"tcp/{days}", 7, days_ago=days)
    host.denies("10.20.3.9", "tcp/3306", 3, 2, Event.CONNECTION_WOULD_DENY)
    host.refuses("bob", "not-this-source")
    host.refuses("bob", "not-this-source", days_ago=5)
    host.refuses(None, "unknown-key", days_ago=3)
    host.note(Event.POLICY_REFUSED, 4, reason="policy.toml:7: unknown field `form`")
    host.note(Event.GATE_RESTORED, 6, reason="the table was gone", detail={"holes_opened": 2})

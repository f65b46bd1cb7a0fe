"""README.md's commands, typed one by one where and by whom they are meant to be typed.

What a line needs that README leaves to its reader (the host's own line, an answer to a question,
the file that it names) stands in `STEPS`, one for each line: a line of README without a step, and a
step without a line, are errors.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from integration.booted import readme
from integration.booted.company import CHECKOUT, Company
from integration.booted.machine import Said

PASSPHRASE: Final = "correct horse battery"


class Who(Enum):
    """Where a line is typed, and by whom."""

    ROOT = "root@db1"
    ALICE = "alice@laptop"


@dataclass(frozen=True, slots=True)
class Step:
    """How a line of README is typed, and what is to come of it.

    `shows` is a regular expression that is found in what the terminal shows; `until`, where Ctrl-C
    is typed, and with what status it then ends is not known. `swap` are words of
    README that stand for those of this host: their names in `Walk.words`. `after` is typed before,
    by the same person, where README takes something for granted.
    """

    who: Who
    line: str
    shows: str = ""
    status: int = 0
    answers: tuple[tuple[str, str], ...] = ()
    until: str | None = None
    swap: tuple[tuple[str, str], ...] = ()
    after: Callable[["Walk"], object] | None = None
    at: str = "~"


@dataclass
class Walk:
    """The path through README of an operator and of alice."""

    company: Company
    words: dict[str, str] = field(default_factory=dict)
    said: dict[str, Said] = field(default_factory=dict)

    def go(self, heading: str, steps: tuple[Step, ...]) -> Iterator[tuple[Step, Said]]:
        """Each line under a heading, when it has been typed."""
        written = readme.lines(heading)
        for line, step in zip(written, steps, strict=True):
            typed = " ".join(line.split("  #")[0].split())
            assert typed == step.line, f"README says {typed!r} where {step.line!r} was expected"
            yield step, self.type(step, line)

    def type(self, step: Step, line: str) -> Said:
        """Types a line of README, with what stands there for the reader's own words."""
        if step.after is not None:
            step.after(self)
        for pattern, name in step.swap:
            line, count = re.subn(pattern, lambda _, name=name: self.words[name], line)
            assert count == 1, f"{pattern!r} is not in {line!r}"
        machine = self.company.server if step.who is Who.ROOT else self.company.laptop
        user = "root" if step.who is Who.ROOT else "alice"
        answers = [(question, answer.format(**self.words)) for question, answer in step.answers]
        said = machine.at_a_terminal(line, answers, user=user, at=step.at, until=step.until)
        self.said[step.line] = said
        return said

    def root(self, line: str, text: str | None = None) -> str:
        """What the operator types that README does not say."""
        return self.company.server.type(line, text=text).stdout

    def alice(self, line: str) -> str:
        """What alice types that README does not say."""
        return self.company.laptop.type(line, user="alice").stdout


# What README leaves to its reader


def _keep_invite(walk: Walk) -> None:
    shown = walk.said["spa-keys invite alice --role admin"].shown
    walk.words["invite"] = next(line for line in shown.splitlines() if line.startswith("spa://"))


def _keep_host_line(walk: Walk) -> None:
    walk.words["host"] = f"'{walk.root('spa-server init').strip()}'"


def _make_key(walk: Walk) -> None:
    walk.words["key"] = f"'{walk.alice('spa-keys generate by-hand --no-passphrase').strip()}'"


def _let_alice_reach_postgres(walk: Walk) -> None:
    """As README says: by a role of the policy. That of README is for people in an office."""
    role = (
        '\n[roles.dba]\n[[roles.dba.allow]]\nservices = ["postgres"]\n'
        'lifetime = "30s"\nmax_lifetime = "8h"\n'
    )
    policy = walk.root("cat /etc/spa/policy.toml")
    policy = policy.replace('ssh = "tcp/22"', 'ssh = "tcp/22"\npostgres = "tcp/5432"') + role
    walk.root("cat > /etc/spa/policy.toml", text=policy)
    walk.root("spa-server reload")
    walk.root("spa-keys grant alice dba")


def _allow_carriers(walk: Walk) -> None:
    walk.root('sed -i \'s/^# carriers = .*/carriers = ["udp", "udp:53"]/\' /etc/spa/server.toml')
    walk.root("systemctl restart spa-server")


def _write_policy(walk: Walk) -> None:
    """The policy that stands in README."""
    walk.root("cat > new.toml", text="\n".join(readme.configuration("The policy")))


def _observe(walk: Walk) -> None:
    walk.root("sed -i 's/^# mode = .*/mode = \"observe\"/' /etc/spa/server.toml")
    walk.root("spa-server gate apply")
    walk.company.laptop.host.reach_tcp(walk.company.server.host.v4, 5432)


def _enforce(walk: Walk) -> None:
    walk.root("sed -i 's/^mode = .*/mode = \"enforce\"/' /etc/spa/server.toml")


def _write_access_conf(walk: Walk) -> None:
    conf = "SOURCE ANY\nOPEN_PORTS tcp/22\nKEY_BASE64 c2VjcmV0c2VjcmV0\nFW_ACCESS_TIMEOUT 30\n"
    walk.root("mkdir -p /etc/fwknop && cat > /etc/fwknop/access.conf", text=conf)


# The lines

_ROOT, _ALICE = Who.ROOT, Who.ALICE
_PASSPHRASE: Final = (("assphrase", PASSPHRASE),)
_NEW_PASSPHRASE: Final = (*_PASSPHRASE, ("same again", PASSPHRASE))
INSTALL: Final = (
    Step(_ROOT, "apt install nftables python3-venv", "Setting up nftables", at=CHECKOUT),
    Step(_ROOT, "python3 -m venv /opt/spaknock", at=CHECKOUT),
    Step(_ROOT, "/opt/spaknock/bin/pip install '.[server]'", "installed.* spaknock", at=CHECKOUT),
    Step(
        _ROOT,
        "ln -s /opt/spaknock/bin/spa-server /opt/spaknock/bin/spa-keys /usr/bin/",
        at=CHECKOUT,
    ),
    Step(
        _ROOT,
        "useradd --system --home-dir /var/lib/spa --shell /usr/sbin/nologin spa",
        at=CHECKOUT,
    ),
    Step(
        _ROOT,
        "install -m 644 packaging/systemd/spa-*.service /etc/systemd/system/",
        at=CHECKOUT,
    ),
    Step(_ROOT, "systemctl daemon-reload", at=CHECKOUT),
    Step(
        _ROOT,
        "for n in 1 5 7 8; do install -D -m 644 -t /usr/local/share/man/man$n man/*.$n; done",
        at=CHECKOUT,
    ),
    Step(_ALICE, "pipx install .", "installed package spaknock", at=CHECKOUT),
    Step(
        _ALICE,
        "install -D -m 644 -t ~/.local/share/man/man1 man/spa-client.1 man/spa-keys.1",
        at=CHECKOUT,
    ),
)
FIRST_USE: Final = (
    Step(_ROOT, "spa-server init --host db1.internal", "spa-server .* db1.internal:62201"),
    Step(_ROOT, "spa-keys invite alice --role admin", "spa://"),
    Step(_ROOT, "spa-server check", "nobody-enrolled", status=1),
    Step(_ROOT, "spa-server gate apply --confirm-within 10m", "undone in 600 s"),
    Step(_ROOT, "systemctl start spa-server"),
    Step(
        _ALICE,
        "spa-client join - --ssh",
        "the key works",
        answers=(("", "{invite}"), *_NEW_PASSPHRASE),
        after=_keep_invite,
    ),
    Step(
        _ALICE,
        "ssh db1.internal",
        r"alice@db1",
        answers=(("assphrase", PASSPHRASE), ("(yes/no", "yes"), ("$ ", "exit")),
    ),
    Step(_ROOT, "spa-server gate confirm", "stays in force"),
    Step(_ROOT, "systemctl enable spa-gate spa-server"),
    Step(
        _ALICE,
        "spa-client add db1 'spa-server O9A0Y5Sa/udq4EqQ... db1.internal:62201'",
        swap=(("'spa-server .*'", "host"),),
        after=_keep_host_line,
    ),
    Step(
        _ROOT,
        "spa-keys enroll alice --key 'spa-key AcZmqQBe... alice@laptop' --role admin --expires 90d",
        swap=(("'spa-key .*'", "key"),),
        after=_make_key,
    ),
    Step(
        _ALICE,
        "spa-keys generate --ssh ~/.ssh/id_ed25519.pub",
        "spa-key ",
        answers=_NEW_PASSPHRASE,
        after=lambda walk: walk.alice("ssh-agent -a ~/agent > /dev/null; ssh-add -q"),
    ),
    Step(
        _ALICE,
        "spa-keys generate --keyring",
        "spa-key ",
        answers=_NEW_PASSPHRASE,
        after=lambda walk: walk.alice("rm ~/.config/spa/keys/default.key"),
    ),
    Step(_ALICE, "spa-keys rotate", "spa-key ", answers=_NEW_PASSPHRASE),
    Step(
        _ALICE,
        "spa-keys export laptop.spa",
        answers=_NEW_PASSPHRASE,
    ),
    Step(
        _ALICE,
        "spa-client knock db1.internal tcp/5432",
        "tcp/5432 open",
        answers=_PASSPHRASE,
        after=_let_alice_reach_postgres,
    ),
    Step(_ALICE, "psql -h db1.internal app", "connected to db1.internal"),
    Step(_ALICE, "spa-client ssh-config --install"),
    Step(
        _ALICE,
        "spa-client exec db1.internal tcp/5432 -- psql -h db1.internal app",
        "connected to db1.internal",
        answers=_PASSPHRASE,
    ),
    Step(
        _ALICE,
        "spa-client forward 15432:db1.internal:5432",
        answers=_PASSPHRASE,
        until="15432",
    ),
    Step(
        _ALICE,
        "spa-client hold db1.internal tcp/5432",
        answers=_PASSPHRASE,
        until="open",
    ),
    Step(_ALICE, "spa-client doctor db1.internal tcp/5432", "advice", answers=_PASSPHRASE),
    Step(
        _ALICE,
        "spa-client knock db1.internal tcp/5432 --carrier udp:53",
        "tcp/5432 open",
        answers=_PASSPHRASE,
        after=_allow_carriers,
    ),
    Step(
        _ALICE,
        "spa-client knock db1.internal tcp/5432 --carrier icmp",
        "needs scapy",
        status=4,
        answers=_PASSPHRASE,
    ),
    Step(_ROOT, "spa-server holes", "alice"),
    Step(_ROOT, "spa-server sessions", "IDENTITY +FROM|No connection"),
    Step(_ROOT, "spa-server audit --since 2h", "hole.opened"),
    Step(
        _ROOT,
        "spa-server audit --denied --follow",
        until="connection.denied",
        after=lambda walk: walk.company.laptop.host.reach_tcp(walk.company.server.host.v4, 23),
    ),
    Step(_ROOT, "spa-server top", until="alice"),
    Step(_ROOT, "spa-server whois 10.20.3.4:51324", "no connection", status=1),
    Step(_ROOT, "spa-server audit export --format csv --since 30d --out november.csv", "lines"),
    Step(_ROOT, "spa-server explain alice tcp/5432 --from 10.20.3.4", "alice .* may reach"),
    Step(_ROOT, "spa-keys revoke alice", "revoked", answers=(("[y/N]", "y"),)),
    Step(_ROOT, "spa-server audit verify", "are as they were written"),
    Step(_ROOT, "spa-server audit --event anomaly.found"),
    Step(
        _ROOT, "/opt/spaknock/bin/pip install '.[server,report]'", "installed.* pygal", at=CHECKOUT
    ),
    Step(_ROOT, "spa-server report --html report.html", "Access report: db1"),
    Step(
        _ROOT,
        "usermod -aG spa carol",
        after=lambda walk: walk.root("useradd --create-home carol"),
    ),
)
POLICY: Final = (
    Step(_ROOT, "spa-server policy show", "ssh", after=_write_policy),
    Step(_ROOT, "spa-server policy test new.toml", "1 passed"),
    Step(_ROOT, "spa-server policy diff - new.toml", "gains", status=1),
    Step(_ROOT, "spa-server policy diff --since 7d", "does not say which policy", status=1),
    Step(_ROOT, "spa-server policy suggest", "the record", status=1),
    Step(_ROOT, "spa-server reload", "The policy is in force"),
)
IN_USE: Final = (
    Step(_ROOT, "spa-server audit --event connection.would-deny", "tcp/5432", after=_observe),
    Step(_ROOT, "spa-server policy suggest --least --out policy.toml"),
    Step(_ROOT, '# mode = "enforce", then:', after=_enforce),
    Step(_ROOT, "spa-server gate apply --confirm-within 60s", "undone in 60 s"),
)
FWKNOP: Final = (
    Step(
        _ROOT,
        "spa-server import-fwknop /etc/fwknop/access.conf",
        after=_write_access_conf,
    ),
)
PATH: Final = {
    "Install": INSTALL,
    "First real use": FIRST_USE,
    "The policy": POLICY,
    "On a host that is in use": IN_USE,
    "From fwknop": FWKNOP,
}

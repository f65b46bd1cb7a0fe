"""What a report says, as values. Times (`_us`) are microseconds since the Unix epoch.

Texts are as the record, the registry and the policy have them: whoever shows them escapes them.
Listings hold the latest; `left_out` says how many more there are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

from spa_server.report.buckets import Buckets


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the record, or a change to the registry, that is told by itself."""

    at_us: int
    event: str
    who: str
    what: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The latest lines of a kind, the newest first."""

    lines: tuple[Line, ...] = ()
    left_out: int = 0

    @property
    def total(self) -> int:
        """How many there are."""
        return len(self.lines) + self.left_out


@dataclass(frozen=True, slots=True)
class Found:
    """An anomaly: what it is about, how sure (0 to 1, None where it is not said), and why."""

    at_us: int
    name: str
    subject: str
    score: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Cell:
    """How one subject reaches one service.

    `rules` are numbers of `Rule`, `partial` those of them that open only some of its ports; none
    where it was reached by no rule of today. `connections` and `holes` are of the time reported.
    """

    rules: tuple[int, ...] = ()
    partial: tuple[int, ...] = ()
    connections: int = 0
    holes: int = 0


@dataclass(frozen=True, slots=True)
class Person:
    """A row of the matrix; `has_key` None where that is not a question (anybody)."""

    name: str
    roles: tuple[str, ...]
    has_key: bool | None
    cells: Mapping[str, Cell]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule by which somebody reaches something. `people` is who has its role."""

    number: int
    path: str
    line: int
    conditions: str
    people: int
    connections: int
    holes: int
    last_at_us: int | None
    review_by: date | None
    is_recorded: bool


@dataclass(frozen=True, slots=True)
class Review:
    """A role or a rule that is to be reviewed, and in how many days; negative is overdue."""

    where: str
    line: int
    due: date
    days: int


@dataclass(frozen=True, slots=True)
class Access:
    """Who reaches what by the policy in force."""

    services: Mapping[str, str]
    people: tuple[Person, ...]
    rules: tuple[Rule, ...]
    without_access: tuple[str, ...]
    reached_by_nobody: tuple[str, ...]
    reviews: tuple[Review, ...]


@dataclass(frozen=True, slots=True)
class Advice:
    """What the policy allows beyond what was used, and what to do about it."""

    where: str
    line: int
    what: str
    edit: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What one identity did with one service, or with ports that are no service's."""

    identity: str
    service: str
    sources: int
    holes: int
    connections: int
    last_at_us: int


@dataclass(frozen=True, slots=True)
class Key:
    """An enrolled key; `age_days` since its enrolment."""

    identity: str
    key_id: str
    kind: str
    state: str
    enrolled_at_us: int
    age_days: int
    expires_at_us: int | None
    last_seen_at_us: int | None
    comment: str


@dataclass(frozen=True, slots=True)
class Denied:
    """What came from one source and was denied: packets, at least; the ports, at least.

    `source` None stands for the many that were counted together.
    """

    source: str | None
    packets: int
    ports: tuple[str, ...]
    port_count: int
    first_at_us: int
    last_at_us: int
    over_time: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Denials:
    """The sources of one kind of denial, those with most packets first.

    `packets` is of the time reported, `ever` since counting began (None where that is not known);
    `shed` how many of those have no line any more.
    """

    sources: tuple[Denied, ...] = ()
    left_out: int = 0
    packets: int = 0
    ever: int | None = None
    shed: int = 0
    over_time: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        """How many sources there are."""
        return len(self.sources) + self.left_out


@dataclass(frozen=True, slots=True)
class Refusal:
    """Knocks that were refused for one reason. `people` is how many identities it met."""

    reason: str
    knocks: int
    people: int
    last_at_us: int


@dataclass(frozen=True, slots=True)
class State:
    """Whether the record is as it was written.

    `problem` says why that was not verified; empty where it was. `findings` is what was found.
    """

    problem: str = ""
    findings: tuple[str, ...] = ()
    findings_left_out: int = 0
    lines: int = 0
    first_id: int = 0
    last_id: int = 0
    digest: str = ""
    signer: str = ""
    checkpoints: int = 0
    signed_id: int = 0
    signed_at_us: int | None = None
    unsigned: int = 0
    removed_before_id: int | None = None
    removed_until_us: int | None = None

    @property
    def is_sound(self) -> bool:
        """Whether it was verified and nothing was found."""
        return not self.problem and not self.findings

    @property
    def is_signed(self) -> bool:
        """Whether a trusted key has signed any of it: a chain by itself proves little."""
        return self.signed_at_us is not None


@dataclass(frozen=True, slots=True)
class Facts:
    """All of a report. `counts` are the lines of each event, `activity` those over time."""

    title: str
    host: str
    version: str
    made_at_us: int
    since_us: int
    until_us: int
    begins_at_us: int | None
    lost: int
    warnings: tuple[str, ...]
    buckets: Buckets
    state: State
    access: Access
    findings: tuple[Advice, ...]
    remarks: tuple[Advice, ...]
    usage: tuple[Usage, ...]
    usage_left_out: int
    keys: tuple[Key, ...]
    keys_left_out: int
    ages: Mapping[str, int]
    counts: Mapping[str, int]
    activity: Mapping[str, tuple[int, ...]]
    denied: Denials
    would_deny: Denials
    refusals: tuple[Refusal, ...]
    refusals_left_out: int
    anomalies: tuple[Found, ...]
    anomalies_left_out: int
    policy_changes: Listing
    key_changes: Listing
    host_events: Listing

"""What the daemon's answers look like: what a program reads of each, and of which type.

The program that asks may be of another version than the daemon that answers, and whoever has the
socket's place may answer anything. So an answer is held against these before anything reads it
(`must_fit`, called by control.ask). What is more in an answer than stands here is for newer
programs, and is let be; what stands under `total=False` may be missing.
"""

from typing import Annotated, Any, Final, TypedDict

import msgspec

_Moment = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_999_999)]
"""Microseconds since the Unix epoch, to the end of the year 9999."""
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Seconds = Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]


class _Told(TypedDict, total=False):
    config_is_current: bool | None
    gate_in_doubt: str | None
    backstop_absence: str | None
    backstop_trouble: str | None
    hindered: str
    gate_on_trial: bool
    held_back: str | None
    trial_ends_at: str | None
    nobody_heard_until: str | None


class Status(_Told):
    """To `status`."""

    version: str
    state: str
    gate: str
    mode: str
    observed: list[str]
    record: str
    lost: _Count


class Grant(TypedDict):
    """One of `holes`: a grant, and the hole that it holds."""

    grant: int
    identity: str
    source: str
    target: str
    access: str
    once: bool
    open: bool
    remaining_s: _Seconds


class Holes(TypedDict):
    """To `holes`."""

    holes: list[Grant]


class _Flow(TypedDict):
    identity: str | None
    ambiguous: list[str]
    key_id: str | None
    rule: str | None
    grant: int | None
    source: str
    source_port: int
    target: str
    access: str
    since: str
    state: str | None
    bytes_in: int | None
    bytes_out: int | None
    packets_in: int | None
    packets_out: int | None


class Connection(_Flow):
    """One that `whois` found."""

    open_until: str | None


class _Why(TypedDict, total=False):
    why: str


class Whois(_Why):
    """To `whois`."""

    connections: list[Connection]
    remarks: list[str]


class Session(_Flow):
    """One of `sessions`."""

    grants: list[int]
    sessions: str
    ends_at: str | None


class Sessions(TypedDict):
    """To `sessions`."""

    sessions: list[Session]
    left_off: _Count
    is_complete: bool


class Cut(TypedDict):
    """To `cut`."""

    cut: _Count


class Ending(TypedDict):
    """A hole that ends soon, of `activity`."""

    identity: str
    source: str
    access: str
    once: bool
    remaining_s: _Seconds


class Knocked(TypedDict):
    """A knock, of `activity`."""

    event: str
    at_us: _Moment
    identity: str | None
    source: str | None
    access: str | None
    reason: str | None


class Denied(TypedDict):
    """What was denied to one source and port, of `activity`."""

    last_us: _Moment
    packets: _Count
    source: str | None
    access: str | None


class Activity(TypedDict):
    """To `activity`."""

    now_us: _Moment
    started_us: _Moment
    grants: _Count
    accepted: _Count
    refused: _Count
    denied: _Count
    holes: list[Ending]
    recent: list[Knocked]
    sources: list[Denied]


class Closed(TypedDict):
    """To `close`."""

    closed: _Count


class Roles(TypedDict):
    """To `reload` and `take-back`."""

    roles: _Count


class Head(TypedDict):
    """To `record`."""

    event_id: _Count
    digest: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{2})*$", max_length=128)]


class Line(TypedDict):
    """A line of the record, of `audit`."""

    id: int
    at: str
    event: str
    identity: str | None
    key_id: str | None
    source: str | None
    target: str | None
    access: str | None
    rule: str | None
    reason: str | None
    detail: dict[str, Any]


class Audit(TypedDict):
    """To `audit`."""

    is_known: bool
    lines: list[Line]
    heads: tuple[_Count, _Count]


ANSWERS: Final[dict[str, Any]] = {
    "status": Status,
    "holes": Holes,
    "whois": Whois,
    "sessions": Sessions,
    "cut": Cut,
    "activity": Activity,
    "close": Closed,
    "reload": Roles,
    "take-back": Roles,
    "record": Head,
    "audit": Audit,
}


def must_fit(do: str, answer: dict[str, Any]) -> None:
    """Raises ValueError, with what does not fit, for an answer that cannot be one to `do`."""
    if do in ANSWERS:
        msgspec.convert(answer, ANSWERS[do])

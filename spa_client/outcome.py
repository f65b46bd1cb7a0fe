"""What became of a knock, for a person and for a program.

    db1 (10.0.0.5): tcp/22 open for 10.0.0.9 until 14:03:25 (30 s)
    db1 (10.0.0.5): refused tcp/5432: no role allows it; ask an operator for a role ...

The exit code is 0 where one address at least opened everything that was asked for, or closed
something; else 1 where any address answered, else 3 where a datagram was sent, else 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from keys.trouble import ExitCode
from spa_client.carriers import Answer, Result, Silence
from spa_client.compose import Wish
from spa_protocol.carrier import UDP, Carrier, Kind
from spa_protocol.layout import Address
from spa_protocol.reason import Code, Status
from spa_protocol.reply import Outcome

_UNITS_S: Final = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_CLOCK_TOLERANCE_S: Final = 10


@dataclass(frozen=True, slots=True)
class Line:
    """One line to read; `good` ones are results, the others are what went wrong or is odd."""

    text: str
    good: bool = False


@dataclass(frozen=True, slots=True)
class Story:
    """Everything known after knocking on all addresses of a host.

    `name` is the host as the person calls it, `key_id` names the key that knocked, `port` is the
    port knocked on, which ICMP has not.
    """

    name: str
    port: int
    key_id: str
    wish: Wish
    results: Sequence[Result]
    carrier: Carrier = UDP

    @property
    def exit_code(self) -> ExitCode:
        """How the program ends: see the head of this file."""
        answers = [r for r in self.results if isinstance(r, Answer)]
        if any(fulfils(answer, self.wish) for answer in answers):
            return ExitCode.FINE
        if answers:
            return ExitCode.REFUSED
        if self._unsent:
            return ExitCode.TROUBLE
        return ExitCode.NO_ANSWER if self.wish.reply_wanted else ExitCode.FINE

    @property
    def is_shut(self) -> bool:
        """Whether a close was heard: nothing is open any more, whether or not something was."""
        answers = [r for r in self.results if isinstance(r, Answer)]
        return self.wish.closing and any(a.reply.status is Status.CLOSED for a in answers)

    @property
    def _was_shut(self) -> bool:
        return self.is_shut and self.exit_code is not ExitCode.FINE

    @property
    def _unsent(self) -> bool:
        return not any(isinstance(r, Answer) or r.datagrams for r in self.results)

    def lines(self) -> list[Line]:
        """What a person reads, one line for each thing that became of it."""
        answers = [r for r in self.results if isinstance(r, Answer)]
        silent = [r for r in self.results if isinstance(r, Silence)]
        told = [line for answer in answers for line in self._of_answer(answer)]
        if not answers:
            return [self._of_silence(silent)]
        return told + [Line(f"{self._at(s)}: no answer{_because(s)}") for s in silent]

    def _of_silence(self, silent: Sequence[Silence]) -> Line:
        where = ", ".join(f"{s.target}{_because(s)}" for s in silent)
        if self._unsent:
            return Line(f"cannot send to {self.name}: {where}; check the network and the address")
        if not self.wish.reply_wanted:
            asked = ", ".join(map(str, self.wish.accesses))
            sent = "close" if self.wish.closing else "knock"
            said = f"{sent} sent for {asked}; no reply was asked for, so what came of it is unknown"
            return Line(f"{self.name} ({where}): {said}", good=True)
        return Line(
            f"no answer from {self.name} ({where}, {self._where}); {_MAY_MEAN}, or key "
            f"{self.key_id} is not enrolled there; 'spa-client doctor {self.name}' looks closer"
        )

    @property
    def knocked_on(self) -> str:
        """The protocol and port that was knocked on, for a person."""
        if self.carrier.kind is Kind.ICMP:
            return str(self.carrier.kind)
        return f"{self.carrier.kind}/{self.port}"

    @property
    def _where(self) -> str:
        allowed = "" if self.carrier == UDP else ", if the server allows it"
        return f"{self.knocked_on}{allowed}"

    def _of_answer(self, answer: Answer) -> list[Line]:
        reply, at = answer.reply, self._at(answer)
        if reply.status is Status.CLOCK:
            return [Line(f"{at}: refused: {_of_clock(answer)}; set the clock right")]
        if self.wish.closing and reply.status is Status.CLOSED:
            asked = ", ".join(map(str, self.wish.accesses))
            if not reply.outcomes:
                return [Line(f"{at}: nothing was open at {asked}{_for(answer)}")]
            lines = [Line(f"{at}: {asked} closed{_for(answer)}", good=True)]
        else:
            lines = [self._of_outcome(answer, outcome) for outcome in reply.outcomes]
        if not lines:
            lines = [Line(f"{at}: {_STATUSES[reply.status]}")]
        if not any(reply.message in line.text for line in lines):
            lines.append(Line(f"{at}: the server says: {reply.message}"))
        return lines + self._oddities(answer)

    def _of_outcome(self, answer: Answer, outcome: Outcome) -> Line:
        at, access = self._at(answer), outcome.access
        if outcome.code is not Code.GRANTED:
            hint = _hint(outcome.code, answer, self.key_id)
            return Line(f"{at}: refused {access}: {outcome.code.sentence}{hint}")
        if answer.reply.status is not Status.GRANTED or self.wish.closing:
            return Line(f"{at}: {access}: {_STATUSES[answer.reply.status]}")
        once = " once" if self.wish.once else ""
        until = _clock_time(answer.received_at_us, outcome.lifetime_s)
        lasting = duration(outcome.lifetime_s)
        return Line(f"{at}: {access} open{once}{_for(answer)} until {until} ({lasting})", good=True)

    def _oddities(self, answer: Answer) -> list[Line]:
        """What worked, but may explain why the next thing does not."""
        declared, seen = answer.datagram.source, answer.reply.source
        if not fulfils(answer, self.wish):
            return []
        lines = []
        if declared and seen and declared != seen:
            hint = "where connecting fails, knock with --source none"
            lines.append(f"declared {declared}, but the server saw {seen}; {hint}")
        if abs(clock_lead_s(answer)) > _CLOCK_TOLERANCE_S:
            lines.append(f"{_of_clock(answer)}; set the clock right before it matters")
        return [Line(f"{self._at(answer)}: {line}") for line in lines]

    def _at(self, result: Result) -> str:
        target = str(result.target)
        return target if target == self.name else f"{self.name} ({target})"

    def as_json(self) -> dict[str, Any]:
        """One object; times are RFC 3339 in the local zone."""
        code = self.exit_code
        return {
            "host": self.name,
            "result": "nothing open" if self._was_shut else _result_word(code, self.wish),
            "exit_code": int(code),
            "key_id": self.key_id,
            "addresses": [result_json(r) for r in self.results],
        }


_MAY_MEAN: Final = (
    "a server is silent to all it does not know: the server line may be another server's, the port "
    "wrong, UDP blocked on the way, this clock minutes off"
)

_STATUSES: Final = {
    Status.GRANTED: "granted, without saying what",
    Status.REFUSED: "refused",
    Status.CLOCK: "refused for the clock",
    Status.JOINED: "an answer to another request",
    Status.JOIN_REFUSED: "an answer to another request",
    Status.UNAVAILABLE: "the gate is unavailable; try again, or tell an operator",
    Status.CLOSED: "closed",
    Status.PENDING: "waits for somebody's approval",
}


_HINTS: Final = {
    Code.DECLARE_SOURCE: "; add --source with this machine's address",
    Code.TOO_MANY: "; give some back with 'spa-client close', or wait",
    Code.NOT_A_TARGET: "; see --source and --target",
    Code.UNAVAILABLE: "; try again, or tell an operator",
}


def fulfils(answer: Answer, wish: Wish) -> bool:
    """Whether the reply says that everything asked for is open at this address, or that a close
    has closed something there."""
    reply = answer.reply
    if wish.closing:
        return reply.status is Status.CLOSED and bool(reply.outcomes)
    granted = {o.access for o in reply.outcomes if o.code is Code.GRANTED}
    return reply.status is Status.GRANTED and granted.issuperset(wish.accesses)


def clock_lead_s(answer: Answer) -> float:
    """By how many seconds the server's clock is ahead of this one (negative: behind).

    The server is taken to have answered halfway between sending and receiving.
    """
    halfway_us = (answer.datagram.sent_at_us + answer.received_at_us) // 2
    return (answer.reply.server_time_us - halfway_us) / 1_000_000


def duration(seconds: int) -> str:
    """`30 s`, `15 min`, `1 h 30 min`: at most two units, nothing rounded up."""
    parts = []
    for size_s, unit in _UNITS_S:
        count, seconds = divmod(seconds, size_s)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def _of_clock(answer: Answer) -> str:
    lead_s = clock_lead_s(answer)
    side = "behind" if lead_s > 0 else "ahead of"
    return f"your clock is {abs(lead_s):.0f} s {side} the server's"


def _hint(code: Code, answer: Answer, key_id: str) -> str:
    """What to do about a refusal."""
    seen = answer.reply.source
    if code in (Code.NO_ROLE, Code.EXPIRED):
        return f"; ask an operator, key id {key_id}"
    if code in (Code.NOT_FROM_HERE, Code.SHARED_SOURCE):
        return f" ({holder(answer)}); knock from another network, or see --source"
    if code is Code.DECLARE_SOURCE and seen:
        return f"; the server saw {seen}: if that is yours alone, add --source {seen}"
    return _HINTS.get(code, "")


def holder(answer: Answer) -> Address | None:
    """The address that a hole is for: the one declared, else the one the server saw."""
    return answer.datagram.source or answer.reply.source


def _for(answer: Answer) -> str:
    address = holder(answer)
    return f" for {address}" if address else ""


def _because(silence: Silence) -> str:
    return f": {silence.error}" if silence.error else ""


def _moment(received_at_us: int, lifetime_s: int) -> datetime:
    return datetime.fromtimestamp(received_at_us // 1_000_000 + lifetime_s).astimezone()


def _clock_time(received_at_us: int, lifetime_s: int) -> str:
    now, until = _moment(received_at_us, 0), _moment(received_at_us, lifetime_s)
    return until.strftime("%H:%M:%S" if until.date() == now.date() else "%Y-%m-%d %H:%M:%S")


def _result_word(code: ExitCode, wish: Wish) -> str:
    if code is ExitCode.FINE:
        done = "closed" if wish.closing else "granted"
        return done if wish.reply_wanted else "sent"
    return {ExitCode.REFUSED: "refused", ExitCode.NO_ANSWER: "no answer"}.get(code, "not sent")


def result_json(result: Result) -> dict[str, Any]:
    """What became of one address."""
    shared = {"address": str(result.target), "port": result.target.port}
    if isinstance(result, Silence):
        return {**shared, "status": None, "sent": result.datagrams, "error": result.error or None}
    reply, declared = result.reply, result.datagram.source
    return {
        **shared,
        "status": reply.status.name.lower().replace("_", " "),
        "source": _text(holder(result)),
        "declared_source": _text(declared),
        "seen_source": _text(reply.source),
        "seen_target": _text(reply.target),
        "clock_lead_s": round(clock_lead_s(result), 3),
        "round_trip_ms": round((result.received_at_us - result.datagram.sent_at_us) / 1000, 3),
        "message": reply.message,
        "accesses": [_outcome_json(result, outcome) for outcome in reply.outcomes],
    }


def _outcome_json(answer: Answer, outcome: Outcome) -> dict[str, Any]:
    granted = outcome.code is Code.GRANTED and outcome.lifetime_s
    until = _moment(answer.received_at_us, outcome.lifetime_s).isoformat() if granted else None
    return {
        "access": str(outcome.access),
        "code": outcome.code.name.lower().replace("_", "-"),
        "reason": outcome.code.sentence,
        "lifetime_s": outcome.lifetime_s,
        "until": until,
    }


def _text(address: Address | None) -> str | None:
    return str(address) if address else None

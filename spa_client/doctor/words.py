"""Each finding in words."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from keys.identity import Identity
from spa_client.carriers import Answer
from spa_client.config import Host
from spa_client.doctor.findings import AddressFound, Examination, Finding, Mark, PortFound, Reach
from spa_client.outcome import clock_lead_s, duration
from spa_client.resolve import Target
from spa_protocol.access import Access
from spa_protocol.reason import Code, Status
from spa_protocol.reply import Outcome

CLOCK_ODD_S: Final = 10.0
CLOCK_UNHEARD_S: Final = 600
CLOCK_ASKED_DAYS: Final = 3
_CLOCK_TOLD_S: Final = 1.0
_PORTS: Final = {
    Reach.OPEN: (Mark.OK, "answers"),
    Reach.REFUSED: (Mark.BAD, "is reached, and nothing listens there (connection refused)"),
    Reach.SILENT: (Mark.BAD, "is granted, but nothing comes back"),
    Reach.ERROR: (Mark.BAD, "is granted, but connecting fails"),
}


def of_config(path: Path, host: Host) -> Finding:
    """The configuration, and what it says of the host."""
    return Finding("config", Mark.OK, f"{path}: {host.name} knocks on {host.knocks_on}")


def of_open_config(path: Path) -> Finding:
    """A configuration that others may write."""
    text = f"{path} may be written by others, who could put another server there; run: chmod 600"
    return Finding("config", Mark.ODD, text)


def of_key(path: Path, opened: Identity) -> Finding:
    """The key, which could be opened."""
    touch = ", touched at each knock" if opened.needs_touch else ""
    return Finding("key", Mark.OK, f"{path}: key {opened.public.key_id}{touch}")


def of_name(host: Host, targets: Sequence[Target]) -> Finding:
    """The addresses of the host."""
    return Finding("name", Mark.OK, f"{host.address}: {', '.join(map(str, targets))}")


def of_route(address: AddressFound) -> Finding:
    """Which of this machine's addresses packets leave from."""
    if address.own is None:
        return Finding("route", Mark.BAD, f"{address.target}: {address.problem}")
    return Finding("route", Mark.OK, f"{address.target} from {address.own}")


def of_reply(found: Examination) -> Finding:
    """Whether the knock was answered, and how many of those that measure the way."""
    if not found.answered:
        where = ", ".join(f"{a.target}{_because(a.error)}" for a in found.addresses)
        return Finding("reply", Mark.BAD, f"none from {where}")
    text = ", ".join(f"{found_at.target} {_of_address(found_at)}" for found_at in found.addresses)
    silent = len(found.answered) < len(found.addresses)
    return Finding("reply", Mark.ODD if found.lost or silent else Mark.OK, text)


def _of_address(address: AddressFound) -> str:
    answer = address.answer
    if answer is None:
        return f"is silent{_because(address.error)}"
    took_ms = (answer.received_at_us - answer.datagram.sent_at_us) / 1000
    said = f"answered in {took_ms:.1f} ms"
    if not address.probes:
        return said
    heard = sum(isinstance(result, Answer) for result in address.probes)
    return f"{said}; {heard} of {len(address.probes)} further ones answered"


def of_clock(answer: Answer) -> Finding:
    """This machine's clock against the server's."""
    lead_s = clock_lead_s(answer)
    text = f"within {_CLOCK_TOLD_S:.0f} s of the server's"
    if abs(lead_s) >= _CLOCK_TOLD_S:
        text = f"{abs(lead_s):.0f} s {'behind' if lead_s > 0 else 'ahead of'} the server's"
    bad = answer.reply.status is Status.CLOCK
    mark = Mark.BAD if bad else Mark.ODD if abs(lead_s) > CLOCK_ODD_S else Mark.OK
    return Finding("clock", mark, text)


def of_unheard_clock(found: Examination, *, asked: bool) -> Finding:
    """This machine's clock, where no knock was answered; `asked` is whether by other times."""
    here = f"this machine's says {shown_time(found.clock_s)}"
    if found.lead_s is not None and abs(found.lead_s) > CLOCK_ODD_S:
        side = "behind" if found.lead_s > 0 else "ahead of"
        off = duration(round(abs(found.lead_s)))
        return Finding("clock", Mark.BAD, f"{here}, {off} {side} the server's")
    if found.newer is not None:
        return Finding("clock", Mark.BAD, f"{here}, before {found.newer} was written")
    unheard = f"were it more than {CLOCK_UNHEARD_S // 60} min off, the server would hear nothing"
    tried = (
        f"; none of the times within {CLOCK_ASKED_DAYS} days of it was answered" if asked else ""
    )
    return Finding("clock", Mark.SKIPPED, f"{here}: {unheard}{tried}")


def shown_time(at_s: float) -> str:
    """`2026-11-24 18:50 UTC`, from seconds since 1970."""
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M} UTC"


def of_source(address: AddressFound, answer: Answer) -> Finding:
    """The address that the server saw, against the own one and the one that was declared."""
    seen = " and ".join(map(str, address.seen)) or "none"
    declared = answer.datagram.source
    named = f"; the knock declared {declared}" if declared else ""
    if address.is_carrier_grade:
        text = f"the server saw {seen}, this machine is {address.own}: a NAT of many addresses"
        return Finding("source", Mark.ODD, text + named)
    if address.is_misdeclared:
        return Finding("source", Mark.ODD, f"the server saw {seen}{named}")
    if address.is_translated:
        text = f"the server saw {seen}, this machine is {address.own}: there is a NAT between"
        return Finding("source", Mark.OK, text)
    return Finding("source", Mark.OK, f"the server saw {seen}, this machine's own address")


def of_policy(answer: Answer, found: Examination) -> Iterator[Finding]:
    """What the server said to each access."""
    reply = answer.reply
    for outcome in reply.outcomes:
        yield _of_outcome(outcome, reply.message)
    if not reply.outcomes and reply.status is not Status.CLOCK:
        said = f": {reply.message}" if reply.message else ""
        yield Finding("policy", Mark.BAD, f"{reply.status.name.lower()}{said}")
    elif not reply.outcomes:
        asked = ", ".join(map(str, found.wish.accesses))
        yield Finding("policy", Mark.SKIPPED, f"{asked}: not looked at, because of the clock")


def _of_outcome(outcome: Outcome, message: str) -> Finding:
    if outcome.code is Code.GRANTED:
        text = f"{outcome.access} is granted for {duration(outcome.lifetime_s)}"
        return Finding("policy", Mark.OK, text)
    said = f" ({message})" if message and message not in outcome.code.sentence else ""
    return Finding("policy", Mark.BAD, f"{outcome.access}: {outcome.code.sentence}{said}")


def of_port(address: AddressFound, port: PortFound) -> Finding:
    """Whether a granted port answers."""
    at = f"{_name(port.access)} of {address.target}"
    if port.reach is Reach.UNASKED:
        return Finding("port", Mark.SKIPPED, f"{at}: only TCP can be tried from here")
    mark, what = _PORTS[port.reach]
    took = f" in {port.took_ms:.1f} ms" if port.reach is Reach.OPEN else ""
    error = f": {port.error}" if port.reach is Reach.ERROR else ""
    return Finding("port", mark, f"{at} {what}{took}{error}")


def of_unasked_port(address: AddressFound, port: PortFound) -> Finding:
    """Whether a port answers that nobody has opened."""
    at = f"{_name(port.access)} of {address.target}"
    if port.reach is Reach.SILENT:
        return Finding("port", Mark.SKIPPED, f"{at} is silent too, as a closed gate is")
    what = {Reach.OPEN: "answers", Reach.REFUSED: "refuses"}.get(port.reach, port.error)
    return Finding("port", Mark.ODD, f"{at} {what}, though no knock was answered")


def of_close(address: AddressFound, access: Access) -> Finding:
    """What a close without a reply has done to such a port."""
    at = f"{_name(access)} of {address.target}"
    if address.closed:
        return Finding("port", Mark.BAD, f"{at} is silent behind a close: the knock had opened it")
    return Finding("port", Mark.ODD, f"{at} answers behind a close, too")


def of_unopened(address: AddressFound, access: Access) -> Finding:
    """What strangers get from the host: from a port that nobody has asked to be opened."""
    at = f"{_name(access)} of {address.target}, which nobody opened,"
    if address.unopened is Reach.SILENT:
        return Finding("port", Mark.SKIPPED, f"{at} is silent: there is a gate or a firewall")
    what = "answers" if address.unopened is Reach.OPEN else "refuses, as without a gate"
    return Finding("port", Mark.ODD, f"{at} {what}")


def _name(access: Access) -> str:
    if access.size == 1:
        return str(access)
    return f"{access.protocol.label}/{access.first} (of {access})"


def _because(error: str) -> str:
    return f" ({error})" if error else ""

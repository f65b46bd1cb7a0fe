"""One diagnosis and one sentence of advice, from all that was found.

The first of these that holds is said:

1.  The examination ended early: the configuration, the key or the name is the trouble.
2.  Everything asked for works at one address. Then what may trouble later: another address that
    does not work, packets that get lost, a clock that is about to be refused; else all is well.
3.  No address answered. The clock first, where an answer to another time or a file that is newer
    shows that it is wrong. The port answers all the same: where a close shuts it, the knock had
    arrived, and replies get lost. Else what a port does that nobody has opened tells a host
    without a gate, which may be another than the name should lead to, from one with a gate where
    an earlier hole is open, or the port is open to all. Which it is, is said with "or": nobody is
    advised to connect to a host that has not proved which it is. Or the network says no (by ICMP,
    which anybody can forge: it is told, and nothing else is concluded from it). Or there is
    silence, whose causes nobody can tell apart from outside: a gate is silent to whoever it does
    not know.
4.  An address answered, and refused: the clock first, then the reason that the server gives.
5.  All is granted and the port does not answer. It is reached where it refuses. Where nothing comes
    back, the hole may be for another address than the connection comes from: one was declared that
    the server does not see, or a NAT uses several. Else something between drops it.

Nothing here takes an address from a reply and signs it: where one would help, the person is told
how to give it by --source.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from keys.trouble import ExitCode
from spa_client.carriers import Answer
from spa_client.doctor.findings import AddressFound, Examination, PortFound, Reach
from spa_client.doctor.words import CLOCK_ODD_S, CLOCK_UNHEARD_S, shown_time
from spa_client.outcome import clock_lead_s, duration
from spa_protocol.reason import Code, Status
from spa_protocol.reply import Outcome


class Diagnosis(StrEnum):
    """What is the matter."""

    CONFIG = "config"
    KEY = "key"
    NAME = "name"
    ROUTE = "route"
    FINE = "fine"
    PARTLY = "one address only"
    LOSS = "loss"
    CLOCK_DRIFTS = "clock drifts"
    REJECTED = "rejected"
    REPLIES_LOST = "replies lost"
    NO_GATE = "no gate"
    OPEN_ALREADY = "open already"
    SILENT = "silent"
    CLOCK = "clock"
    UNAVAILABLE = "unavailable"
    REFUSED = "refused"
    NO_SERVICE = "no service"
    MISDECLARED = "misdeclared"
    CARRIER_NAT = "carrier nat"
    PORT_BLOCKED = "port blocked"


@dataclass(frozen=True, slots=True)
class Advice:
    """The diagnosis, the sentence, and how the program ends."""

    diagnosis: Diagnosis
    sentence: str
    exit_code: ExitCode = ExitCode.REFUSED


def advise(found: Examination) -> Advice:
    """The rules at the head of this file."""
    if found.trouble is not None:
        exit_code = ExitCode(found.trouble.exit_code)
        return Advice(_ENDED[found.ended_at], f"{found.trouble}", exit_code)
    working = [address for address in found.addresses if _works(address, found)]
    if working:
        return _of_working(working, found)
    if not found.answered:
        return _of_silence(found)
    blocked = next((a for a in found.answered if _is_granted(a, found)), None)
    return _of_port(blocked, found) if blocked else _of_refusal(found)


_ENDED: Final = {"config": Diagnosis.CONFIG, "key": Diagnosis.KEY, "name": Diagnosis.NAME}


def _is_granted(address: AddressFound, found: Examination) -> bool:
    return all(address.granted(access) for access in found.wish.accesses)


def _works(address: AddressFound, found: Examination) -> bool:
    reached = all(port.reach in (Reach.OPEN, Reach.UNASKED) for port in address.ports)
    return _is_granted(address, found) and reached


def _of_working(working: list[AddressFound], found: Examination) -> Advice:
    others = [address for address in found.addresses if address not in working]
    if others:
        names = " and ".join(str(address.target) for address in others)
        version = working[0].target.address.version
        spare = f"; -{version} spares you the wait for it" if _other_family(working, others) else ""
        return Advice(
            Diagnosis.PARTLY,
            f"it works by {working[0].target}, but not by {names}{spare}",
            ExitCode.FINE,
        )
    if found.lost:
        return Advice(
            Diagnosis.LOSS,
            f"it works, but of {found.sent} knocks or their replies {found.lost} were lost on the "
            "way: give --timeout 10 where a knock goes unanswered, and look at the network",
            ExitCode.FINE,
        )
    lead_s = max((clock_lead_s(a.answer) for a in working if a.answer), key=abs)
    if abs(lead_s) > CLOCK_ODD_S:
        return Advice(
            Diagnosis.CLOCK_DRIFTS,
            f"it works, but {_clock(lead_s)}: set it right before knocks are refused for it",
            ExitCode.FINE,
        )
    return Advice(Diagnosis.FINE, "everything works: connect as usual", ExitCode.FINE)


def _other_family(working: list[AddressFound], others: list[AddressFound]) -> bool:
    versions = {address.target.address.version for address in working}
    return not versions & {address.target.address.version for address in others}


def _of_silence(found: Examination) -> Advice:
    first = found.addresses[0]
    port = found.story.knocked_on if found.story else f"udp/{first.target.port}"
    if all(address.own is None for address in found.addresses):
        sentence = f"this machine has no way to {first.target}: {first.problem}; mend its network"
        return Advice(Diagnosis.ROUTE, sentence, ExitCode.TROUBLE)
    wrong = _wrong_clock(found)
    if wrong:
        sentence = f"{wrong}, so the server hears no knock: set this machine's clock right"
        return Advice(Diagnosis.CLOCK, sentence, ExitCode.NO_ANSWER)
    if any(address.closed for address in found.addresses):
        sentence = (
            f"the knocks arrive and open the port, but no reply gets back: a firewall on the way "
            f"drops what comes from {port}; have it let through, and connect as usual meanwhile"
        )
        return Advice(Diagnosis.REPLIES_LOST, sentence, ExitCode.NO_ANSWER)
    reached = (Reach.OPEN, Reach.REFUSED)
    answering = [(a, p) for a in found.addresses for p in a.ports if p.reach in reached]
    if answering:
        return _of_answering(*answering[0], found)
    error = next((address.error for address in found.addresses if address.error), "")
    if error:
        sentence = (
            f"the network answers for the server ({error}): a firewall on the way rejects {port}, "
            "or no gate is there; ask whoever runs it"
        )
        return Advice(Diagnosis.REJECTED, sentence, ExitCode.NO_ANSWER)
    sentence = (
        f"no knock was answered: try from another network, and where that works {port} is blocked "
        "on the way (--carrier udp:53 may pass, if the server allows it); where it does not, ask "
        f"the operator whether key {found.key_id} is enrolled there and the daemon runs; this "
        f"machine's clock says {shown_time(found.clock_s)}: were that more than "
        f"{CLOCK_UNHEARD_S // 60} min off, no knock would be heard (--clock finds out)"
    )
    return Advice(Diagnosis.SILENT, sentence, ExitCode.NO_ANSWER)


def _wrong_clock(found: Examination) -> str:
    """What is wrong with this machine's clock, that no knock was heard; empty where unknown."""
    if found.lead_s is not None:
        return _clock(found.lead_s) if abs(found.lead_s) > CLOCK_UNHEARD_S / 2 else ""
    if found.newer is not None:
        here = shown_time(found.clock_s)
        return f"this machine's clock says {here}, before {found.newer} was written"
    return ""


def _of_answering(address: AddressFound, port: PortFound, found: Examination) -> Advice:
    """A port that answers, though nobody has answered a knock."""
    name = found.host.address if found.host else found.written
    what = f"no knock was answered, yet {port.access} of {address.target} answers without one"
    if address.unopened is Reach.SILENT:
        sentence = (
            f"{what}, while a port that nobody opened is silent: a hole of before is still open, "
            "or that port is open to all; to learn why no knock is heard, ask the operator whether "
            f"key {found.key_id} is enrolled there and the daemon runs"
        )
        return Advice(Diagnosis.OPEN_ALREADY, sentence, ExitCode.NO_ANSWER)
    sentence = (
        f"{what}: {name} leads to another machine than the one of the server line, or no gate "
        f"stands there; ask the operator whether {address.target} is its address, before you "
        "connect and give anything away"
    )
    return Advice(Diagnosis.NO_GATE, sentence, ExitCode.NO_ANSWER)


def _of_refusal(found: Examination) -> Advice:
    answers = [address.answer for address in found.answered if address.answer]
    clock = next((a for a in answers if a.reply.status is Status.CLOCK), None)
    if clock is not None:
        sentence = f"{_clock(clock_lead_s(clock))}: set this machine's clock right"
        return Advice(Diagnosis.CLOCK, sentence)
    for code, words in _BY_CODE.items():
        refused = [(a, o) for a in answers for o in a.reply.outcomes if o.code is code]
        if refused:
            diagnosis = Diagnosis.UNAVAILABLE if code is Code.UNAVAILABLE else Diagnosis.REFUSED
            return Advice(diagnosis, _filled(words, refused, found))
    if Status.UNAVAILABLE in found.statuses:
        return Advice(Diagnosis.UNAVAILABLE, _BY_CODE[Code.UNAVAILABLE])
    said = next((a.reply.message for a in answers if a.reply.message), "") or "it does not say why"
    return Advice(Diagnosis.REFUSED, f"the server refuses ({said}): ask its operator")


def _filled(words: str, refused: list[tuple[Answer, Outcome]], found: Examination) -> str:
    answer, outcome = refused[0]
    sentence = words.format(
        asked=", ".join(dict.fromkeys(str(each.access) for _, each in refused)),
        key_id=found.key_id,
        seen=answer.reply.source,
        holder=answer.datagram.source or answer.reply.source,
    )
    message = answer.reply.message
    adds = message and message not in outcome.code.sentence
    return f"{sentence} (it says: {message})" if adds else sentence


_BY_CODE: Final = {
    Code.NO_ROLE: "no role of yours allows {asked}: ask the operator for one, key {key_id}",
    Code.EXPIRED: "what allowed {asked} has expired: ask the operator to renew it",
    Code.DECLARE_SOURCE: "the policy wants the source declared: if {seen}, which the server saw, "
    "is an address of yours alone, knock with --source {seen}",
    Code.NOT_FROM_HERE: "the policy does not allow {asked} from {holder}: connect from a network "
    "that it names",
    Code.SHARED_SOURCE: "{holder}, for which it would be opened, is shared by many: connect from "
    "another network, or around the proxy",
    Code.NOT_NOW: "the policy does not allow {asked} at this hour: try again when it does",
    Code.TOUCH: "the policy wants a security key that is touched: knock with that one",
    Code.TOO_MANY: "you have too many open: close some with 'spa-client close', or wait",
    Code.NOT_A_TARGET: "the server opens nothing between these addresses: see --source, --target",
    Code.UNAVAILABLE: "the gate is unavailable: try again, and tell its operator",
}


def _of_port(address: AddressFound, found: Examination) -> Advice:
    failed = next(p for p in address.ports if p.reach not in (Reach.OPEN, Reach.UNASKED))
    access, at = failed.access, address.target
    if failed.reach is Reach.REFUSED:
        sentence = (
            f"the gate opens and {at} is reached, but nothing listens on {access}: have the "
            "service started, or ask for the right port"
        )
        return Advice(Diagnosis.NO_SERVICE, sentence)
    if failed.reach is Reach.ERROR:
        sentence = f"{access} is open, but the network says: {failed.error}; ask whoever runs it"
        return Advice(Diagnosis.PORT_BLOCKED, sentence)
    seen = " and ".join(map(str, address.seen))
    if address.is_misdeclared:
        sentence = (
            f"{access} was opened for {address.holder}, which the knock declared, but the server "
            f"saw {seen}: knock with --source none"
        )
        return Advice(Diagnosis.MISDECLARED, sentence)
    if address.is_carrier_grade:
        sentence = (
            f"{access} was opened for {address.holder}, but behind a NAT of many addresses (the "
            f"server saw {seen}) connections may leave from another: find out by which address "
            "web sites see you, and if it is yours alone, give that by --source"
        )
        return Advice(Diagnosis.CARRIER_NAT, sentence)
    return Advice(Diagnosis.PORT_BLOCKED, _blocked(address, found, str(access)))


def _blocked(address: AddressFound, found: Examination, access: str) -> str:
    sentence = (
        f"the gate opened {access} for {address.holder}, and nothing comes back: a firewall "
        f"between here and {address.target} drops it, or the service is down"
    )
    if found.lost:
        sentence += f" (of {found.sent} knocks {found.lost} were lost, too)"
    elif address.is_translated:
        sentence += "; should your NAT use another address for connections, give it by --source"
    return f"{sentence}; ask the operator whether the record shows a denied connection"


def _clock(lead_s: float) -> str:
    side = "behind" if lead_s > 0 else "ahead of"
    off_s = round(abs(lead_s))
    off = f"{off_s} s" if off_s < CLOCK_UNHEARD_S else duration(off_s)
    return f"this machine's clock is {off} {side} the server's"

"""The reception: what is done with a batch of datagrams, in the one order that is safe.

    judge -> rule -> commit (burned, grants, record) -> open the holes -> answer

1.  A request is judged against everything before it in the same batch: a copy is a replay.
2.  Nothing opens and no byte is answered before the ledger has committed.
3.  Where the ledger or the firewall fails, nothing is granted, the answer says unavailable, the
    record says why, and the daemon lives.
4.  A close or a join acts on what came before it, so it is settled by itself, in its turn.
5.  A key that replaces another ends it when it is first granted something, once that is
    answered: so it has proven that it works.
6.  The record says from where a request came, whatever source it declares, and by which carrier,
    unless that is UDP to the knock port. What came by another under a tag that nobody has is no
    request, but a ping or a question to a DNS server.
7.  What comes under a key's tag and is not the key's is counted against the tag, at once: the key
    may need its spare tags for its very next knock.
8.  Requests are counted by identity, and joins by invite. Too many within a minute are burned,
    answered and refused, and touch nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final, Protocol, TypeAlias

import msgspec

from spa_protocol.carrier import name_of
from spa_protocol.knock import AuthenticKnock, Close, Join, Knock
from spa_protocol.layout import DEFAULT_FRESHNESS_S, DEFAULT_PORT, TAG_SIZE, text_of
from spa_protocol.publickey import Sender
from spa_protocol.reason import Code, Reason, Status
from spa_protocol.reply import Reply
from spa_server import ruling as rulings
from spa_server.admission import Admission
from spa_server.audit import wording
from spa_server.audit.backlog import Batch
from spa_server.audit.ledger import Ledger, LedgerError
from spa_server.audit.record import Event, Record
from spa_server.audit.wording import Repeated
from spa_server.capture.datagram import Datagram
from spa_server.doorkeeper import Moment, Verdict, judge
from spa_server.firewall.kernel import FirewallError
from spa_server.floods import Floods
from spa_server.grants import Grant
from spa_server.holekeeper import HoleKeeper
from spa_server.meter import Meter
from spa_server.pace import Pace
from spa_server.replay import ReplayWindow
from spa_server.ruling import Owner, Ruling, Terms, Use
from spa_server.tally import Tally

_OF_A_REQUEST: Final = frozenset(
    {
        Event.KNOCK_ACCEPTED,
        Event.KNOCK_REFUSED,
        Event.CLOSE_ASKED,
        Event.JOIN_ACCEPTED,
        Event.JOIN_PENDING,
        Event.JOIN_REFUSED,
        Event.INVITE_ALARM,
    }
)

JOINS_A_MINUTE: Final = 20
_Party: TypeAlias = tuple[Event, str, str]
"""What was refused, why, and the key or invite by whose tag it came."""


class Answerer(Protocol):
    """Sends a sealed reply to where a datagram came from."""

    def __call__(self, reply: Reply, sender: Sender, request_nonce: bytes, to: Datagram) -> None:
        """Never raises: a client that cannot be reached is its own trouble."""


@dataclass(frozen=True, slots=True)
class Joined:
    """What became of a join: the answer's status and message, and the record of it."""

    status: Status
    message: str
    record: Record


@dataclass(slots=True)
class _Case:
    """One datagram on its way through a batch."""

    datagram: Datagram
    verdict: Verdict
    owner: Owner | None = None
    ruling: Ruling | None = None
    grants: list[Grant] = field(default_factory=list)
    reply: Reply | None = None
    asked: int = 0
    is_too_many: bool = False

    @property
    def settles_alone(self) -> bool:
        """Rule 4. What is turned away for its number acts on nothing."""
        knock = self.verdict.knock
        is_good = self.verdict.reason is None and not self.is_too_many
        return is_good and isinstance(knock and knock.request, (Close, Join))


@dataclass(slots=True)
class Reception:
    """Everything that a batch of datagrams is held against, and everyone who is told of it."""

    admission: Admission
    window: ReplayWindow
    ledger: Ledger
    keeper: HoleKeeper
    owner_of: Callable[[str], Owner | None]
    join: Callable[[Sender, Join, int], Joined]
    answer: Answerer
    terms: Terms
    monotonic_s: Callable[[], float]
    knock_port: int = DEFAULT_PORT
    freshness_s: float = DEFAULT_FRESHNESS_S
    replacing: frozenset[str] = frozenset()
    replaced: Callable[[str, int], None] | None = None
    flooded: Callable[[bytes, Sender, int], None] | None = None
    pace: Pace = field(default_factory=Pace)
    meter: Meter = field(default_factory=Meter)
    refusals: Tally[Repeated, _Party] = field(default_factory=lambda: Tally(itemgetter(0, 1, 2)))
    floods: Floods = field(default_factory=Floods)

    def receive(self, datagrams: Sequence[Datagram], moment: Moment) -> None:
        """A whole batch: one commit and one firewall transaction for as much as rule 4 allows."""
        waiting: list[_Case] = []
        for datagram in datagrams:
            case = self._judge(datagram, moment)
            if case.settles_alone:
                self._settle(waiting, moment.now_us)
                self._settle_alone(case, moment.now_us)
                waiting = []
            else:
                waiting.append(case)
        self._settle(waiting, moment.now_us)

    def _judge(self, datagram: Datagram, moment: Moment) -> _Case:
        verdict = judge(datagram, moment, self.admission.find, self.window, self.freshness_s)
        if verdict.burn is not None:
            self.window.add(verdict.burn)
        elif verdict.sender is not None:
            self._count_junk(datagram.payload[:TAG_SIZE], verdict.sender, moment.now_us)
        case = _Case(datagram, verdict)
        if verdict.knock is not None and verdict.reason is None:
            self._count(case, verdict.knock, moment.now_us)
        return case

    def _count(self, case: _Case, knock: AuthenticKnock, now_us: int) -> None:
        """Rule 8. Too many knocks are refused by the policy, which knows what is too many."""
        owner = self.owner_of(knock.sender.key_id)
        party = owner.identity if owner is not None else knock.sender.key_id
        case.asked = self.pace.count(party, now_us)
        if isinstance(knock.request, Join):
            case.is_too_many = case.asked > JOINS_A_MINUTE
        elif isinstance(knock.request, Close) and owner is not None:
            most = self.terms.policy.limits_of(owner.roles).knocks_per_minute
            case.is_too_many = most is not None and case.asked > most

    def _count_junk(self, tag: bytes, sender: Sender, now_us: int) -> None:
        """Rule 7."""
        if self.floods.junk(tag, self.monotonic_s()) and self.flooded is not None:
            self.flooded(tag, sender, now_us)

    def _settle(self, cases: list[_Case], now_us: int) -> None:
        if not cases:
            return
        batch = Batch()
        for case in cases:
            self._rule(case, batch, now_us)
        self.meter.decided(len(cases))
        try:
            self.ledger.commit(batch, now_us)
            self._open(cases, now_us)
        except LedgerError as error:
            self._make_unavailable(cases, f"the ledger: {error}", now_us)
        for case in cases:
            self._answer(case)
        if self.replacing:
            self._end_replaced(cases, now_us)

    def _end_replaced(self, cases: list[_Case], now_us: int) -> None:
        """Rule 5."""
        used = {case.owner.key_id for case in cases if case.owner and case.grants}
        for key_id in used & self.replacing:
            if self.replaced is not None:
                self.replaced(key_id, now_us)

    def _rule(self, case: _Case, batch: Batch, now_us: int) -> None:
        verdict = case.verdict
        knock, reason = verdict.knock, verdict.reason
        if verdict.burn is not None:
            batch.burned.append(verdict.burn)
            batch.flushed |= reason is Reason.AHEAD
        if knock is None or reason is not None:
            batch.records += self._refusal(case, now_us)
            if knock is not None and reason is not None:
                case.reply = rulings.clock_reply(knock, reason, case.datagram, now_us)
            return
        if case.is_too_many:
            batch.records += self._turn_away(case, knock, now_us)
            return
        case.owner = self.owner_of(knock.sender.key_id)
        if case.owner is None or not isinstance(knock.request, Knock):
            return
        use = self._use(case.owner.identity, case, batch)
        case.ruling = rulings.rule(
            knock.request,
            case.datagram,
            case.owner,
            self.terms,
            now_us,
            touched=knock.touched,
            use=use,
        )
        case.reply = rulings.ruling_reply(case.ruling, case.datagram, now_us)
        case.grants = self._grants(case.owner, case.ruling, knock, now_us)
        batch.grants += case.grants
        batch.seen.append((case.owner.key_id, now_us))
        records = wording.ruled(
            case.owner,
            case.ruling,
            case.grants,
            now_us,
            renews=self.keeper.book.renews,
        )
        batch.records += self._with_sender(self._without_many(records, now_us), case.datagram)

    def _turn_away(self, case: _Case, knock: AuthenticKnock, now_us: int) -> list[Record]:
        """Rule 8, for a close and a join: burned, answered, and counted in the record."""
        request, datagram = knock.request, case.datagram
        if isinstance(request, Close):
            why = "too many requests within a minute; wait"
            case.reply = rulings.close_refused_reply(request, Code.TOO_MANY, why, datagram, now_us)
        else:
            why = "too many joins of this invite within a minute; wait"
            case.reply = rulings.plain_reply(Status.UNAVAILABLE, why, datagram, now_us)
        owner = self.owner_of(knock.sender.key_id)
        record = wording.turned_away(knock, owner, datagram, now_us)
        return self._with_sender(self._without_many([record], now_us), datagram)

    def _without_many(self, records: list[Record], now_us: int) -> list[Record]:
        """The records, but for what somebody whose key is good may cause in any number.

        That is refusals for their number, and of joins: the first within a while is written.
        """
        return [
            record
            for record in records
            if not (record.reason == Code.TOO_MANY.sentence or record.event is Event.JOIN_REFUSED)
            or self.refusals.is_first(wording.repeated(record), now_us)
        ]

    def _with_sender(self, records: list[Record], datagram: Datagram) -> list[Record]:
        """Rule 6. A hole's line does not say it: that of its knock does."""
        carrier = self._carrier_of(datagram)
        seen: dict[str, object] = {
            "seen_from": text_of(datagram.source),
            "source_port": datagram.source_port,
        }
        seen |= {} if carrier is None else {"carrier": carrier}
        return [
            msgspec.structs.replace(record, detail={**record.detail, **seen})
            if record.event in _OF_A_REQUEST
            else record
            for record in records
        ]

    def _carrier_of(self, datagram: Datagram) -> str | None:
        return name_of(datagram.carrier, datagram.target_port, self.knock_port)

    def _use(self, identity: str, case: _Case, batch: Batch) -> Use | None:
        """What the identity has, also of what was granted earlier in the same batch."""
        if not self.terms.policy.has_limits:
            return None
        granted = (grant for grant in batch.grants if grant.identity == identity)
        about_to_open = frozenset(hole for grant in granted for hole in grant.holes)
        return Use(self.keeper.book.held_by(identity), about_to_open, case.asked)

    def _grants(
        self, owner: Owner, ruling: Ruling, knock: AuthenticKnock, now_us: int
    ) -> list[Grant]:
        now_s = self.monotonic_s()
        is_declared = isinstance(knock.request, Knock) and knock.request.source is not None
        return [
            Grant(
                grant_id=self.ledger.next_grant_id(),
                key_id=owner.key_id,
                identity=owner.identity,
                rule=decision.rule.path,
                source=ruling.source,
                target=ruling.target,
                access=access,
                once=decision.once,
                sessions=decision.rule.sessions,
                opened_at_us=now_us,
                expires_at_us=now_us + decision.lifetime_s * 1_000_000,
                ends_at_s=now_s + decision.lifetime_s,
                declared=is_declared,
                touched=knock.touched,
            )
            for access, decision in ruling.decisions
            if decision.rule is not None
        ]

    def _open(self, cases: list[_Case], now_us: int) -> None:
        grants = [grant for case in cases for grant in case.grants]
        if not grants:
            return
        try:
            self.keeper.open(grants)
        except FirewallError as error:
            ended = [(grant, "failed") for grant in grants]
            self._make_unavailable(cases, f"the firewall: {error}", now_us, ended)
        else:
            self.meter.opened(sum(bool(case.grants) for case in cases))

    def _make_unavailable(
        self,
        cases: list[_Case],
        why: str,
        now_us: int,
        ended: Sequence[tuple[Grant, str]] = (),
    ) -> None:
        """Rule 3: whoever was to be granted something is told that it cannot be had now."""
        records = []
        for case in cases:
            if not case.grants or case.owner is None or case.ruling is None:
                continue
            accesses = [access for access, _ in case.ruling.decisions]
            case.reply = rulings.unavailable_reply(accesses, case.datagram, now_us)
            case.grants = []
            record = wording.unavailable(case.owner, case.ruling, why, now_us)
            records += self._with_sender([record], case.datagram)
        self.ledger.note(records, now_us, ended)

    def _settle_alone(self, case: _Case, now_us: int) -> None:
        knock = case.verdict.knock
        if knock is None or case.verdict.burn is None:
            return
        if isinstance(knock.request, Join):
            self._settle_join(case, knock.sender, knock.request, now_us)
        elif isinstance(knock.request, Close):
            self._settle_close(case, knock.sender.key_id, knock.request, now_us)
        self._answer(case)

    def _settle_join(self, case: _Case, sender: Sender, request: Join, now_us: int) -> None:
        batch = Batch(burned=[case.verdict.burn] if case.verdict.burn else [])
        try:
            self.ledger.commit(batch, now_us)
        except LedgerError:
            case.reply = rulings.unavailable_reply((), case.datagram, now_us)
            return
        joined = self.join(sender, request, now_us)
        case.reply = rulings.plain_reply(joined.status, joined.message, case.datagram, now_us)
        ends = {"source": text_of(case.datagram.source), "target": text_of(case.datagram.target)}
        records = self._without_many([msgspec.structs.replace(joined.record, **ends)], now_us)
        self.ledger.note(self._with_sender(records, case.datagram), now_us)

    def _settle_close(self, case: _Case, key_id: str, request: Close, now_us: int) -> None:
        case.owner = self.owner_of(key_id)
        if case.owner is None:
            return
        source, target = self.terms.addressing.ends(request, case.datagram)
        why_not = self.terms.addressing.why_not(request, case.datagram)
        grants = (
            []
            if why_not
            else self.keeper.book.where(
                lambda grant: (
                    grant.key_id == key_id
                    and (grant.source, grant.target) == (source, target)
                    and any(grant.access.overlaps(access) for access in request.accesses)
                )
            )
        )
        ended = [grant.access for grant in grants]
        batch = Batch(burned=[case.verdict.burn] if case.verdict.burn else [])
        batch.seen.append((key_id, now_us))
        asked = wording.texts(request.accesses)
        about = (case.owner, (source, target), now_us)
        if ended or why_not:
            record = wording.about(Event.CLOSE_ASKED, *about, access=asked, reason=why_not or None)
            records = [record]
        else:
            records = self._closed_nothing(wording.closed_nothing(request, *about), case.datagram)
        batch.records += self._with_sender(records, case.datagram)
        if why_not:
            case.reply = rulings.close_refused_reply(
                request, Code.NOT_A_TARGET, why_not, case.datagram, now_us
            )
        else:
            case.reply = rulings.closed_reply(request, ended, case.datagram, now_us)
        try:
            self.ledger.commit(batch, now_us)
            self.keeper.end(grants, "closed by its owner", now_us)
        except (LedgerError, FirewallError):
            case.reply = rulings.unavailable_reply(request.accesses, case.datagram, now_us)

    def _closed_nothing(self, record: Record, datagram: Datagram) -> list[Record]:
        """A line; of the probes by which a client tries its key, one for each packet's own sender,
        and their number: a person's `doctor` sends eight at once."""
        if record.detail["ended"] != wording.TRIED:
            return [record]
        sender = text_of(datagram.source) or ""
        kind = Repeated(record.event, wording.TRIED, record.key_id or "", sender)
        return [record] if self.refusals.is_first(kind, record.at_us) else []

    def _refusal(self, case: _Case, now_us: int) -> list[Record]:
        """What anybody could send in numbers is not written one by one: the tally counts it."""
        verdict, datagram = case.verdict, case.datagram
        key_id = verdict.sender.key_id if verdict.sender else ""
        kind = Repeated(Event.KNOCK_REFUSED, str(verdict.reason), key_id, str(datagram.source))
        if verdict.reason is Reason.UNKNOWN_KEY and self._carrier_of(datagram) is not None:
            return []
        if verdict.knock is None and not self.refusals.is_first(kind, now_us):
            return []
        record = wording.not_accepted(verdict, datagram, self.owner_of(key_id), now_us)
        return self._with_sender([record], datagram)

    def flush_refusals(self, now_us: int) -> None:
        """Records how many more there were of what the tally held back."""
        further, by_party, beyond = self.refusals.take()
        counts = [*further.items(), *((Repeated(*party), n) for party, n in by_party.items())]
        if beyond:
            counts.append((Repeated(Event.KNOCK_REFUSED, "many kinds"), beyond))
        records = [
            wording.further(kind, self.owner_of(kind.key_id), count, now_us)
            for kind, count in counts
        ]
        if records:
            self.ledger.note(records, now_us)

    def _answer(self, case: _Case) -> None:
        knock = case.verdict.knock
        if case.reply is None or knock is None or not knock.request.reply_wanted:
            return
        self.answer(case.reply, knock.sender, knock.nonce, case.datagram)

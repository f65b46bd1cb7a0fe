"""The guard of one host: everything that the daemon keeps, and what it does when something happens.

No event loop and no socket to clients in here: spa_server/daemon.py waits and calls. Each method
reads the clock once, acts and returns; what failed for a while is tried again at the next `tick`.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Final

from keys import schema
from keys.actor import Actor
from keys.registry import Registry
from keys.tomlfile import FileProblem
from spa_protocol import __version__
from spa_protocol.carrier import Carrier
from spa_protocol.layout import EPOCH_S, TAG_SIZE, Address, epoch_of
from spa_protocol.publickey import Sender
from spa_server import clock, hostkey, marks, sessionlist, sessions
from spa_server.addressing import Addressing
from spa_server.admission import Admission
from spa_server.anomaly import lookout
from spa_server.audit import lastrun, wording
from spa_server.audit.checkpoint import record_key
from spa_server.audit.denials import Denials, beside
from spa_server.audit.ledger import Ledger, LedgerError
from spa_server.audit.outputs import Outputs, usual
from spa_server.audit.policytexts import digest_of
from spa_server.audit.record import Event, Record
from spa_server.audit.reserve import Reserve
from spa_server.audit.retention import Retention
from spa_server.audit.upkeep import Upkeep, note_in
from spa_server.capture.datagram import Datagram
from spa_server.config import Config
from spa_server.connections import ConnectionLog
from spa_server.denialcounts import DenialCounts
from spa_server.directory import Directory
from spa_server.doorkeeper import Moment
from spa_server.driftwatch import Drift, DriftWatch
from spa_server.enforcement import Enforcement, FirewallFaults
from spa_server.entitlement import disallowed
from spa_server.fairqueue import FairQueue
from spa_server.firewall import routes
from spa_server.firewall.kernel import FirewallError, Gate
from spa_server.firewall.routes import is_local_unicast
from spa_server.gatehouse import Gatehouse
from spa_server.grants import Grant
from spa_server.hole import Hole
from spa_server.holekeeper import HoleKeeper
from spa_server.intruders import Intruders
from spa_server.joining import admit_key
from spa_server.meter import Meter
from spa_server.netlink import NetlinkError
from spa_server.policy.model import Policy
from spa_server.reception import Answerer, Reception
from spa_server.recorder import ConnectionRecorder
from spa_server.replay import ReplayWindow
from spa_server.rulebook import Rulebook
from spa_server.ruling import Terms
from spa_server.sessionlist import Choice
from spa_server.severance import Severance
from spa_server.snapshot import Snapshot, by_severity
from spa_server.tags import TagKeeper

_RETRY_S: Final = 1.0
_HEARS_FOR_S: Final = 0.01
_STOPS_WITHIN_S: Final = 1.0
_CLOCK_STEP_US: Final = 1_000_000
_AT_THE_START: Final = Actor("start of the daemon")
_BY_ROUTES: Final = Actor("change of routes or addresses")
_NOT_CONFIRMED: Final = "the new one was not confirmed"
_ROUTES_UNREADABLE: Final = "this host cannot read its routes now; try again"
_BUSY_MS: Final = 1000
_SOON_S: Final = 60.0
_ADDRESSES_REMEMBERED: Final = 4096
# What knocks are judged by. The record is far larger: `audit verify` looks through that.
_JUDGED_BY: Final = (*schema.TABLES, "burned", "burned_floor")


class Guard:
    """Making one reads the configuration's files; Trouble, LedgerError or sqlite3.Error tell what
    is wrong with them. `answer` sends sealed replies, `carry` is told by which carriers."""

    def __init__(
        self,
        config: Config,
        answer: Answerer,
        carry: Callable[[Sequence[Carrier]], None] = lambda _carriers: None,
    ) -> None:
        self.config = config
        self._carry = carry
        schema.must_be_sound(config.database, _JUDGED_BY)
        connection = self._connection = schema.connect(config.database)
        connection.execute(f"pragma busy_timeout = {_BUSY_MS}")
        self.registry = Registry(connection)
        self.registry.max_keys = config.max_keys
        self.rulebook = Rulebook(config, self.registry.roles_of)
        self.policy = self.rulebook.begin()
        self.denials = Denials(beside(config.database))
        self.ledger = Ledger(
            connection,
            self.registry.seen,
            unrecorded=config.unrecorded,
            boot_id=clock.boot_id(),
            denials=self.denials,
            serves_when_full=config.serves_when_full,
        )
        self._broken_off_at_us = lastrun.broken_off_at_us(connection)
        server_key = hostkey.load(config)
        self.upkeep = Upkeep(
            self.ledger,
            record_key(server_key.secret),
            keep=Retention(config.retention_days or None, config.retention_mb or None),
            denials=self.denials,
            reserve=Reserve(connection, config.database),
            note=note_in(config.control.parent),
        )
        self.meter = Meter()
        self.counts = DenialCounts(self.denials, self.meter.counted)
        self.outputs = Outputs(usual() if config.outputs is None else config.outputs)
        self.ledger.observers += [self.meter.written, self.outputs.written]
        self.lookout = lookout.begin(config.anomalies, config.database, self.ledger)
        self.admission = Admission()
        self.directory = Directory(self.registry, server_key, self.admission)
        self.gate = Gate()
        self.faults = FirewallFaults(self.ledger)
        self.tags = TagKeeper(self.admission, self.gate, self.faults.tolerate)
        self.gatehouse = Gatehouse(config, self.gate)
        self.drift = DriftWatch(self.gatehouse, self.ledger)
        self.keeper = HoleKeeper(self.gate, self.ledger, clock.monotonic_s)
        self.enforcement = Enforcement(
            self.gate,
            self.gatehouse,
            self.keeper,
            self.tags,
            ledger=self.ledger,
            faults=self.faults,
        )
        self.connections = ConnectionLog(self.keeper.book.holders)
        self._intruders = Intruders(self.gatehouse, self.connections, self.keeper.book.holders)
        self._lost_when_learnt = 0
        self.severance = self.keeper.severing = Severance(
            self.connections.ends,
            self.keeper.book.holders,
            self.gate,
            successors=self.directory.successors,
            is_cut=lambda hole: any(hole.access in each for each in self.policy.cut),
            may_cut=self._may_cut,
        )
        self.recorder = ConnectionRecorder(self.connections, self.ledger, connection)
        self.reception = Reception(
            admission=self.admission,
            window=ReplayWindow(self.ledger.burned(), self.ledger.floors()),
            ledger=self.ledger,
            keeper=self.keeper,
            owner_of=self.directory.owner,
            join=partial(admit_key, self.registry, self._refresh_directory),
            answer=answer,
            terms=self._terms(),
            monotonic_s=clock.monotonic_s,
            knock_port=config.knock_port,
            freshness_s=config.freshness_s,
            meter=self.meter,
            replaced=self._end_replaced,
            flooded=self._flooded,
        )
        self.waiting = FairQueue(self._party_of)
        self.started_at_us = clock.now_us()
        self.is_serving = False
        self.answers_trouble = ""
        self._unrecorded_floor_us = self._floor_of_what_was_lost()
        self._data_version = self.ledger.data_version()
        self._offset_us = clock.offset_us()
        self._on_trial = self.gatehouse.is_on_trial
        self._before_trial: Policy | None = None
        self._removing: tuple[float, Actor] | None = None
        self._local: dict[Address, bool] = {}
        self._sources: dict[Address, str] = {}
        self._try_again_at_s = 0.0

    def _floor_of_what_was_lost(self) -> int:
        """Up to which stamp a request may have been burned without this database knowing it.

        Where an older copy of it was put back, that is anything that could be fresh by now.
        """
        if self.upkeep.is_record_short:
            latest_us = self.started_at_us + round(self.config.freshness_s * 1_000_000)
            self.ledger.lost_up_to(latest_us)
            return latest_us
        return self.ledger.unrecorded_floor_us()

    def _terms(self) -> Terms:
        addressing = Addressing(
            is_own=self._is_own,
            why_no_source=self._why_no_source,
            also=self.config.also_addressed_as,
            accepts_undeclared=self.config.accepts_undeclared_target,
        )
        return Terms(self.policy, self.config.shared_sources, addressing)

    def _is_own(self, target: Address) -> bool:
        """Asked of what was signed and is not the datagram's own: seldom, so always anew."""
        try:
            return is_local_unicast(target)
        except NetlinkError:
            return False

    def _why_no_source(self, source: Address) -> str:
        """As the routes are; forgotten when one changes."""
        if len(self._sources) >= _ADDRESSES_REMEMBERED:
            self._sources.clear()
        known = self._sources.get(source)
        if known is None:
            try:
                known = self._sources[source] = routes.why_no_source(source)
            except NetlinkError:
                return _ROUTES_UNREADABLE
        return known

    # Beginning and end

    def start(self) -> None:
        """Takes over from whoever guarded this host before: the gate, and the holes still open."""
        now_us = clock.now_us()
        self.directory.load(now_us)
        self.reception.replacing = self.registry.replacing()
        self.ledger.end_other_boots(now_us)
        self.keeper.adopt(self.ledger.live_grants())
        self.recorder.recall(self.keeper.book)
        self.ledger.note(
            [lastrun.started(now_us, self._broken_off_at_us, self.policy.digest)], now_us
        )
        self._keep_policy(now_us)
        with suppress(LedgerError):
            self.ledger.enter_acts(now_us)
        if self.rulebook.problem is not None:
            self._note_refused(self.rulebook.problem, now_us)
        self.keeper.expire(now_us)
        why: str | None = "nobody could tell whether it was loaded at the start"
        with self.faults.tolerate("the gate"):
            why = None if self.gate.is_loaded() else "it was not loaded at the start"
        self.enforcement.restore(self.policy, now_us, why, actor=_AT_THE_START)
        if self.gatehouse.held_back is not None:
            self._note_refused(self.gatehouse.held_back, now_us)
        self._learn_sessions()
        self._end_disallowed(now_us)
        self.upkeep.start(now_us)

    def stop(self) -> None:
        """The gate stays closed and the holes tick on; only the record is told."""
        self._judge_for(_STOPS_WITHIN_S)
        now_us = clock.now_us()
        self.reception.flush_refusals(now_us)
        self.recorder.close(now_us)
        self.counts.close()
        if self.lookout is not None:
            self.lookout.close(now_us)
        self.ledger.note([Record(Event.DAEMON_STOPPED, now_us)], now_us)
        self.upkeep.close(now_us)
        self.ledger.close()
        schema.close(self._connection)
        self.outputs.close()
        self.enforcement.close()

    # What comes

    def hear(self, read: Callable[[int], tuple[list[Datagram], int]]) -> None:
        """Judges and answers some of what a capture has read; `read` is handed the time.

        It is read first, so that what cannot be judged is dropped. What is left is `waiting`: to be
        called again.
        """
        self.meter.heard()
        datagrams, lost = read(clock.now_us())
        self.look_around()
        now_us = clock.now_us()
        if self.config.capture != "nflog":
            datagrams = [one for one in datagrams if self._is_local(one.target)]
        self.recorder.note_lost("knock", lost + self.waiting.put(datagrams), now_us)
        self._judge_for(_HEARS_FOR_S)

    def _judge_for(self, within_s: float) -> None:
        """Judges what waits, one turn after another, until nothing does or the time is over."""
        ends_s = clock.monotonic_s() + within_s
        while self.waiting:
            now_us = clock.now_us()
            self.reception.receive(self.waiting.take(), Moment(now_us, self.floor_us))
            if clock.monotonic_s() >= ends_s:
                return

    @property
    def floor_us(self) -> int:
        """Nothing stamped up to here is heard: nobody knows whether it was burned."""
        return max(clock.boot_floor_us(self.config.freshness_s), self._unrecorded_floor_us)

    def _party_of(self, datagram: Datagram) -> str:
        """Whose turn in the queue it takes: nothing is proven yet but whose tag it bears."""
        sender = self.admission.find(datagram.payload[:TAG_SIZE])
        if sender is None:
            return ""
        owner = self.directory.owner(sender.key_id)
        return owner.identity if owner is not None else sender.key_id

    def _is_local(self, target: Address) -> bool:
        """A capture at an interface also yields what is for others. The kernel's rule does not."""
        if len(self._local) >= _ADDRESSES_REMEMBERED:
            self._local.clear()
        known = self._local.get(target)
        if known is None:
            known = self._local[target] = is_local_unicast(target)
        return known

    def ended(self) -> bool:
        """Enters connections that are over; whether more wait to be read."""
        has_more = self.recorder.ended()
        self.severance.forget_gone()
        return has_more

    def find_unended(self) -> Iterator[None]:
        """Finds what an earlier run let in, and ends what may not go on; with pauses."""
        yield from self.recorder.find_unended()
        for records in self.severance.review(clock.now_us):
            if records:
                self.ledger.note(records, clock.now_us())
            yield

    # What changes

    def look_around(self) -> None:
        """Before each decision: has the clock been set, has the registry been changed?"""
        known_us, self._offset_us = self._offset_us, clock.offset_us()
        if _is_step(known_us, self._offset_us):
            self._clock_was_set(self._offset_us - known_us)
        with self._reading_the_registry():
            version = self.ledger.data_version()
            if version != self._data_version:
                self._refresh_directory(clock.now_us())
                self.ledger.enter_acts(clock.now_us())
                self._data_version = version
            self.ledger.distrust("")

    @contextmanager
    def _reading_the_registry(self) -> Iterator[None]:
        """While it cannot be read nothing is granted, and the ledger says why."""
        try:
            yield
        except (LedgerError, sqlite3.Error) as error:
            self.ledger.distrust(f"the registry cannot be read: {error}")

    def _clock_was_set(self, by_us: int) -> None:
        """Every tag in the kernel has a timeout by the old clock: they are laid anew.

        A key that expired by the old clock may be good by the new one.
        """
        now_us = clock.now_us()
        detail = {"by_s": round(by_us / 1_000_000, 3)}
        self.ledger.note([Record(Event.CLOCK_SET, now_us, detail=detail)], now_us)
        with self.faults.tolerate("the tags"):
            self.tags.withdraw_all()
            self.directory.take_back(now_us)
            for _ in self.load_tags():
                pass

    def _refresh_directory(self, now_us: int) -> None:
        refreshed = self.directory.refresh(now_us)
        self.tags.withdraw(refreshed.withdraw)
        self.tags.admit(refreshed.admit, now_us)
        records = [
            Record(
                Event.KEYS_CHANGED,
                change.at_us,
                identity=change.identity,
                key_id=change.key_id,
                reason=change.action,
                detail={"actor": change.actor, "detail": change.detail},
            )
            for change in refreshed.changes
        ]
        if records:
            self.reception.replacing = self.registry.replacing()
            self.ledger.note(records, now_us)
        self._end_disallowed(now_us)
        if refreshed.disowned:
            self.ledger.note(self.severance.disowned(refreshed.disowned, now_us), now_us)

    def _end_replaced(self, key_id: str, now_us: int) -> None:
        """This key was used, so those that it replaces end. If that fails, its next use ends
        them."""
        try:
            self.registry.replaced(key_id, now_us)
        except sqlite3.Error as error:
            why = f"could not end what it replaces: {error}"
            record = Record(Event.KEYS_CHANGED, now_us, key_id=key_id, reason=why)
            self.ledger.note([record], now_us)
            return
        self._refresh_directory(now_us)

    def _flooded(self, tag: bytes, sender: Sender, now_us: int) -> None:
        """Somebody has seen this tag on the wire, and would have its key not be heard."""
        if not self.tags.flooded(tag, sender.key_id, now_us):
            return
        owner = self.directory.owner(sender.key_id)
        identity = None if owner is None else owner.identity
        record = Record(Event.TAG_FLOODED, now_us, identity=identity, key_id=sender.key_id)
        self.ledger.note([record], now_us)

    def reload(self, actor: Actor, *, gate_too: bool = False) -> None:
        """Reads the policy anew. One that is not sound changes nothing and raises FileProblem.

        `gate_too` puts the gate in force even where it is not wanted yet, and raises FirewallError
        where that cannot be done.
        """
        now_us = clock.now_us()
        begins_trial = self.gatehouse.is_on_trial and not self._on_trial
        if begins_trial:
            self.rulebook.begin_trial()
        try:
            policy = self.rulebook.read()
            self.gatehouse.reread(policy, may_close=gate_too)
        except FileProblem as problem:
            self.rulebook.refuse(problem, now_us)
            self._note_refused(problem, now_us, actor)
            raise
        if begins_trial:
            self._on_trial, self._before_trial = True, self.policy
        self._put_in_force(policy, None, actor, gate_too=gate_too)
        if gate_too and self.enforcement.gate_in_doubt:
            raise FirewallError("the gate could not be loaded; the record says why")

    def _note_refused(self, problem: FileProblem, now_us: int, actor: Actor | None = None) -> None:
        record = Record(Event.POLICY_REFUSED, now_us, reason=str(problem))
        self.ledger.note(wording.by(actor, [record]), now_us)

    def confirm(self, actor: Actor) -> None:
        """The trial is over: what is in force stays."""
        if self._on_trial:
            now_us = clock.now_us()
            self.ledger.note(wording.by(actor, [Record(Event.GATE_CONFIRMED, now_us)]), now_us)
        self._end_trial()

    def _end_trial(self) -> None:
        self._on_trial, self._before_trial = False, None
        self.gatehouse.confirm()

    def removing(self, actor: Actor) -> None:
        """Somebody is about to take the gate away: if that happens soon, it was they.

        Who cannot do it is not believed, lest somebody in the group spa answer for root.
        """
        if actor.uid in {0, os.geteuid()}:
            self._removing = (clock.monotonic_s() + _SOON_S, actor)

    def _removed_by(self) -> Actor | None:
        until_s, actor = self._removing or (0.0, None)
        self._removing = None
        return actor if clock.monotonic_s() <= until_s else None

    def take_back(self, actor: Actor) -> None:
        """The trial is over and nobody confirmed it: what was before it is in force again.

        Where this daemon began during the trial, that is the gate alone; knocks are judged by the
        policy as it is until it is reloaded. Whatever goes wrong, the gate is then in doubt.
        """
        with self.faults.tolerate("the gate"):
            before, begun = self._before_trial, marks.waiting(self.config)
            self.gatehouse.take_back()
            self._end_trial()
            if before is not None:
                self.rulebook.take_back(clock.now_us())
                self._put_in_force(before, _NOT_CONFIRMED, actor)
            elif begun is not None and begun.before is not None:
                self.gatehouse.held = begun.before
                now_us = clock.now_us()
                self.enforcement.restore(self.policy, now_us, _NOT_CONFIRMED, actor=actor)
                self._learn_sessions()

    def _put_in_force(
        self, policy: Policy, why: str | None, actor: Actor, *, gate_too: bool = False
    ) -> None:
        now_us = clock.now_us()
        self.policy = policy
        self.reception.terms = self._terms()
        self.gatehouse.held = None
        self._carry(self.gatehouse.config.carriers)
        loaded = Record(Event.POLICY_LOADED, now_us, reason=why, detail={"digest": policy.digest})
        self.ledger.note(wording.by(actor, [loaded]), now_us)
        self._keep_policy(now_us)
        with self.faults.tolerate("the gate"):
            if gate_too or self.gatehouse.is_wanted:
                self.enforcement.apply(policy, now_us, actor=actor)
                self._learn_sessions()
        self._end_disallowed(now_us)

    def _keep_policy(self, now_us: int) -> None:
        digest, text = self.policy.digest, self.rulebook.text
        is_text = digest_of(text) == digest  # else the one of before a trial, which is kept already
        self.ledger.keep_policy(digest, text if is_text else None, now_us)

    def ruleset_changed(self) -> None:
        """Somebody touched our table, or flushed the ruleset: the gate, holes and tags go back.

        And what came in meanwhile goes.
        """
        now_us = clock.now_us()
        with self.faults.tolerate("the gate"):
            if self.gatehouse.is_wanted:
                self.enforcement.restore(self.policy, now_us, "somebody changed the ruleset")
                self._expel_intruders()
                return
            self._end_trial()
            self.enforcement.removed(now_us, self._removed_by())

    def routes_changed(self) -> None:
        """The outer interfaces, and this host's addresses, may be others now."""
        self._local.clear()
        self._sources.clear()
        with self.faults.tolerate("the gate"):
            if self.gatehouse.is_wanted and self.gatehouse.is_out_of_date(self.policy):
                self.enforcement.restore(self.policy, clock.now_us(), None, actor=_BY_ROUTES)

    def doubt(self, what: str, error: Exception) -> None:
        """Something about the gate went wrong elsewhere: who knows what was not heard or done?"""
        with self.faults.tolerate(what):
            raise error

    def _expel_intruders(self) -> None:
        """What nobody was let in for, while the gate was away. First what was let in is heard."""
        if self.enforcement.gate_in_doubt:
            return  # it may be away still: `recover` comes back to this
        now_us = clock.now_us()
        with self._tolerating_sessions(now_us):
            self.connections.ends.hear_beginnings()
            self.ledger.note(self._intruders.expel(now_us), now_us)

    def _learn_sessions(self) -> None:
        """While the gate stands, whatever is open is known, or is heard of as it is let in."""
        self._lost_when_learnt = self._not_heard_of()
        if not self.enforcement.gate_in_doubt:
            with self._tolerating_sessions(clock.now_us()):
                self._intruders.learn()

    def _not_heard_of(self) -> int:
        """How many messages of the kernel's were lost, and connections not remembered."""
        return self.recorder.lost + self.connections.live.refused

    @contextmanager
    def _tolerating_sessions(self, now_us: int) -> Iterator[None]:
        try:
            yield
        except sessions.SessionsError as error:
            record = Record(Event.CONNECTION_SEVERED, now_us, reason=f"failed: {error}")
            self.ledger.note([record], now_us)

    def answers_are(self, trouble: str) -> None:
        """Whether answers leave as they should: recorded when that changes. Empty: they do."""
        if trouble == self.answers_trouble:
            return
        self.answers_trouble = trouble
        event = Event.ANSWERS_HINDERED if trouble else Event.ANSWERS_FREE
        now_us = clock.now_us()
        self.ledger.note([Record(event, now_us, reason=trouble or None)], now_us)

    # Drift

    def look_for_drift(self) -> Callable[[], Drift]:
        """What finds it, to be run in a thread."""
        return self.drift.look(self.policy)

    def drifted(self, drift: Drift) -> None:
        """Records what a look has found. A gate that is away without a word is put back."""
        with self.faults.tolerate("the gate"):
            if self.gatehouse.is_wanted and not self.gate.is_loaded():
                self.faults.note("the gate: it was away, and nobody told")
        now_us = clock.now_us()
        records = self.drift.changed(drift, self.policy, now_us)
        if records:
            self.ledger.note(records, now_us)

    # Telling

    def snapshot(self) -> Snapshot:
        """How the daemon is now, for another thread."""
        observed = self.gatehouse.observed
        return Snapshot(
            meter=self.meter.copy(),
            version=__version__,
            capture=self.config.capture,
            mode="observe" if observed.everything else "enforce",
            started_at_us=self.started_at_us,
            grants=len(self.keeper.book),
            holes=len(self.keeper.book.holes()),
            keys=len(self.admission),
            tags=self.admission.tag_count,
            roles=len(self.policy.roles),
            requests_remembered=len(self.reception.window),
            gate_wanted=self.gatehouse.is_wanted,
            gate_in_doubt=self.enforcement.in_doubt,
            policy_is_current=self.rulebook.problem is None,
            ledger_behind=self.ledger.is_behind,
            last_event_id=self.ledger.head.event_id,
            drift=by_severity([str(finding.severity) for finding in self.drift.findings]),
            outputs=self.outputs.figures(),
        )

    # Time

    def next_wake_s(self) -> float:
        """Until when nothing has to be done by itself, in seconds of CLOCK_MONOTONIC."""
        now_us, now_s = clock.now_us(), clock.monotonic_s()
        moments_us = [(epoch_of(now_us) + 1) * EPOCH_S * 1_000_000]
        dues_us = (
            self.directory.next_expiry_us(),
            self.reception.refusals.due_at_us(),
            self.recorder.due_at_us(now_us),
            self.upkeep.due_at_us(now_us),
            self.lookout.due_at_us(now_us) if self.lookout is not None else None,
        )
        moments_us += [due_us for due_us in dues_us if due_us is not None]
        wakes_s = [now_s + max(0, moment_us - now_us) / 1_000_000 for moment_us in moments_us]
        ends_s = (self.keeper.book.next_end_s(), self.counts.due_at_s())
        wakes_s += [end_s for end_s in ends_s if end_s is not None]
        if self.enforcement.in_doubt or self.ledger.is_behind:
            wakes_s.append(self._try_again_at_s)
        return min(wakes_s)

    def tick(self) -> None:
        """Does what is due. What goes wrong with one thing keeps nothing else from being done."""
        now_us = clock.now_us()
        with ExitStack() as last_to_first:
            if self.lookout is not None:
                last_to_first.callback(self.lookout.tend, now_us)
            last_to_first.callback(self.upkeep.tend, now_us)
            last_to_first.callback(self.severance.forget_gone)
            last_to_first.callback(self.recorder.tend, now_us)
            last_to_first.callback(self._note_what_is_due, now_us)
            last_to_first.callback(self.keeper.expire, now_us)
            last_to_first.callback(self._recover, now_us)
            last_to_first.callback(self.look_around)

    def _note_what_is_due(self, now_us: int) -> None:
        expiry_us = self.directory.next_expiry_us()
        if expiry_us is not None and expiry_us <= now_us:
            with self._reading_the_registry():
                self._refresh_directory(now_us)
        if losses := self.outputs.losses(now_us):
            self.ledger.note(losses, now_us)
        if self.reception.refusals.is_due(now_us):
            self.reception.flush_refusals(now_us)

    def _recover(self, now_us: int) -> None:
        """What failed is tried again, until the fault is gone."""
        self._try_again_at_s = clock.monotonic_s() + _RETRY_S
        was_in_doubt = self.enforcement.gate_in_doubt
        self.enforcement.recover(self.policy, now_us)
        if was_in_doubt and not self.enforcement.gate_in_doubt:
            self._expel_intruders()
            self._end_disallowed(now_us)
        if self._not_heard_of() != self._lost_when_learnt:
            self._learn_sessions()
        if self.ledger.is_behind:
            self.ledger.note([], now_us)

    def needs_tags(self) -> bool:
        """Whether a tag epoch has begun whose successors are not loaded.

        Not while the clock has been set and nobody has looked: then all tags are laid anew.
        """
        if _is_step(self._offset_us, clock.offset_us()):
            return False
        return self.tags.is_behind(clock.now_us())

    def load_tags(self) -> Iterator[None]:
        """Loads the tags that are missing, with a pause after each few, and forgets the old."""
        laid_by_us = self._offset_us

        def has_stepped() -> bool:
            return _is_step(laid_by_us, clock.offset_us())

        for has_more in self.tags.load(clock.now_us, has_stepped):
            if has_more:
                yield
            else:
                yield from self._forget_old(clock.now_us())

    def _forget_old(self, now_us: int) -> Iterator[None]:
        for forgotten in self.reception.window.forget(now_us):
            try:
                self.ledger.forget(forgotten.until_us, forgotten.floors)
            except LedgerError as error:
                record = Record(Event.RECORDS_LOST, now_us, reason=str(error))
                self.ledger.note([record], now_us)
            yield

    # Holes

    def end(self, grants: Sequence[Grant], why: str, actor: Actor) -> int:
        """Ends grants at an operator's wish; how many. Raises FirewallError."""
        self.keeper.end(grants, why, clock.now_us(), actor)
        return len(grants)

    def cut(self, choice: Choice, actor: Actor) -> int:
        """Ends connections at an operator's wish, of whatever service; how many there were."""
        now_us = clock.now_us()
        self.connections.ends.hear_beginnings()
        found = dict(sessionlist.chosen(self.connections.ends, choice))
        records = self.severance.cut(found, now_us, "cut by the operator")
        self.ledger.note(wording.by(actor, records), now_us)
        return sum(record.detail.get("count", 0) for record in records)

    def _may_cut(self, hole: Hole) -> bool:
        """Not where the gate observes, nor what is always open: there nobody needs a hole."""
        return self.gatehouse.cuts(hole) and not any(
            hole.source in rule.sources and any(hole.access in each for each in rule.accesses)
            for rule in self.policy.always_open
        )

    def _end_disallowed(self, now_us: int) -> None:
        """Ends what the registry and the policy, as they are now, would not grant."""
        book, owner_of = self.keeper.book, self.directory.owner
        with self.faults.tolerate("the holes"):
            for why, grants in disallowed(book, owner_of, self.reception.terms, now_us).items():
                with self.faults.tolerate("the holes"):
                    self.keeper.end(grants, why, now_us)


def _is_step(offset_us: int, later_offset_us: int) -> bool:
    """Whether the wall clock was set between two readings of its offset, and not only slewed."""
    return abs(later_offset_us - offset_us) > _CLOCK_STEP_US

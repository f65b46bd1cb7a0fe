"""Severance: which connections of `cut` services may go on, and the end of those that may not.

1.  A connection lives for as long as every key that held its hole when it began holds that hole. It
    is not the hole that counts, but who may have begun what came through. Where two people held it,
    the end of either ends the connection: nobody can tell whose it is, and whoever still has a
    grant connects again. For a key that was replaced the one counts that took its place, and the
    one that took that one's; for a key that was revoked none does (keys/registry.py, rule 8).
2.  What came through a hole and is unknown here, because there was no room for it or the kernel's
    message was lost, may be anybody's: it ends with any grant of that hole.
3.  Its socket on this host is destroyed. Where that cannot be (it is forwarded, or SCTP, or a UDP
    socket that serves many), the kernel stops its packets by flow, whichever holes are open, until
    rule 1 lets it go on again.
4.  A UDP flow is another connection once conntrack has forgotten it, and is judged anew. Of TCP and
    SCTP the other end may remember it far longer: these stay stopped, for a week since the last
    packet. Whoever connects again does so from another port.

The kernel alone keeps less: with the daemon dead a session ends with its hole, as it does where
nobody else holds it. A daemon that begins looks at every connection once.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Final, Protocol

import msgspec

from spa_protocol.access import Protocol as Transport
from spa_server import attribution, sessions
from spa_server.attribution import Permitted
from spa_server.audit import wording
from spa_server.audit.record import Event, Record
from spa_server.ctentry import Entry, key_of
from spa_server.ends import Ends
from spa_server.firewall.kernel import FirewallError
from spa_server.flow import Flow
from spa_server.grants import Grant
from spa_server.hole import Hole
from spa_server.netlink import NetlinkError
from spa_server.policy.model import Sessions

REVIEWED_AT_ONCE: Final = 500
WHILE_DOWN: Final = "its grant ended while the daemon was down"
DISOWNED: Final = "the key was revoked"
IS_OVER: Final = "time-wait"
"""Both sides have closed it. Not `close`: one side can bring that about and go on."""


class FlowGate(Protocol):
    """What is needed of the firewall. Each method raises FirewallError."""

    def stop_flows(self, flows: Iterable[Flow]) -> None:
        """Stops the packets of flows."""

    def release_flows(self, flows: Iterable[Flow]) -> None:
        """Lets flows go on; one that was not stopped is no error."""

    def stopped_flows(self) -> list[Flow]:
        """The flows that are stopped."""


class Severance:
    """`holders` gives the grants that hold a hole open; `successors` the keys that stand for one.
    `is_cut`: whether sessions end with a hole by the policy in force; `may_cut`: whether the gate
    lets any end at all, for where it observes it does not.

    `in_doubt` is set while the kernel may let flows go on that are to be stopped: `restore` puts
    that right.
    """

    def __init__(
        self,
        ends: Ends,
        holders: Callable[[Hole], list[Grant]],
        gate: FlowGate,
        *,
        successors: Callable[[str], Iterable[str]],
        is_cut: Callable[[Hole], bool],
        may_cut: Callable[[Hole], bool],
    ) -> None:
        self.in_doubt = False
        self._ends = ends
        self._live = ends.live
        self._holders = holders
        self._gate = gate
        self._successors = successors
        self._is_cut = is_cut
        self._may_cut = may_cut
        self._stopped: dict[bytes, Permitted] = {}
        self._for_good: set[bytes] = set()  # of these, what an operator has cut
        self._destroyed: dict[bytes, Permitted] = {}  # while conntrack has not told their end
        self._postponed: dict[Hole, list[Grant]] = {}

    def before_end(self) -> None:
        """To be called before grants end: what they have let in by now is theirs."""
        self._ends.hear_beginnings()

    def ended(self, grants: Sequence[Grant], now_us: int, why: str | None = None) -> list[Record]:
        """Ends the connections that may not outlive these grants; they are out of the book."""
        over: dict[Hole, list[Grant]] = {}
        for grant in grants:
            for hole in grant.holes:
                ends = grant.sessions is Sessions.CUT or self._is_cut(hole)
                if ends and self._may_cut(hole):
                    over.setdefault(hole, []).append(grant)
        if not self._ends.is_complete:
            for hole, ended in over.items():
                self._postponed.setdefault(hole, []).extend(ended)
        return self._sever(over, now_us, why) if over else []

    def disowned(self, key_ids: Set[str], now_us: int) -> list[Record]:
        """For some of these, which were replaced, no key stands any more: ends what was theirs."""
        self._ends.hear_beginnings()
        theirs = (
            key
            for key in self._live
            if any(not key_ids.isdisjoint(of.keys) for of in self._live.at(key))
        )
        over = self._due(theirs)
        return self._sever(over, now_us, DISOWNED) if over else []

    def opened(self, grants: Sequence[Grant]) -> None:
        """Lets go on what may, now that these grants are in the book. Raises FirewallError."""
        if not self._stopped:
            return
        holes = (hole for grant in grants for hole in grant.holes)
        keys = {key for hole in holes for key, _ in self._live.through(hole)}
        free = [key for key in keys & self._stopped.keys() - self._for_good if self._may_live(key)]
        if free:
            self._gate.release_flows(self._stopped[key].flow for key in free)
            for key in free:
                del self._stopped[key]

    def ends_with_hole(self, of: Permitted) -> bool:
        """Whether a connection ends with a grant that may have let it in, and not by itself."""
        hole = _hole(of)
        return hole is not None and (of.cut or self._is_cut(hole)) and self._may_cut(hole)

    def held_until_us(self, of: Permitted) -> int | None:
        """Until when all who may have begun a connection hold its hole; None where one does not."""
        last_us: dict[str, int] = {}
        for hole in attribution.holes_of(of.flow):
            for grant in self._holders(hole):
                last_us[grant.key_id] = max(last_us.get(grant.key_id, 0), grant.expires_at_us)
        ends_us = []
        for key_id in of.keys:
            held = [each for each in (key_id, *self._successors(key_id)) if each in last_us]
            if not held:
                return None
            ends_us.append(max(last_us[each] for each in held))
        return min(ends_us, default=None)

    def is_severed(self, key: bytes, of: Permitted) -> bool:
        """Whether a connection was ended here, though conntrack may remember it for a while."""
        return key in self._stopped or self._destroyed.get(key) == of

    def cut(self, chosen: Mapping[bytes, Permitted], now_us: int, why: str) -> list[Record]:
        """Ends connections whoever holds their holes, of whatever service."""
        doomed = {key: of for key, of in chosen.items() if not self.is_severed(key, of)}
        self._for_good.update(key for key in chosen if key in self._stopped)
        holes = {hole for of in doomed.values() for hole in attribution.holes_of(of.flow)}
        destroyed, records = self._destroy(holes, lambda flow: key_of(flow) not in doomed, now_us)
        living = self._stop(doomed, set(destroyed))
        self._for_good.update(key for key in doomed if key in self._stopped)
        return records + list(_lines(living, now_us, why))

    def forget_gone(self) -> None:
        """Forgets what has ended (rule 4)."""
        gone = {key: of for key, of in self._stopped.items() if key not in self._live}
        for key in gone:
            del self._stopped[key]
        self._for_good.difference_update(gone)
        self._destroyed = {key: of for key, of in self._destroyed.items() if key in self._live}
        flows = [of.flow for of in gone.values() if of.flow.protocol == Transport.UDP]
        if flows:
            try:
                self._gate.release_flows(flows)
            except FirewallError:
                self.in_doubt = True

    def restore(self) -> None:
        """Makes the kernel stop what is to be stopped. Raises FirewallError."""
        self.in_doubt = True
        if self._stopped:
            self._gate.stop_flows(of.flow for of in self._stopped.values())
        self.in_doubt = False

    def review(self, now_us: Callable[[], int]) -> Iterator[list[Record]]:
        """Looks at every connection once the record has been read, some at a time.

        What the kernel stops was stopped by an earlier run. Yields what is to be recorded.
        """
        self._take_over()
        keys = list(self._live)
        for at in range(0, len(keys), REVIEWED_AT_ONCE):
            over = self._due(keys[at : at + REVIEWED_AT_ONCE])
            yield self._sever(over, now_us(), WHILE_DOWN) if over else []
        postponed, self._postponed = self._postponed, {}
        if postponed:
            yield self._sever(postponed, now_us(), WHILE_DOWN)

    def _take_over(self) -> None:
        try:
            flows = {key_of(flow): flow for flow in self._gate.stopped_flows()}
            new = {key: flow for key, flow in flows.items() if key not in self._stopped}
            self._gate.release_flows(
                flow
                for key, flow in new.items()
                if key not in self._live and flow.protocol == Transport.UDP
            )
        except FirewallError:
            self.in_doubt = True
            return
        for key in new:
            if key in self._live:
                self._stopped[key] = self._live.at(key)[-1]
                if self._may_live(key):
                    self._for_good.add(key)

    def _due(self, keys: Iterable[bytes]) -> dict[Hole, list[Grant]]:
        """The holes of those that may not go on, for `_sever`: no grant ended just now."""
        latest = ((key, of) for key in keys for of in self._live.at(key)[-1:])
        holes = (_hole(of) for key, of in latest if self._is_due(key, of))
        return {hole: [] for hole in holes if hole is not None}

    def _is_due(self, key: bytes, of: Permitted) -> bool:
        return self.ends_with_hole(of) and not self.is_severed(key, of) and not self._may_live(key)

    def _may_live(self, key: bytes) -> bool:
        """Rule 1, of every connection that has had this flow."""
        return all(self.held_until_us(of) is not None for of in self._live.at(key))

    def _sever(
        self, over: Mapping[Hole, Sequence[Grant]], now_us: int, why: str | None
    ) -> list[Record]:
        """`over` has the grants that ended; where it has none, what is unknown is left alone."""

        def may_live(flow: Flow) -> bool:
            key = key_of(flow)
            if key in self._live:
                return self._may_live(key)
            hole = attribution.holes_of(flow)[-1]
            if not self._ends.is_complete:
                return bool(self._holders(hole))
            return not over.get(hole)

        doomed = {
            key: of
            for hole in over
            for key, of in self._live.through(hole)
            if not self.is_severed(key, of) and not self._may_live(key)
        }
        destroyed, records = self._destroy(over, may_live, now_us)
        records += _lines(self._stop(doomed, set(destroyed)), now_us, why)
        known = {of.flow for of in doomed.values()}
        unknown = Counter(attribution.holes_of(f)[-1] for f in destroyed if f not in known)
        return records + [
            wording.severed(count, over[hole], now_us, why) for hole, count in unknown.items()
        ]

    def _destroy(
        self, holes: Iterable[Hole], may_live: Callable[[Flow], bool], now_us: int
    ) -> tuple[list[Flow], list[Record]]:
        try:
            return sessions.sever(holes, may_live), []
        except sessions.SessionsError as error:
            return [], [_failed(str(error), now_us)]

    def _stop(self, doomed: Mapping[bytes, Permitted], destroyed: set[Flow]) -> list[Permitted]:
        """Has the kernel stop what no socket was destroyed of; what of it all was still alive."""
        left = {
            key: of
            for key, of in doomed.items()
            if of.flow not in destroyed and not self._is_over(key)
        }
        self._destroyed |= {key: of for key, of in doomed.items() if of.flow in destroyed}
        if left:
            self._stopped |= left
            try:
                self._gate.stop_flows(of.flow for of in left.values())
            except FirewallError:
                self.in_doubt = True
        return [of for key, of in doomed.items() if key in left or of.flow in destroyed]

    def _is_over(self, key: bytes) -> bool:
        tracker = self._ends.tracker
        if tracker is None:
            return False
        try:
            entry: Entry | None = tracker.get(key)
        except NetlinkError:
            return False
        return entry is None or entry.state == IS_OVER


def _hole(of: Permitted) -> Hole | None:
    return next(iter(reversed(attribution.holes_of(of.flow))), None)


def _failed(why: str, now_us: int) -> Record:
    return Record(Event.CONNECTION_SEVERED, now_us, reason=f"failed: {why}")


def _lines(cut: Sequence[Permitted], now_us: int, why: str | None) -> Iterator[Record]:
    """One line for what one grant let in; of a single connection its port."""
    alike: dict[Permitted, list[Permitted]] = {}
    for of in cut:
        any_port = dataclasses.replace(of.flow, source_port=0)
        kind = msgspec.structs.replace(of, flow=any_port, at_us=0)
        alike.setdefault(kind, []).append(of)
    for some in alike.values():
        record = attribution.line(Event.CONNECTION_SEVERED, some[0], now_us, count=len(some))
        if len(some) > 1:
            del record.detail["source_port"]
        yield msgspec.structs.replace(record, reason=why)

"""The gate in the kernel: its rules through nft, its tags and holes through netlink."""

import errno
import subprocess
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Final, Protocol, Self, TypeAlias, TypeVar

from spa_server.firewall import elements, gate, nftables, programs
from spa_server.firewall.backstop import Backstop, BackstopHeld
from spa_server.firewall.elements import Denial, Element, HoleLease, Lease, LiveHole, TagLease
from spa_server.firewall.gate import TABLE
from spa_server.firewall.nftables import Count, Request
from spa_server.firewall.plan import GatePlan
from spa_server.flow import Flow
from spa_server.hole import Hole
from spa_server.netlink import (
    NETLINK_NETFILTER,
    Failure,
    NetlinkError,
    NetlinkSocket,
    failures_in,
)

# How many tags one transaction admits, in a few milliseconds during which nothing else is done.
TAGS_AT_ONCE: Final = elements.MAX_ELEMENTS
# How many elements one transaction deletes: as many refusals as can wait in the socket.
_DELETIONS_AT_ONCE: Final = 500
_PUT_ATTEMPTS: Final = 3
_BUSY_ATTEMPTS: Final = 10
_BUSY_PAUSE_S: Final = 0.01
_NFT_WITHIN_S: Final = 30
_CHILDREN_REMEMBERED: Final = 64
_BASE_CHAINS: Final = ("knock", "gate", "delivered", "silence", "own")
_NO_GATE: Final = "the gate does not stand"

_T = TypeVar("_T")
# A set's name and a key in it.
_Key: TypeAlias = tuple[str, bytes]


class _Put(Protocol):
    def __call__(self, *, are_new: bool) -> list[Request]: ...


class FirewallError(Exception):
    """The kernel or nft refused. `errno` is the kernel's number, where it gave one."""

    def __init__(self, text: str, number: int | None = None) -> None:
        super().__init__(text)
        self.errno = number


class AdmissionStopped(FirewallError):
    """Not every tag could be admitted; the first `admitted` of them were."""

    def __init__(self, text: str, number: int | None, admitted: int) -> None:
        super().__init__(text, number)
        self.admitted = admitted


class Gate:
    """The table `inet spa` of the network namespace in which this was made, and what stands behind
    it in `backstop`.

    Any method may raise FirewallError; what it was to change is then as it was, unless it says
    otherwise. `apply`, `remove` and `ruleset` run nft, in the caller's network namespace.
    """

    def __init__(self) -> None:
        try:
            self._socket = NetlinkSocket(NETLINK_NETFILTER)
            self.backstop = Backstop(self._socket)
        except NetlinkError as error:
            raise FirewallError(f"no netlink to netfilter: {error.strerror}", error.errno) from None
        self._children: deque[int] = deque(maxlen=_CHILDREN_REMEMBERED)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Gives up the netlink socket. The gate in the kernel stays as it is."""
        self._socket.close()

    @property
    def port(self) -> int:
        """The netlink port by which notifications name changes of elements made here."""
        return self._socket.port

    def is_own_process(self, process: int) -> bool:
        """Whether this is the process id of an nft that was run here."""
        return process in self._children

    def apply(self, plan: GatePlan) -> None:
        """Makes the gate be as planned, in place: tags, holes, flows and counts stay.

        The backstop after it: what could not be done about that is in `backstop.trouble`.
        """
        self._nft("-f", "-", script=gate.render(plan))
        self.backstop.arm(plan)

    def remove(self, *, by_force: bool = False) -> None:
        """Opens every port again. No error where no gate stands.

        A daemon that holds the backstop lets it go; `by_force` one that does not is killed.
        """
        self._nft("-f", "-", script=gate.render_removal())
        try:
            self.backstop.remove(by_force=by_force)
        except NetlinkError as error:
            raise _refusal("removing the backstop", error) from None
        except BackstopHeld as held:
            raise FirewallError(str(held), errno.EPERM) from None

    def ruleset(self) -> str:
        """The gate as nft lists it, without the contents of its sets."""
        return self._nft("--terse", "list", "table", "inet", TABLE)

    def restore(self, ruleset: str) -> None:
        """Makes the gate be as `ruleset` once listed it, in place: tags, holes and flows stay.

        What stood behind that gate is not known, nor whether it marked what it let in (an older
        release's did not): so the backstop goes first.
        """
        self.backstop.disarm("the gate is as it was before a trial")
        self._nft("-f", "-", script=gate.render_again(ruleset))

    def is_loaded(self) -> bool:
        """Whether the gate stands: its table is awake, its chains hang in their hooks."""
        try:
            table = self._socket.get(nftables.GETTABLE, nftables.of_table())
            chains = [
                self._socket.get(nftables.GETCHAIN, nftables.of_chain(name))
                for name in _BASE_CHAINS
            ]
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return False
            raise _refusal("reading the gate", error) from None
        return not nftables.is_dormant(table) and all(map(nftables.is_at_work, chains))

    def admit(self, tags: Iterable[TagLease]) -> int:
        """Lets the knocks with these tags be heard, and returns how many tags were given.

        A tag that is admitted already gets the new timeout. Raises AdmissionStopped, which says
        how many were admitted.
        """
        return sum(self.admit_in_slices(tags))

    def admit_in_slices(self, tags: Iterable[TagLease]) -> Iterator[int]:
        """The same a slice at a time: yields how many tags each transaction has admitted."""
        admitted, are_new = 0, True
        for some in _slices(tags, TAGS_AT_ONCE):
            leases = list({lease.tag: lease.timeout_ms for lease in some}.items())
            try:
                put = partial(elements.put_all, elements.ADMITTED, leases)
                (are_new,) = self._put([(put, are_new)])
            except FirewallError as error:
                raise AdmissionStopped(str(error), error.errno, admitted) from None
            admitted += len(some)
            yield len(some)

    def hold_back(self, tag: TagLease) -> None:
        """Puts what comes under a flooded tag into the narrow lane, for so long from now."""
        lease = [(tag.tag, tag.timeout_ms)]
        self._put([(partial(elements.put_all, elements.FLOODED, lease), True)])

    def withdraw(self, tags: Iterable[bytes]) -> None:
        """Lets knocks with these tags be heard no more. One that is not admitted is no error.

        After an error some may be withdrawn and others not.
        """
        self._delete((elements.ADMITTED, tag) for tag in tags)

    def open(self, leases: Iterable[HoleLease]) -> None:
        """Opens holes in one transaction; one that is open gets the new timeout, longer or shorter.

        Of several leases of one hole the last counts. As much may begin at it as at a new one.
        """
        wanted = {
            (elements.hole_set(lease.hole), elements.hole_key(lease.hole)): lease
            for lease in leases
        }
        puts: list[tuple[_Put, bool]] = []
        lasting: dict[tuple[str, bool], list[Lease]] = {}
        for (name, key), lease in wanted.items():
            if not lease.is_new:
                forget = partial(elements.take_out, elements.begun_set(lease.hole), [key])
                puts.append((forget, True))
            if lease.hole.once:
                puts.append((partial(elements.put_one, name, key, lease.timeout_ms), True))
                puts.append((partial(elements.put_tries, lease), True))
            else:
                lasting.setdefault((name, lease.is_new), []).append((key, lease.timeout_ms))
        for (name, are_new), some in lasting.items():
            puts.append((partial(elements.put_all, name, some), are_new))
        self._put(puts)

    def close(self, holes: Iterable[Hole]) -> None:
        """Closes holes. One that is closed already is no error.

        Sessions that came in stay in conntrack, and end only where their port is `cut`: a deleted
        entry would be made anew by the host's next packet. After an error some may be closed and
        others not.
        """
        self._delete(
            (name, elements.hole_key(hole)) for hole in holes for name in elements.sets_of(hole)
        )

    def stop_flows(self, flows: Iterable[Flow]) -> None:
        """Stops the packets of these flows, whatever holes are open: for a week since the last."""
        wanted: dict[str, dict[bytes, None]] = {}
        for flow in flows:
            wanted.setdefault(elements.stopped_set(flow), {})[elements.flow_key(flow)] = None
        requests = [
            request
            for name, keys in wanted.items()
            for request in elements.add(name, [(key, elements.STOPPED_MS) for key in keys])
        ]
        if failures := self._transact(requests):
            raise _worst("stopping connections", failures)

    def release_flows(self, flows: Iterable[Flow]) -> None:
        """Lets flows go on that were stopped. One that was not is no error."""
        self._delete((elements.stopped_set(flow), elements.flow_key(flow)) for flow in flows)

    def stopped_flows(self) -> list[Flow]:
        """Every flow that is stopped."""
        return [
            elements.decode_flow(name, element.key)
            for name in elements.STOPPED_SETS
            for element in self._elements(name)
        ]

    def live_holes(self) -> list[LiveHole]:
        """Every hole that is open."""
        return [
            LiveHole(
                hole=elements.decode_hole(name, element.key),
                remaining_ms=element.remaining_ms or 0,
                packets=element.count.packets,
                bytes=element.count.bytes,
            )
            for name in elements.HOLE_SETS
            for element in self._elements(name)
        ]

    def denials(self) -> Iterator[Denial]:
        """What was denied in the last minutes: up to 65,535 sources and ports of each family."""
        return self._denials(elements.DENIED_SETS)

    def observed(self) -> Iterator[Denial]:
        """The same of what would have been denied, and was let in: counts of connections."""
        return self._denials(elements.OBSERVED_SETS)

    def _denials(self, set_names: Iterable[str]) -> Iterator[Denial]:
        for name in set_names:
            for element in self._elements(name):
                yield elements.decode_denial(name, element)

    def listing(self, set_name: str) -> Iterator[Element]:
        """The elements of a set, read now and decoded one by one as they are asked for.

        It may be torn: what was changed meanwhile may be missing, or there twice.
        """
        try:
            answers = self._socket.dump_once(nftables.GETSETELEM, elements.dump_request(set_name))
        except NetlinkError as error:
            raise _refusal(f"reading {set_name}", error) from None
        return elements.decode_elements(answers)

    def counters(self) -> dict[str, Count]:
        """The table's named counters, which count from when the table was made."""
        try:
            answers = self._socket.dump(nftables.GETOBJ, nftables.of_table())
        except NetlinkError as error:
            raise _refusal("reading the counters", error) from None
        counters = dict(nftables.named_counters(answers))
        if not counters:
            raise FirewallError(f"reading the counters: {_NO_GATE}", errno.ENOENT)
        return counters

    def _elements(self, set_name: str) -> Iterator[Element]:
        try:
            answers = self._socket.dump(nftables.GETSETELEM, elements.dump_request(set_name))
        except NetlinkError as error:
            raise _refusal(f"reading {set_name}", error) from None
        return elements.decode_elements(answers)

    def _put(self, puts: Sequence[tuple[_Put, bool]]) -> list[bool]:
        """Commits puts, each with a guess whether its elements are new; what was true in the end.

        Where they are not new, `elements.renew` has two elements with one key for as long as the
        kernel needs to commit, and packets that are on their way just then can meet either. A
        `once` hole would admit two connections; so it is added as new, or else deleted and added.
        What is there may end or be taken by a packet at any time: then the kernel refuses, and the
        other way is tried. A wrong guess is dear: to undo a transaction takes the kernel 10 ms.
        """
        are_new = [guess for _, guess in puts]
        failures: list[tuple[int, Failure]] = []
        for _ in range(_PUT_ATTEMPTS):
            owned = [
                (number, request)
                for number, (put, _) in enumerate(puts)
                for request in put(are_new=are_new[number])
            ]
            failures = self._transact([request for _, request in owned])
            if not failures:
                return are_new
            if not {failure.number for _, failure in failures} <= {errno.ENOENT, errno.EEXIST}:
                break
            for number in {owned[index][0] for index, _ in failures}:
                are_new[number] = not are_new[number]
        raise _worst("adding elements", failures)

    def _delete(self, keys: Iterable[_Key]) -> None:
        """Deletes elements of sets, each its own request so that the kernel says which are gone."""
        for some in _slices(keys, _DELETIONS_AT_ONCE):
            there = list(dict.fromkeys(some))
            while there:
                requests = [r for name, key in there for r in elements.delete(name, [key])]
                failures = self._transact(requests)
                gone = {index for index, failure in failures if failure.number == errno.ENOENT}
                if len(gone) != len(failures):
                    raise _worst("deleting elements", failures)
                if not gone:
                    break
                there = [key for index, key in enumerate(there) if index not in gone]

    def _transact(self, requests: Sequence[Request]) -> list[tuple[int, Failure]]:
        """Commits all or nothing: returns the refusals, by the index of the request refused.

        An index of -1 is the transaction as a whole. A hash table that the kernel is just building
        anew may be too busy to take one more element, for moments; then it is tried again.
        """
        failures = self._transact_once(requests)
        for _ in range(_BUSY_ATTEMPTS):
            if not any(failure.number == errno.EBUSY for _, failure in failures):
                break
            time.sleep(_BUSY_PAUSE_S)
            failures = self._transact_once(requests)
        return failures

    def _transact_once(self, requests: Sequence[Request]) -> list[tuple[int, Failure]]:
        if not requests:
            return []
        first = self._socket.sequence(len(requests) + 2)
        try:
            answers = self._socket.exchange(nftables.batch(requests, first))
        except NetlinkError as error:
            raise _refusal("changing elements", error) from None
        failures = [(failure.sequence - first - 1, failure) for failure in failures_in(answers)]
        if not failures and not any(a.sequence == first + len(requests) for a in answers):
            raise FirewallError("changing elements: the kernel did not acknowledge it")
        return failures

    def _nft(self, *arguments: str, script: str = "") -> str:
        """What nft prints."""
        try:
            child = subprocess.Popen(
                [programs.find("nft"), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=programs.ENVIRONMENT,
            )
        except OSError as error:
            raise FirewallError(f"nft could not be run: {error.strerror}", error.errno) from None
        self._children.append(child.pid)
        with child:
            try:
                output, complaint = child.communicate(script, timeout=_NFT_WITHIN_S)
            except subprocess.TimeoutExpired:
                child.kill()
                raise FirewallError(f"nft did not finish within {_NFT_WITHIN_S} s") from None
        if child.returncode:
            raise FirewallError(f"nft: {_first_line(complaint)}")
        return output


def _refusal(doing: str, error: NetlinkError) -> FirewallError:
    text = _NO_GATE if error.errno == errno.ENOENT else error.strerror
    return FirewallError(f"{doing}: {text}", error.errno)


def _worst(doing: str, failures: Sequence[tuple[int, Failure]]) -> FirewallError:
    """The first refusal that is not for a missing element, or else the first."""
    refused = [failure for _, failure in failures]
    worst = next((f for f in refused if f.number != errno.ENOENT), refused[0])
    text = {errno.ENOENT: _NO_GATE, errno.ENFILE: "the set is full"}.get(worst.number, worst.text)
    return FirewallError(f"{doing}: {text}", worst.number)


def _first_line(complaint: str) -> str:
    """nft's error without the place in a file that its reader has not got."""
    line = next(iter(complaint.strip().splitlines()), "it failed and did not say why")
    return line.partition("Error: ")[2] or line


def _slices(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some

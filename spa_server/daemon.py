"""The daemon: one event loop that waits, and hands what comes to the guard.

It sleeps until something happens: a knock, a connection, a change to the ruleset, the routes, the
clock or the registry, a request on the control socket, or the moment at which a grant, a key or a
tag epoch ends. It polls nothing, except to get out of a failure.
"""

import asyncio
import gc
import os
import secrets
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from typing import Final, Protocol, TypeVar

from keys.actor import Actor
from keys.text import printable
from keys.tomlfile import FileProblem
from keys.trouble import Trouble
from spa_protocol.layout import NONCE_SIZE
from spa_protocol.publickey import Sender
from spa_protocol.reply import Reply, seal_reply
from spa_server import clock, operations
from spa_server.answer import AnswerSocket
from spa_server.capture.datagram import Datagram, KnockCapture
from spa_server.capture.nflog import NflogCapture, NflogSocket
from spa_server.config import Config
from spa_server.connections import DENY_GROUP, PERMIT_GROUP
from spa_server.conntrack import Conntrack
from spa_server.control import ControlServer
from spa_server.denialcounts import Reading
from spa_server.firewall.routes import RouteWatch
from spa_server.firewall.watch import RulesetWatch
from spa_server.guard import Guard
from spa_server.snapshot import Snapshot, Snapshots

_AT_ONCE: Final = 256
_A_SIGNAL: Final = Actor("SIGHUP")  # a signal does not say who sent it
_DRIFT_EVERY_S: Final = 300.0
_ENDS_EVERY_S: Final = 0.1
_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0


class _Readable(Protocol):
    def fileno(self) -> int: ...
    def close(self) -> None: ...


R = TypeVar("R", bound=_Readable)


class Daemon:
    """Making one reads every file that the guard needs, and raises Trouble for what is wrong."""

    def __init__(self, config: Config) -> None:
        self._answers = AnswerSocket(config.knock_port, config.carriers)
        self._guard = Guard(config, self._answer, self._answers.carry)
        self._config = config
        self._timer: asyncio.TimerHandle | None = None
        self._pause_until_s = 0.0
        self._loading: asyncio.Task[None] | None = None
        self._drifting: asyncio.Task[None] | None = None
        self._finding: asyncio.Task[None] | None = None
        self._counting: asyncio.Task[None] | None = None
        self._freeing: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._is_over = False  # the guard is closed: nothing of the loop may touch it any more
        self._hears_again = False

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises Trouble when it cannot begin."""
        if not self._guard.gatehouse.is_wanted:
            raise Trouble(
                "the gate is not in force on this host",
                "put it in force: spa-server gate apply --confirm-within 60s",
            )
        control = ControlServer(
            self._config.control,
            operations.handlers(self._guard, self._after),
            operations.readers(self._config),
            operations.is_roots,
        )
        await control.start()
        loop = asyncio.get_running_loop()
        for stop in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(stop, self._stopping.set)
        try:
            with ExitStack() as stack:
                await self._begin(stack)
                if (problem := self._guard.rulebook.problem) is not None:
                    self._say(f"the policy in force stays; {problem}")
                if (problem := self._guard.gatehouse.held_back) is not None:
                    self._say(str(problem))
                await self._stopping.wait()
                await control.fall_silent()
                self._is_over = True
                self._guard.stop()
        finally:
            self._is_over = True
            if self._timer is not None:
                self._timer.cancel()
            for task in self._tasks:
                if task is not None:
                    task.cancel()
            await control.stop()

    @property
    def _tasks(self) -> tuple[asyncio.Task[None] | None, ...]:
        return (self._loading, self._drifting, self._finding, self._counting, self._freeing)

    async def _begin(self, stack: ExitStack) -> None:
        """Opens every ear before the gate is touched, so that nothing is missed in between."""
        capture = self._open(stack, open_capture(self._config))
        # First: the kernel tells the end only of what began while somebody listened for ends.
        ends = self._open(stack, Conntrack())
        permits = self._open(stack, NflogSocket(PERMIT_GROUP))
        denials = self._open(stack, NflogSocket(DENY_GROUP))
        gate = self._guard.gate
        ruleset = self._open(stack, RulesetWatch(gate.port, gate.is_own_process))
        routes = self._open(stack, RouteWatch())
        settings = self._open(stack, clock.ClockWatch())
        self._serve_metrics(stack)
        self._guard.connections.ends.follow(ends, lambda: self._hear_permits(permits))
        self._guard.start()
        for _ in self._guard.load_tags():
            await asyncio.sleep(0)
        # The keys stay for as long as the daemon does: no collection need walk through them again.
        gc.collect()
        gc.freeze()
        guard = self._guard
        self._on(capture, lambda: self._hear(capture))
        self._on(permits, lambda: self._logged(permits, guard.recorder.permitted))
        self._on(denials, lambda: self._denied(denials))
        self._on(ruleset, lambda: self._heard("the ruleset", ruleset, guard.ruleset_changed))
        self._on(routes, lambda: self._heard("the routes", routes, guard.routes_changed))
        self._on(settings, lambda: self._clock_set(settings))
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, lambda: self._safely(self._reload))
        if guard.lookout is not None:
            guard.lookout.wake = partial(loop.call_soon_threadsafe, self._after)
        # What is denied from now on is counted: so what was before has to be known.
        await self._count_denials(guard.counts.begin())
        self._after()
        guard.is_serving = True
        _tell_systemd("READY=1")
        self._drifting = asyncio.create_task(self._watch_drift())
        self._finding = asyncio.create_task(self._find_unended(ends))

    async def _find_unended(self, ends: Conntrack) -> None:
        """Ends wait until it is known what an earlier run let in: else they would be nobody's."""
        for _ in self._guard.find_unended():
            await asyncio.sleep(0)
        self._after()
        self._listen_to_ends(ends)

    def _listen_to_ends(self, ends: Conntrack) -> None:
        if not self._stopping.is_set():
            self._on(ends, lambda: self._ended(ends))

    def _ended(self, ends: Conntrack) -> None:
        """Most ends are of others' connections: however many, they wake nobody more often."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(ends.fileno())
        has_more = False
        try:
            has_more = self._guard.ended()
        finally:
            loop.call_later(0 if has_more else _ENDS_EVERY_S, self._listen_to_ends, ends)

    def _hear_permits(self, permits: NflogSocket) -> None:
        while self._logged(permits, self._guard.recorder.permitted):
            pass

    def _denied(self, denials: NflogSocket) -> None:
        if self._logged(denials, self._guard.recorder.denied):
            self._guard.counts.stir(clock.monotonic_s())

    async def _count_denials(self, read: Callable[[], Reading | None]) -> None:
        reading = None
        try:
            reading = await asyncio.to_thread(read)
        except Exception:
            traceback.print_exc()  # the daemon lives on without
        for _ in self._guard.counts.enter(reading, clock.monotonic_s):
            await asyncio.sleep(0)
        self._after()

    async def _watch_drift(self) -> None:
        """Looks for drift at once, and then every few minutes: in a thread, since it blocks."""
        while True:
            try:
                drift = await asyncio.to_thread(self._guard.look_for_drift())
            except Exception:
                traceback.print_exc()  # the daemon lives on without
            else:
                self._safely(partial(self._guard.drifted, drift))
            await asyncio.sleep(_DRIFT_EVERY_S)

    def _serve_metrics(self, stack: ExitStack) -> None:
        if self._config.metrics is None:
            return
        try:
            from spa_server.metrics import MetricsServer  # noqa: PLC0415 - only where it is on
        except ImportError:
            raise Trouble(
                "`metrics` needs prometheus-client",
                "install it, or take `metrics` out of server.toml",
            ) from None
        snapshots = Snapshots(self._snapshot, asyncio.get_running_loop())
        server = MetricsServer(self._config.metrics, snapshots)
        stack.callback(server.close)

    def _snapshot(self) -> Snapshot:
        """Raises RuntimeError where there is nobody to ask any more."""
        if self._is_over:
            raise RuntimeError("the daemon has stopped")
        return self._guard.snapshot()

    def _open(self, stack: ExitStack, source: R) -> R:
        stack.enter_context(closing(source))
        return source

    def _on(self, source: _Readable, act: Callable[[], object]) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(source.fileno(), lambda: self._safely(act))

    def _hear(self, capture: KnockCapture) -> None:
        """What waits for its turn is heard in the next round, with what has come meanwhile."""
        guard = self._guard
        try:
            guard.hear(lambda now_us: capture.read_batch(_AT_ONCE, now_us))
        finally:
            if guard.waiting and not self._hears_again:
                self._hears_again = True
                asyncio.get_running_loop().call_soon(self._hear_again, capture)

    def _hear_again(self, capture: KnockCapture) -> None:
        self._hears_again = False
        if not self._stopping.is_set():
            self._safely(lambda: self._hear(capture))

    def _logged(self, source: NflogSocket, enter: Callable[..., None]) -> bool:
        """Whether there was anything."""
        batch = source.read_batch(_AT_ONCE)
        enter(batch.messages, batch.lost)
        return bool(batch.messages)

    def _heard(self, of: str, watch: RulesetWatch | RouteWatch, act: Callable[[], None]) -> None:
        """What cannot be read was perhaps a change."""
        try:
            if watch.read():
                act()
        except Exception as error:
            self._guard.doubt(of, error)

    def _clock_set(self, settings: clock.ClockWatch) -> None:
        settings.drain()
        self._guard.look_around()

    def _reload(self) -> None:
        try:
            self._guard.reload(_A_SIGNAL)
        except FileProblem as problem:
            self._say(f"the policy in force stays; {problem}")

    def _say(self, what: str) -> None:
        """What the record says too: for the journal, where that does not get the record."""
        if not self._guard.outputs.reach_the_journal:
            print(printable(f"spa-server: {what}"), file=sys.stderr, flush=True)

    def _safely(self, act: Callable[[], object]) -> None:
        """Whatever goes wrong with one thing, the daemon goes on to the next.

        What is overdue then stays so: it is tried again after a second, and not at once.
        """
        if self._is_over:
            return
        try:
            act()
        except Exception:
            traceback.print_exc()
            self._pause_until_s = clock.monotonic_s() + _PAUSE_S
        self._after()

    def _after(self) -> None:
        """Sets the one timer to what is due next; loads tags that are missing, and counts.

        Whatever goes wrong, the timer is set: without it nothing would be tried again.
        """
        if self._is_over:
            return
        try:
            wake_s = self._guard.next_wake_s()
            self._begin_what_is_due()
        except Exception:
            traceback.print_exc()
            wake_s = clock.monotonic_s() + _PAUSE_S
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(0.0, max(wake_s, self._pause_until_s) - clock.monotonic_s())
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(delay_s, self._safely, self._guard.tick)

    def _begin_what_is_due(self) -> None:
        if self._guard.needs_tags() and _is_over(self._loading):
            self._loading = asyncio.create_task(self._load_tags())
        if self._guard.counts.is_due(clock.monotonic_s()):
            self._counting = asyncio.create_task(self._count_denials(self._guard.counts.begin()))
        if self._answers.trouble != self._guard.answers_trouble and _is_over(self._freeing):
            self._freeing = asyncio.create_task(self._free_the_answers())

    async def _free_the_answers(self) -> None:
        """Says what hinders answers, and tries until nothing does, ever more seldom."""
        pause_s = _PAUSE_S
        while True:
            if (trouble := self._answers.trouble) and trouble != self._guard.answers_trouble:
                self._say(trouble)
            self._guard.answers_are(trouble)
            if not trouble:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            self._answers.try_again()

    async def _load_tags(self) -> None:
        try:
            for _ in self._guard.load_tags():
                await asyncio.sleep(0)
        except Exception as error:
            self._guard.doubt("the tags", error)
            self._after()

    def _answer(self, reply: Reply, sender: Sender, request_nonce: bytes, to: Datagram) -> None:
        nonce = secrets.token_bytes(NONCE_SIZE)
        payload = seal_reply(reply, pair=sender.pair, request_nonce=request_nonce, nonce=nonce)
        self._answers.send(payload, to)


def _is_over(task: asyncio.Task[None] | None) -> bool:
    return task is None or task.done()


def open_capture(config: Config) -> KnockCapture:
    """The capture that the configuration names. Raises CaptureError."""
    if config.capture == "nflog":
        return NflogCapture()
    from spa_server.capture.interface import InterfaceCapture  # noqa: PLC0415 - scapy, only here

    interface = config.capture.removeprefix("interface:")
    return InterfaceCapture(interface, config.knock_port, carriers=config.carriers)


def _tell_systemd(state: str) -> None:
    """sd_notify(3), where systemd asked for it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect("\0" + address[1:] if address.startswith("@") else address)
        notify.send(state.encode())


def run(config: Config) -> None:
    """The daemon, until it is told to stop."""

    async def main() -> None:
        await Daemon(config).run()

    asyncio.run(main())

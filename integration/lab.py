"""Hosts in network namespaces, on segments that are bridges: a network for one test.

    with Lab() as lab:
        server, client = lab.host("server"), lab.host("client")
        server.serve(22)
        assert client.reach_tcp(server.v4, 22) is Reach.OPEN

A host's interface is named after its segment. Addresses are 10.77.<segment>.<host> and
fd77:<segment>::<host>, each counted from 1, and usable at once. What the lab made, it removes, also
when the test fails: namespaces, processes, sockets. It touches nothing outside them.
"""

import ctypes
import os
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import count
from pathlib import Path
from typing import Final, Self, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address

DEFAULT_SEGMENT: Final = "lan"
SILENCE_S: Final = 0.3
_RUN_WITHIN_S: Final = 30.0
_END_WITHIN_S: Final = 5.0
_CLONE_NEWNET: Final = 0x40000000
_NAMESPACES: Final = Path("/var/run/netns")
_labs = count(1)


def missing() -> str:
    """Why no lab can be made here, or nothing."""
    if os.geteuid() != 0:
        return "a lab of network namespaces needs root"
    absent = [program for program in ("ip", "nft", "sysctl") if shutil.which(program) is None]
    return f"a lab needs {' and '.join(absent)}" if absent else ""


@contextmanager
def in_namespace(name: str) -> Iterator[None]:
    """The calling thread's network is that of the namespace; processes it starts inherit it.

    A socket belongs for ever to the namespace in which it was made.
    """
    with Path("/proc/thread-self/ns/net").open("rb") as before:
        with (_NAMESPACES / name).open("rb") as wanted:
            _enter(wanted.fileno())
        try:
            yield
        finally:
            _enter(before.fileno())


def _enter(namespace: int) -> None:
    # os.setns is there only since Python 3.12.
    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def wait_until(condition: Callable[[], object], *, within_s: float = 5.0, what: str = "") -> None:
    """Raises TimeoutError where the condition does not become true in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within_s} s: {what or condition}")
        time.sleep(0.01)


class Reach(Enum):
    """What came back from a port."""

    OPEN = "open"
    REFUSED = "refused"
    SILENT = "silent"


class Running:
    """A program that was started on a host, and what it has printed so far."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def pid(self) -> int:
        """The program's own process id, not that of a wrapper."""
        return self.process.pid

    @property
    def output(self) -> str:
        """Standard output and standard error together."""
        return self._log.read_text(errors="replace")

    def wait_for(self, text: str, *, within_s: float = 10.0) -> None:
        """Waits until it has printed the text. Raises TimeoutError, or RuntimeError if it ended."""
        deadline = time.monotonic() + within_s
        while text not in self.output:
            if self.process.poll() is not None and text not in self.output:
                raise RuntimeError(f"it ended with {self.process.returncode}: {self.output}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {text!r} within {within_s} s in: {self.output}")
            time.sleep(0.01)

    def stop(self, by: signal.Signals = signal.SIGTERM) -> int:
        """Ends it with its children, and returns its exit status. Twice is no error."""
        if self.process.poll() is None:
            self._signal(by)
            try:
                self.process.wait(_END_WITHIN_S)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
        return self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        # Started as the leader of its own process group.
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class Service:
    """Echoes what it receives on one TCP and one UDP port, of both families, from a thread.

    `received` has every payload in the order of arrival, `connections` counts TCP connections.
    """

    def __init__(self, host: "Host", port: int) -> None:
        self.port = port
        self.received: list[bytes] = []
        self.connections = 0
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._listener = host.new_socket(socket.AF_INET6, socket.SOCK_STREAM)
        self.udp = host.new_socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self._streams: list[socket.socket] = []
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for each in (self._listener, self.udp):
            each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            each.setblocking(False)
            each.bind(("::", port))
            self._selector.register(each, selectors.EVENT_READ)
        self._listener.listen(1024)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Closes its sockets."""
        if self._thread.is_alive():
            self._waker.send(b"x")
            self._thread.join()
        for each in (*self._streams, self._listener, self.udp, self._waker, self._woken):
            each.close()
        self._selector.close()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._woken:
                    return
                assert isinstance(key.fileobj, socket.socket)
                with suppress(OSError):
                    self._serve(key.fileobj)

    def _serve(self, ready: socket.socket) -> None:
        if ready is self._listener:
            stream, _ = ready.accept()
            stream.setblocking(False)
            self.connections += 1
            self._streams.append(stream)
            self._selector.register(stream, selectors.EVENT_READ)
        elif ready is self.udp:
            data, sender = ready.recvfrom(65536)
            self.received.append(data)
            ready.sendto(data, sender)
        else:
            self._echo(ready)

    def _echo(self, stream: socket.socket) -> None:
        data = b""
        with suppress(OSError):
            data = stream.recv(65536)
        if not data:
            self._selector.unregister(stream)
            stream.close()
            return
        self.received.append(data)
        stream.send(data)


@dataclass(frozen=True, slots=True)
class Place:
    """A host's place on one segment: its interface and its addresses."""

    interface: str
    v4: IPv4Address
    v6: IPv6Address


@dataclass
class Host:
    """One namespace. `v4` and `v6` are its addresses on the first segment it joined."""

    lab: "Lab"
    name: str
    namespace: str
    places: dict[str, Place] = field(default_factory=dict)

    @property
    def v4(self) -> IPv4Address:
        """Its IPv4 address on its first segment."""
        return next(iter(self.places.values())).v4

    @property
    def v6(self) -> IPv6Address:
        """Its IPv6 address on its first segment."""
        return next(iter(self.places.values())).v6

    def on(self, segment: str) -> Place:
        """Its place on a segment."""
        return self.places[segment]

    def inside(self) -> AbstractContextManager[None]:
        """Runs a block of the test's own code on this host: see `in_namespace`."""
        return in_namespace(self.namespace)

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        check: bool = True,
        timeout: float = _RUN_WITHIN_S,
        env: Mapping[str, str] | None = None,
        text: str | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program to its end; `env` adds to the environment, `text` is its input.

        Raises AssertionError, with what it printed, where it fails and `check` asks for success.
        """
        done = subprocess.run(
            self._command(argv),
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **(env or {})},
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            cwd=cwd,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{argv} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def run_python(self, code: str, *argv: str, timeout: float = _RUN_WITHIN_S) -> str:
        """Runs Python code with this interpreter and returns what it printed."""
        return self.run([sys.executable, "-c", code, *argv], timeout=timeout).stdout

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Running:
        """Starts a program that is ended with the lab, if not before."""
        log = self.lab.new_file(f"{self.name}-{Path(argv[0]).name}")
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._command(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                start_new_session=True,
            )
        running = Running(process, log)
        self.lab.at_end(running.stop)
        return running

    def _command(self, argv: Sequence[str | Path]) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *map(str, argv)]

    def ip(self, *commands: str) -> None:
        """Runs `ip` commands, each one string, in one go."""
        _ip(self.namespace, commands)

    def sysctl(self, **values: int) -> None:
        """Sets keys under net, written with __ for a dot: ipv4__ip_forward=1."""
        with self.inside():
            for name, value in values.items():
                path = Path("/proc/sys/net", *name.split("__"))
                path.write_text(str(value))

    def add_address(self, address: str, segment: str = DEFAULT_SEGMENT) -> None:
        """One more address, written with its prefix length, usable at once.

        Connections do not leave from it unless they are bound to it.
        """
        second = " nodad preferred_lft 0" if ":" in address else ""
        self.ip(f"address add {address} dev {self.places[segment].interface}{second}")

    def add_route(self, prefix: str, via: Address) -> None:
        """A route by a gateway."""
        self.ip(f"route add {prefix} via {via}")

    def default_route(self, via: "Host", segment: str = DEFAULT_SEGMENT) -> None:
        """Default routes of both families by another host on the same segment."""
        gateway = via.on(segment)
        self.ip(f"route add default via {gateway.v4}", f"route add default via {gateway.v6}")

    def forward(self) -> None:
        """Makes it a router for both families."""
        self.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)

    def new_socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket of this host, closed with the lab, if not before."""
        with self.inside():
            made = socket.socket(family, kind, protocol)
        self.lab.at_end(made.close)
        return made

    def serve(self, port: int) -> Service:
        """An echo service on a TCP and a UDP port, stopped with the lab, if not before."""
        service = Service(self, port)
        self.lab.at_end(service.stop)
        return service

    def connection(
        self, target: Address, port: int, *, source: Address | None = None, source_port: int = 0
    ) -> socket.socket:
        """A TCP socket that has begun to connect, and does not block."""
        stream = self.new_socket(_family(target), socket.SOCK_STREAM)
        stream.setblocking(False)
        if source is not None or source_port:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            stream.bind(("" if source is None else str(source), source_port))
        with suppress(BlockingIOError):
            stream.connect((str(target), port))
        return stream

    def reach_tcp(
        self,
        target: Address,
        port: int,
        *,
        source: Address | None = None,
        within_s: float = SILENCE_S,
    ) -> Reach:
        """What a TCP port does when somebody connects."""
        with self.connection(target, port, source=source) as stream:
            return reached(stream, within_s)

    def reach_udp(
        self,
        target: Address,
        port: int,
        data: bytes = b"are you there",
        *,
        source: Address | None = None,
        within_s: float = SILENCE_S,
    ) -> Reach:
        """What a UDP port does: answers, refuses by ICMP, or neither."""
        with self.new_socket(_family(target), socket.SOCK_DGRAM) as asking:
            if source is not None:
                asking.bind((str(source), 0))
            asking.settimeout(within_s)
            asking.connect((str(target), port))
            asking.send(data)
            try:
                asking.recv(65536)
            except TimeoutError:
                return Reach.SILENT
            except ConnectionRefusedError:
                return Reach.REFUSED
            return Reach.OPEN


def reached(stream: socket.socket, within_s: float = SILENCE_S) -> Reach:
    """What became of a connection that was begun."""
    waiting = select.poll()
    waiting.register(stream, select.POLLOUT)
    if not waiting.poll(within_s * 1000):
        return Reach.SILENT
    error = stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return Reach.REFUSED if error else Reach.OPEN


def echoes(stream: socket.socket, data: bytes = b"there?", within_s: float = SILENCE_S) -> bool:
    """Whether a connection to a `Service` carries data there and back."""
    waiting = select.poll()
    waiting.register(stream, select.POLLIN)
    try:
        stream.send(data)
        return bool(waiting.poll(within_s * 1000)) and stream.recv(len(data)) == data
    except OSError:
        return False


class Lab:
    """Makes hosts, and unmakes them all when it is left."""

    def __init__(self) -> None:
        self._prefix = f"spa{os.getpid()}-{next(_labs)}"
        self._segments: dict[str, int] = {}
        self._members: dict[str, int] = {}
        self._ends = ExitStack()
        self._files = count(1)

    def __enter__(self) -> Self:
        self._directory = Path(
            self._ends.enter_context(tempfile.TemporaryDirectory(prefix=self._prefix))
        )
        try:
            self._switch = self._namespace("switch")
        except BaseException:
            self._ends.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def at_end(self, action: Callable[[], object]) -> None:
        """Does this when the lab is left, the last first."""
        self._ends.callback(action)

    def new_file(self, name: str) -> Path:
        """A path of its own in a directory that goes with the lab."""
        return self._directory / f"{next(self._files)}-{name}"

    def host(self, name: str, *segments: str) -> Host:
        """A host on one or more segments (`lan` where none is named), made as they are named."""
        host = Host(self, name, self._namespace(name))
        for segment in segments or (DEFAULT_SEGMENT,):
            self._join(host, segment)
        return host

    def _namespace(self, name: str) -> str:
        full_name = f"{self._prefix}-{name}"
        subprocess.run(["ip", "netns", "add", full_name], check=True, capture_output=True)
        self.at_end(lambda: _remove_namespace(full_name))
        _ip(full_name, ["link set lo up"])
        return full_name

    def _join(self, host: Host, segment: str) -> None:
        if segment not in self._segments:
            self._segments[segment] = len(self._segments) + 1
            _ip(
                self._switch,
                [
                    f"link add {segment} type bridge mcast_snooping 0 forward_delay 0",
                    f"link set {segment} up addrgenmode none",
                ],
            )
        self._members[segment] = number = self._members.get(segment, 0) + 1
        index = self._segments[segment]
        place = Place(
            segment, IPv4Address(f"10.77.{index}.{number}"), IPv6Address(f"fd77:{index}::{number}")
        )
        host.places[segment] = place
        # Addresses are usable at once when no host asks first whether another has them.
        host.sysctl(ipv6__conf__default__accept_dad=0, ipv6__conf__default__accept_ra=0)
        port = f"{segment[:8]}{number}"
        host.ip(
            f"link add {segment} type veth peer name {port} netns {self._switch}",
            f"address add {place.v4}/24 broadcast + dev {segment}",
            f"link set {segment} up",
            f"address add {place.v6}/64 dev {segment} nodad",
        )
        _ip(self._switch, [f"link set {port} master {segment} up addrgenmode none"])


def _ip(namespace: str, commands: Sequence[str]) -> None:
    done = subprocess.run(
        ["ip", "-netns", namespace, "-batch", "-"],
        input="\n".join(commands) + "\n",
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"ip in {namespace}, one of {list(commands)}: {done.stderr.strip()}")


def _remove_namespace(name: str) -> None:
    """Removes it, and ends what has daemonized there: else it would live on."""
    listed = subprocess.run(
        ["ip", "netns", "pids", name], check=False, capture_output=True, text=True
    )
    for process in set(map(int, listed.stdout.split())) - {os.getpid()}:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _family(address: Address) -> int:
    return socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET

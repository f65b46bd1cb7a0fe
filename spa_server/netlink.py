"""Netlink (RFC 3549): messages and attributes as bytes, and a socket that carries them.

    nlmsghdr   length u32 | type u16 | flags u16 | sequence u32 | port u32          host order
    nfgenmsg   family u8 | version u8 = 0 | resource u16                            big-endian
    attribute  length u16 (with these 4 bytes) | type u16 | value, padded to 4      host order

What is inside netfilter's attributes is big-endian.
"""

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

from spa_server import bpf

NETLINK_ROUTE: Final = 0
NETLINK_SOCK_DIAG: Final = 4
NETLINK_NETFILTER: Final = 12

NLM_F_REQUEST: Final = 0x01
NLM_F_ACK: Final = 0x04
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400

_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLM_F_DUMP_INTR: Final = 0x10
_NLM_F_DUMP: Final = 0x300
_NLM_F_CAPPED: Final = 0x100
_NLM_F_ACK_TLVS: Final = 0x200
_NLMSGERR_ATTR_MSG: Final = 1
_NLA_F_NESTED: Final = 0x8000
_NLA_TYPE_MASK: Final = 0x3FFF

SOL_NETLINK: Final = 270
_NETLINK_ADD_MEMBERSHIP: Final = 1
_NETLINK_CAP_ACK: Final = 10
_NETLINK_EXT_ACK: Final = 11
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33

NFGENMSG: Final = struct.Struct(">BBH")
_HEADER: Final = struct.Struct("=IHHII")
HEADER_SIZE: Final = _HEADER.size
_ATTRIBUTE: Final = struct.Struct("=HH")
_ERROR: Final = struct.Struct("=i")

# What one transaction and the answers to it may take; the kernel reserves none of it ahead.
_SEND_BUFFER: Final = 64 << 20
_RECEIVE_BUFFER: Final = 4 << 20
_READ_SIZE: Final = 1 << 17
_ANSWER_WITHIN_MS: Final = 10_000
_DUMP_ATTEMPTS: Final = 8


class NetlinkError(OSError):
    """The kernel refused a request: `errno`, and in `strerror` its words or the system's."""


class Message(NamedTuple):
    """One message; `port` is the sender's or the asker's netlink port."""

    kind: int
    flags: int
    sequence: int
    port: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """The kernel's refusal of the message with this sequence number."""

    sequence: int
    number: int
    text: str

    def error(self) -> NetlinkError:
        """The refusal as an exception to raise."""
        return NetlinkError(self.number, self.text)


def attribute(kind: int, value: bytes) -> bytes:
    """A header of 4 bytes, the value, and zeros up to a multiple of 4."""
    size = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)


def nested(kind: int, value: bytes) -> bytes:
    """An attribute whose value is attributes."""
    return attribute(kind | _NLA_F_NESTED, value)


def attributes(data: bytes, at: int = 0) -> Iterator[tuple[int, bytes]]:
    """Each attribute's type and value, in order from `at`, a multiple of 4, up to a torn one."""
    unpack, head = _ATTRIBUTE.unpack_from, _ATTRIBUTE.size
    end = len(data)
    last = end - head
    while at <= last:
        size, kind = unpack(data, at)
        after = at + size
        if size < head or after > end:
            return
        yield kind & _NLA_TYPE_MASK, data[at + head : after]
        at = (after + 3) & -4


def message(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    """A message to the kernel: a header of 16 bytes and the payload, padded."""
    size = HEADER_SIZE + len(payload)
    return _HEADER.pack(size, kind, flags, sequence, 0) + payload + bytes(-size % 4)


def messages(data: bytes) -> Iterator[Message]:
    """Each message of what one read returned, up to one that is torn."""
    at, end = 0, len(data)
    while at + HEADER_SIZE <= end:
        size, kind, flags, sequence, port = _HEADER.unpack_from(data, at)
        after = at + size
        if size < HEADER_SIZE or after > end:
            return
        yield Message(kind, flags, sequence, port, data[at + HEADER_SIZE : after])
        at = (after + 3) & -4


def failure_in(answer: Message) -> Failure | None:
    """What an acknowledgement refuses; None when it accepts, or is none."""
    if answer.kind not in {_NLMSG_ERROR, _NLMSG_DONE} or len(answer.payload) < _ERROR.size:
        return None
    number = -_ERROR.unpack_from(answer.payload)[0]
    if number == 0:
        return None
    return Failure(answer.sequence, number, _words_in(answer) or os.strerror(number))


def failures_in(answers: Sequence[Message]) -> tuple[Failure, ...]:
    """Every refusal among the answers."""
    return tuple(failure for answer in answers if (failure := failure_in(answer)))


def _words_in(answer: Message) -> str:
    """The kernel's own words (NLMSGERR_ATTR_MSG), if it has any."""
    if answer.kind != _NLMSG_ERROR or not answer.flags & _NLM_F_ACK_TLVS:
        return ""
    request_size = _HEADER.unpack_from(answer.payload, _ERROR.size)[0]
    echoed = HEADER_SIZE if answer.flags & _NLM_F_CAPPED else request_size + -request_size % 4
    words = dict(attributes(answer.payload, _ERROR.size + echoed)).get(_NLMSGERR_ATTR_MSG, b"")
    return words.rstrip(b"\0").decode(errors="replace")


def enlarge_receive_buffer(opened: socket.socket, size: int) -> None:
    """As far as the caller's rights allow."""
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
    except OSError:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


class NetlinkSocket:
    """One netlink socket, for requests and their answers or for what the kernel tells by itself.

    It belongs to the network namespace in which it was made, whoever uses it from where. Not for
    use by several threads at once.
    """

    def __init__(
        self,
        protocol: int,
        *,
        receive_buffer: int = _RECEIVE_BUFFER,
        program: Sequence[bpf.Instruction] = (),
        groups: Sequence[int] = (),
    ) -> None:
        """`program` filters what arrives, also from the multicast groups that are then joined.

        Raises NetlinkError: the kernel has no such protocol, or who asks may not join.
        """
        self._sequence = 0
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        except OSError as error:
            raise NetlinkError(error.errno, error.strerror) from None
        try:
            self._prepare(receive_buffer)
            if program:
                bpf.attach(self._socket, program)
            self._socket.bind((0, 0))
            for group in groups:
                self._socket.setsockopt(SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        except OSError as error:
            self.close()
            raise NetlinkError(error.errno, error.strerror) from None

    def _prepare(self, receive_buffer: int) -> None:
        self._socket.setblocking(False)
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
            with suppress(OSError):
                self._socket.setsockopt(SOL_NETLINK, option, 1)
        with suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)
        enlarge_receive_buffer(self._socket, receive_buffer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Twice is no error."""
        self._socket.close()

    def fileno(self) -> int:
        """The descriptor to wait on: readable when the kernel has told something."""
        return self._socket.fileno()

    @property
    def port(self) -> int:
        """The netlink port by which the kernel's notifications name this socket."""
        name: tuple[int, int] = self._socket.getsockname()
        return name[0]

    def sequence(self, count: int) -> int:
        """The first of so many sequence numbers, not used before."""
        first = self._sequence + 1
        self._sequence += count
        return first

    def exchange(self, data: bytes) -> list[Message]:
        """Sends messages and returns the answers.

        nfnetlink works inside the sender's call, so all answers are there when it returns. Raises
        NetlinkError when they could not be sent or read.
        """
        self._send(data)
        return list(self._waiting())

    def request(self, kind: int, flags: int, payload: bytes) -> int:
        """Asks for something to be done: the errno of the acknowledgement, 0 for done.

        Raises NetlinkError when there is none.
        """
        answers = self._answers(kind, NLM_F_ACK | flags, payload)
        failure = failure_in(next(answer for answer in answers if answer.kind == _NLMSG_ERROR))
        return failure.number if failure else 0

    def get(self, kind: int, payload: bytes) -> Message:
        """The answer to a request for one thing. Raises NetlinkError when it is refused."""
        answer = next(self._answers(kind, 0, payload))
        if failure := failure_in(answer):
            raise failure.error()
        return answer

    def dump(self, kind: int, payload: bytes) -> list[Message]:
        """All things of a kind, as they stood together.

        A dump that was overtaken by a change is asked for again. Raises NetlinkError.
        """
        for _ in range(_DUMP_ATTEMPTS):
            answers = self.dump_once(kind, payload)
            if not any(answer.flags & _NLM_F_DUMP_INTR for answer in answers):
                return [answer for answer in answers if answer.kind != _NLMSG_DONE]
        raise NetlinkError(errno.EAGAIN, "it kept changing while it was read")

    def dump_once(self, kind: int, payload: bytes) -> list[Message]:
        """Every answer up to and with the one that ends the dump. Raises NetlinkError.

        It may be torn: what was changed meanwhile may be missing, or there twice.
        """
        answers = []
        for answer in self._answers(kind, _NLM_F_DUMP, payload):
            if failure := failure_in(answer):
                raise failure.error()
            answers.append(answer)
            if answer.kind == _NLMSG_DONE:
                break
        return answers

    def notifications(self) -> Iterator[Message | None]:
        """What the kernel has told since; None where it had to throw some away."""
        while True:
            try:
                yield from self._waiting()
            except NetlinkError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                yield None
            else:
                return

    def _answers(self, kind: int, flags: int, payload: bytes) -> Iterator[Message]:
        """The answers to one request, for as long as the caller wants more."""
        sequence = self.sequence(1)
        self._send(message(kind, NLM_F_REQUEST | flags, sequence, payload))
        ready = select.poll()
        ready.register(self._socket, select.POLLIN)
        while ready.poll(_ANSWER_WITHIN_MS):
            yield from (m for m in self._waiting() if m.sequence == sequence)
        raise NetlinkError(errno.ETIMEDOUT, "the kernel does not answer")

    def _send(self, data: bytes) -> None:
        """Drops what an exchange that failed half-way has left, and sends."""
        with suppress(OSError):
            while self._socket.recv(_READ_SIZE):
                pass
        try:
            self._socket.send(data)
        except OSError as error:
            raise NetlinkError(error.errno, error.strerror) from None

    def _waiting(self) -> Iterator[Message]:
        """What can be read without waiting."""
        while True:
            try:
                data = self._socket.recv(_READ_SIZE)
            except BlockingIOError:
                return
            except OSError as error:
                raise NetlinkError(error.errno, error.strerror) from None
            yield from messages(data)

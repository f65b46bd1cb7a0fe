"""Packets that nftables copies to user space: `log group N`, read from netlink.

The messages are those of linux/netfilter/nfnetlink_log.h; what the kernel does with them is in
net/netfilter/nfnetlink_log.c.

No protocol family is bound to the logger (NFULNL_CFG_CMD_PF_BIND): a rule names its group, and the
binding would change who gets the namespace's other log lines. One capability, CAP_NET_ADMIN.

Each message carries a number of its own (NFULNL_CFG_F_SEQ), so what the kernel had to throw away is
a gap that can be counted. The socket takes no ENOBUFS (NETLINK_NO_ENOBUFS): with it, one overrun
makes the kernel drop every further message until the queue has been read to its end.
"""

import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from spa_server import netlink
from spa_server.capture import CaptureError
from spa_server.capture.datagram import Datagram, datagram_of
from spa_server.capture.headers import parse_carried
from spa_server.netlink import NETLINK_NETFILTER, NFGENMSG, SOL_NETLINK, Message, NetlinkSocket

KNOCK_GROUP: Final = 621

_NETLINK_NO_ENOBUFS: Final = 5

_NFNL_SUBSYS_ULOG: Final = 4
_MSG_PACKET: Final = _NFNL_SUBSYS_ULOG << 8
_MSG_CONFIG: Final = _NFNL_SUBSYS_ULOG << 8 | 1

_NFULA_CFG_CMD: Final = 1
_NFULA_CFG_MODE: Final = 2
_NFULA_CFG_TIMEOUT: Final = 4
_NFULA_CFG_QTHRESH: Final = 5
_NFULA_CFG_FLAGS: Final = 6
_CFG_CMD_BIND: Final = 1
_COPY_PACKET: Final = 2
_CFG_F_SEQ: Final = 1

_NFULA_IFINDEX_INDEV: Final = 4
_NFULA_PAYLOAD: Final = 9
_NFULA_PREFIX: Final = 10
_NFULA_SEQ: Final = 12

_COPY_RANGE: Final = 512
_RECEIVE_BUFFER: Final = 16 * 1024 * 1024
_MESSAGE_SIZE: Final = 64 * 1024


class NflogPacket(msgspec.Struct, frozen=True):
    """A packet as a rule logged it: the rule's prefix, the bytes from the IP header on.

    At most 512 bytes of the packet are copied. `interface` is the index of the interface it came
    in by, 0 where there was none.
    """

    prefix: str
    packet: bytes
    interface: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What waited, and how many messages the kernel threw away before the last of them."""

    messages: list[NflogPacket]
    lost: int


class NflogSocket(NetlinkSocket):
    """One group of logged packets, without blocking.

    A packet arrives at once: the queue's threshold is one message. Raises CaptureError when the
    group cannot be had.
    """

    def __init__(self, group: int) -> None:
        self._expected = 0
        self._buffer = bytearray(_MESSAGE_SIZE)
        try:
            super().__init__(NETLINK_NETFILTER, receive_buffer=_RECEIVE_BUFFER)
        except OSError as error:
            raise CaptureError(f"this kernel has no netfilter netlink: {error.strerror}") from None
        try:
            self._socket.setsockopt(SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
            self._configure(group)
        except OSError as error:
            self.close()
            raise CaptureError(f"log group {group} cannot be had: {error}") from None
        except CaptureError:
            self.close()
            raise

    def read_batch(self, limit: int) -> Batch:
        """What waits, at most `limit` reads. Never blocks; what was lost is counted, not raised."""
        messages: list[NflogPacket] = []
        lost = 0
        view = memoryview(self._buffer)
        for _ in range(limit):
            try:
                size, (port, _groups) = self._socket.recvfrom_into(view)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise CaptureError(f"the log group cannot be read: {error.strerror}") from None
                continue
            if port:
                continue  # the kernel is port 0
            for number, message in _messages(bytes(view[:size])):
                messages.append(message)
                if number is not None:
                    lost += (number - self._expected) % 2**32
                    self._expected = (number + 1) % 2**32
        return Batch(messages, lost)

    def _configure(self, group: int) -> None:
        bind = (
            NFGENMSG.pack(socket.AF_UNSPEC, 0, group)
            + netlink.attribute(_NFULA_CFG_CMD, bytes([_CFG_CMD_BIND]))
            + netlink.attribute(_NFULA_CFG_MODE, struct.pack(">IBx", _COPY_RANGE, _COPY_PACKET))
            + netlink.attribute(_NFULA_CFG_QTHRESH, struct.pack(">I", 1))
            + netlink.attribute(_NFULA_CFG_TIMEOUT, struct.pack(">I", 1))
            + netlink.attribute(_NFULA_CFG_FLAGS, struct.pack(">H", _CFG_F_SEQ))
        )
        number = self.request(_MSG_CONFIG, 0, bind)
        if number in (errno.EBUSY, errno.EEXIST) or (number == errno.EPERM and self._may_ask()):
            raise CaptureError(
                f"log group {group} is read by another process; is a spa-server running already?"
            )
        if number == errno.EPERM:
            raise CaptureError(f"log group {group} is refused; CAP_NET_ADMIN is needed")
        if number:
            raise CaptureError(
                f"log group {group} cannot be had: {errno.errorcode.get(number, number)}; "
                "is nfnetlink_log in this kernel?"
            )

    def _may_ask(self) -> bool:
        """Whether the kernel hears this process at all: EPERM says both that it does not and that
        a group is another's. A PACKET message is answered with "unsupported" to who may ask."""
        nothing = NFGENMSG.pack(socket.AF_UNSPEC, 0, 0)
        return self.request(_MSG_PACKET, 0, nothing) != errno.EPERM


class NflogCapture:
    """Knocks as the gate's `knock` chain copies them: a `KnockCapture` on log group 621."""

    def __init__(self, group: int = KNOCK_GROUP) -> None:
        self._socket = NflogSocket(group)

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stops hearing."""
        self._socket.close()

    def read_batch(self, limit: int, now_us: int) -> tuple[list[Datagram], int]:
        """The knocks that wait. By which carrier and to which port is the rules' choice."""
        batch = self._socket.read_batch(limit)
        heard = []
        for message in batch.messages:
            carried = parse_carried(message.packet)
            if carried is not None:
                heard.append(datagram_of(carried, now_us, message.interface))
        return heard, batch.lost


def _messages(data: bytes) -> Iterator[tuple[int | None, NflogPacket]]:
    """The logged packets in one read, each with its number in the group.

    One that was logged while the group was being set up has none.
    """
    return (_packet(each) for each in netlink.messages(data) if each.kind == _MSG_PACKET)


def _packet(message: Message) -> tuple[int | None, NflogPacket]:
    found = dict(netlink.attributes(message.payload, NFGENMSG.size))
    number = found.get(_NFULA_SEQ)
    packet = NflogPacket(
        found.get(_NFULA_PREFIX, b"").rstrip(b"\0").decode("utf-8", "replace"),
        found.get(_NFULA_PAYLOAD, b""),
        int.from_bytes(found.get(_NFULA_IFINDEX_INDEV, b"")),
    )
    return None if number is None else int.from_bytes(number), packet

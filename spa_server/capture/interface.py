"""Knocks as they pass an interface: for mirror ports, and for kernels without nftables.

scapy's L2ListenSocket opens the interface and gives raw frames, tags of VLANs put back in; nothing
of scapy's dissection is used, which reads 2,500 packets a second where its raw receive reads
100,000. The kernel hands over only what has a knock's length: datagrams to the knock port, and what
else carries knocks here.

This capture sees a packet whatever the gate does with it, and before the gate has limited anything:
its limits are in user space (limit.py), so a flood costs the daemon time. Frames that are not for
this host are heard too, as a mirror port wants it: whether a target is one of ours, the daemon
judges. A source that is no single host's is not heard. CAP_NET_RAW is needed.
"""

import errno
import logging
import socket
import struct
from collections.abc import Iterable
from typing import Any, Final

from spa_protocol.carrier import UDP, Carrier
from spa_protocol.layout import DEFAULT_PORT, TAG_SIZE, is_unicast
from spa_server import bpf
from spa_server.capture import CaptureError, links
from spa_server.capture.datagram import Datagram, datagram_of
from spa_server.capture.headers import Carried, parse_carried
from spa_server.capture.limit import PairLimit
from spa_server.netlink import enlarge_receive_buffer

_SOL_PACKET: Final = 263
_PACKET_STATISTICS: Final = 6
_STATISTICS = struct.Struct("=II")
_RECEIVE_BUFFER: Final = 4 * 1024 * 1024
_FRAME_SIZE: Final = 2048

# ARPHRD_* of linux/if_arp.h: Ethernet and loopback have Ethernet headers, tunnels none.
_LINK_TYPES: Final = dict.fromkeys((1, 772), links.ETHERNET) | dict.fromkeys(
    (519, 768, 769, 776, 0xFFFE), links.RAW
)


class InterfaceCapture:
    """A `KnockCapture` on one interface. Raises CaptureError when it cannot be opened."""

    def __init__(
        self,
        interface: str,
        port: int = DEFAULT_PORT,
        limit: PairLimit | None = None,
        *,
        carriers: Iterable[Carrier] = (UDP,),
    ) -> None:
        self._name = interface
        self._listen = _open(interface)
        self._limit = limit or PairLimit()
        sock: socket.socket = self._listen.ins
        try:
            _, _, _, hardware, _ = sock.getsockname()
            if hardware not in _LINK_TYPES:
                raise CaptureError(
                    f"{interface} has frames of a kind that cannot be read (ARPHRD {hardware})"
                )
            self._link_type = _LINK_TYPES[hardware]
            self._index = socket.if_nametoindex(interface)
            enlarge_receive_buffer(sock, _RECEIVE_BUFFER)
            _begin_with(sock, port, carriers)
        except CaptureError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise CaptureError(f"{interface} cannot be captured from: {error.strerror}") from None

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return int(self._listen.fileno())

    def close(self) -> None:
        """Stops hearing."""
        self._listen.close()

    def read_batch(self, limit: int, now_us: int) -> tuple[list[Datagram], int]:
        """The knocks that wait, at most `limit` frames of them."""
        heard = []
        for _ in range(limit):
            frame = self._read()
            if frame is None:
                break
            carried = self._judge(frame, now_us)
            if carried is not None:
                heard.append(datagram_of(carried, now_us, self._index))
        return heard, self._lost()

    def _read(self) -> bytes | None:
        """One frame, or None when none waits."""
        try:
            frame: bytes = self._listen.recv_raw(_FRAME_SIZE)[1]
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.ENETDOWN or self._is_gone():
                raise CaptureError(f"{self._name} is gone: {error.strerror}") from None
            return None
        return frame

    def _is_gone(self) -> bool:
        """Whether the interface was removed: one that is only down comes up again."""
        sock: socket.socket = self._listen.ins
        return not sock.getsockname()[0]

    def _judge(self, frame: bytes, now_us: int) -> Carried | None:
        """What a frame carries, if it may be one more of its source and tag."""
        inner = links.ip_of(self._link_type, frame)
        carried = parse_carried(inner) if inner else None
        if carried is None or not is_unicast(carried.source):
            return None
        tag = carried.payload[:TAG_SIZE]
        return carried if self._limit.admits(carried.source.packed, tag, now_us) else None

    def _lost(self) -> int:
        """Frames dropped for want of room since this was last asked: packet(7), tp_drops."""
        sock: socket.socket = self._listen.ins
        raw = sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
        return int(_STATISTICS.unpack(raw)[1])


def _open(interface: str) -> Any:
    """A scapy L2ListenSocket, promiscuous. scapy takes half a second to import: only here."""
    from scapy.arch.linux import L2ListenSocket  # noqa: PLC0415
    from scapy.config import conf  # noqa: PLC0415

    conf.logLevel = logging.CRITICAL
    try:
        return L2ListenSocket(iface=interface, promisc=True, nofilter=1)
    except PermissionError:
        raise CaptureError(f"{interface} may not be captured from; CAP_NET_RAW is needed") from None
    except ValueError:
        raise CaptureError(f"there is no interface {interface}; ip link shows them") from None
    except OSError as error:
        raise CaptureError(f"{interface} cannot be captured from: {error.strerror}") from None


def _begin_with(sock: socket.socket, port: int, carriers: Iterable[Carrier]) -> None:
    """Lets in knocks only: what came before the filter stood is read away behind a closed one."""
    sock.setblocking(False)
    bpf.attach(sock, bpf.DROP_ALL)
    try:
        while True:
            sock.recv(_FRAME_SIZE)
    except BlockingIOError:
        bpf.attach(sock, bpf.knock_filter(port, carriers))

"""Packets that were recorded: pcap and pcapng, gzipped or not, read for a dry run.

scapy's RawPcapReader reads the records. It takes what is torn for the end, so the file is watched
while it reads: what stands before the tear is yielded, then CaptureError is raised.
"""

import gzip
import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, cast

from spa_protocol.carrier import UDP, Carrier, Kind, ports_of
from spa_protocol.layout import DATAGRAM_SIZE
from spa_server.capture import CaptureError, links
from spa_server.capture.datagram import Datagram, datagram_of
from spa_server.capture.headers import Carried, parse_carried

_GZIP: Final = b"\x1f\x8b"
_LARGEST_READ: Final = 16 * 1024 * 1024


class _Record(NamedTuple):
    frame: bytes
    link_type: int
    seen_at_us: int


def read_capture(path: Path, port: int, carriers: Iterable[Carrier] = (UDP,)) -> Iterator[Datagram]:
    """Every UDP datagram to this port, of any length, at the time that the file gives it.

    Also what came by one of the other carriers, where it has a knock's length.
    Raises CaptureError, when the file cannot be opened at once, when it is torn after what came
    before the tear.
    """
    ports = {kind: ports_of(kind, carriers, port) for kind in Kind}
    with closing(_open(path)) as watched:
        reader = _reader(path, watched)
        for record in _records(path, reader, watched):
            packet = links.ip_of(record.link_type, record.frame, reader.endian)
            carried = parse_carried(packet) if packet else None
            if carried is not None and _may_be_a_knock(carried, port, ports):
                yield datagram_of(carried, record.seen_at_us)


def _may_be_a_knock(carried: Carried, port: int, ports: Mapping[Kind, tuple[int, ...]]) -> bool:
    if carried.kind is Kind.UDP and carried.target_port == port:
        return True
    if len(carried.payload) != DATAGRAM_SIZE:
        return False
    if carried.kind is Kind.ICMP:
        return bool(ports[Kind.ICMP])
    return carried.target_port in ports[carried.kind]


class _Watched:
    """A file that remembers whether a read got less than it asked for, but something."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._torn = False

    def close(self) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        try:
            data = self._file.read(size) if size <= _LARGEST_READ else None
        except (EOFError, OSError, zlib.error):
            data = None
        if data is None:
            self._torn = True
            return b""
        self._torn = self._torn or 0 < len(data) < size
        return data

    def is_torn(self) -> bool:
        """Whether the end was not where a record ends."""
        return self._torn or self.read(1) != b""


def _open(path: Path) -> _Watched:
    try:
        file = path.open("rb")
        if file.read(2) == _GZIP:
            file.close()
            return _Watched(cast(BinaryIO, gzip.open(path)))
        file.seek(0)
    except OSError as error:
        raise CaptureError(
            f"{path} cannot be read: {(error.strerror or str(error)).lower()}"
        ) from None
    return _Watched(file)


def _reader(path: Path, watched: _Watched) -> Any:
    from scapy.config import conf  # noqa: PLC0415
    from scapy.error import Scapy_Exception  # noqa: PLC0415
    from scapy.utils import RawPcapReader  # noqa: PLC0415

    conf.logLevel = logging.CRITICAL
    try:
        return RawPcapReader(watched)
    except Scapy_Exception:
        raise CaptureError(f"{path} is no capture; tcpdump -w writes one") from None


def _records(path: Path, reader: Any, watched: _Watched) -> Iterator[_Record]:
    """The records of either format. Raises CaptureError where one cannot be read."""
    for frame, meta in _frames(reader):
        link_type = getattr(meta, "linktype", None)
        if link_type is None:
            link_type, seen_at_us = reader.linktype & 0xFFFF, _pcap_time_us(meta, reader.nano)
        else:
            seen_at_us = _pcapng_time_us(path, meta)
        if not links.is_known(link_type):
            raise CaptureError(f"{path} has frames of a kind that is not read (type {link_type})")
        yield _Record(frame, link_type, seen_at_us)
    if watched.is_torn():
        raise CaptureError(f"{path} is torn or damaged; what stands before that was read")


def _frames(reader: Any) -> Iterator[tuple[bytes, Any]]:
    """What scapy reads, up to the end or to what it cannot read."""
    from scapy.error import Scapy_Exception  # noqa: PLC0415

    with suppress(Scapy_Exception):
        yield from reader


def _pcap_time_us(meta: Any, nano: bool) -> int:
    return int(meta.sec * 1_000_000 + (meta.usec // 1000 if nano else meta.usec))


def _pcapng_time_us(path: Path, meta: Any) -> int:
    if meta.tshigh is None:
        raise CaptureError(f"{path} has packets without a time; tcpdump and dumpcap write one")
    return int((meta.tshigh << 32 | meta.tslow) * 1_000_000 // meta.tsresol)

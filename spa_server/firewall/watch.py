"""Hearing that somebody else changed the gate: nftables' notifications.

A transaction is notified as its changes one by one, each with the netlink port that asked for it,
and then as a new generation, with the process that asked.
"""

from collections.abc import Callable
from typing import Final

from spa_server import bpf, netlink
from spa_server.firewall import nftables
from spa_server.firewall.gate import TABLE
from spa_server.netlink import NETLINK_NETFILTER, NFGENMSG, Message, NetlinkSocket

_INET: Final = bytes([nftables.NFPROTO_INET])
_TABLE: Final = TABLE.encode()

_NFNLGRP_NFTABLES: Final = 7
_RECEIVE_BUFFER: Final = 8 << 20


class RulesetWatch(NetlinkSocket):
    """A netlink socket that wakes when the gate's table was changed or deleted from elsewhere.

    Changes made through the netlink port given are dropped by the kernel, so that the daemon's own
    100,000s of elements neither wake it nor fill the socket. `is_own_process` tells apart the nft
    processes that it ran itself.
    """

    def __init__(self, own_port: int, is_own_process: Callable[[int], bool]) -> None:
        """Raises OSError, without CAP_NET_ADMIN among others."""
        self._is_own_process = is_own_process
        self._is_pending = False
        super().__init__(
            NETLINK_NETFILTER,
            receive_buffer=_RECEIVE_BUFFER,
            program=bpf.netlink_filter(own_port),
            groups=(_NFNLGRP_NFTABLES,),
        )

    def read(self) -> bool:
        """Whether somebody else changed anything of the gate since the last read.

        Also True when notifications were lost, for then nobody can tell.
        """
        changed = False
        for told in self.notifications():
            changed |= told is None or self._ends_foreign_change(told)
        return changed

    def _ends_foreign_change(self, message: Message) -> bool:
        """Notes a change of the gate; when its transaction ends, whether it was somebody else's."""
        if message.kind != nftables.NEWGEN:
            self._is_pending |= _is_about_the_gate(message)
            return False
        was_pending, self._is_pending = self._is_pending, False
        return was_pending and not (
            self._is_own_process(message.port) or self._is_own_process(_process_in(message))
        )


def _is_about_the_gate(message: Message) -> bool:
    if message.kind >> 8 != nftables.SUBSYSTEM or message.payload[:1] != _INET:
        return False
    for kind, value in netlink.attributes(message.payload, NFGENMSG.size):
        if kind == nftables.TABLE_ATTRIBUTE:
            return value.rstrip(b"\0") == _TABLE
    return False


def _process_in(generation: Message) -> int:
    """The process id that a new generation names, as the first process id namespace counts."""
    found = dict(netlink.attributes(generation.payload, NFGENMSG.size))
    return int.from_bytes(found.get(nftables.GEN_PROC_PID, b""))

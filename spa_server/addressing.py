"""The two addresses that a request is about, and whether it may be about those.

docs/protocol.md section 4.3 has the list. What fails here is authentic and is answered, by code 9:

1.  Source and target are of one family.
2.  The target is signed, unless this host accepts requests that name none: what names no host is
    good at every host that has this server key.
3.  A target that is signed is an address of this host, or one that the operator says is: behind a
    forwarder it arrives at another address, and the holes are there.
4.  A link-local address means nothing without its link: it must be the datagram's own, and it is
    known by which link that came.
5.  The source is an address that another host can have, and neither this host's own nor a
    broadcast address of its networks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from spa_protocol.knock import Close, Knock
from spa_protocol.layout import Address, may_be_elsewhere
from spa_server.capture.datagram import Datagram
from spa_server.link import link_of, needs_link, off_link, on_link

NO_TARGET: Final = "no target is signed; a newer spa-client does, see its --target"
NOT_THIS_HOST: Final = "the target is no address of this host; see also_addressed_as"
LINK_LOCAL_SOURCE: Final = "the source is link-local, and the knock came from another"
LINK_LOCAL_TARGET: Final = "the target is link-local, and the knock went to another"
NO_LINK: Final = "the address is link-local, and nobody knows the link"
NO_HOSTS_SOURCE: Final = "the source is an address that no other host can have"


@dataclass(frozen=True, slots=True)
class Addressing:
    """What a host knows of its own addresses.

    `is_own` tells whether an address is one of them, `why_no_source` why packets cannot come from
    an address as this host's routes are now, or "". `also` are the addresses of a forwarder.
    """

    is_own: Callable[[Address], bool]
    why_no_source: Callable[[Address], str] = lambda _address: ""
    also: frozenset[Address] = frozenset()
    accepts_undeclared: bool = False

    def ends(self, request: Knock | Close, datagram: Datagram) -> tuple[Address, Address]:
        """The source and target meant: what was signed, else the packet's own.

        A link-local address is one on the link by which the packet came.
        """
        signed = request.target
        forwarded = signed is None or signed in self.also
        target = datagram.target if forwarded or signed is None else signed
        source = request.source or datagram.source
        return on_link(source, datagram.interface), on_link(target, datagram.interface)

    def why_not(self, request: Knock | Close, datagram: Datagram) -> str:
        """Why a request may not be about its addresses, in words that fit a reply; "" if it may."""
        source, target = self.ends(request, datagram)
        if source.version != target.version:
            return f"the source is IPv{source.version}, and the target IPv{target.version}"
        if request.target is None and not self.accepts_undeclared:
            return NO_TARGET
        if any(needs_link(end) and not link_of(end) for end in (source, target)):
            return NO_LINK
        source, target = off_link(source), off_link(target)
        return self._why_no_target(target, datagram) or self._why_no_source(source, datagram)

    def _why_no_target(self, target: Address, datagram: Datagram) -> str:
        if target == datagram.target:
            return ""
        if not may_be_elsewhere(target) or not self.is_own(target):
            return NOT_THIS_HOST
        return LINK_LOCAL_TARGET if target.is_link_local else ""

    def _why_no_source(self, source: Address, datagram: Datagram) -> str:
        if not may_be_elsewhere(source):
            return NO_HOSTS_SOURCE
        if source.is_link_local and source != datagram.source:
            return LINK_LOCAL_SOURCE
        return self.why_no_source(source)

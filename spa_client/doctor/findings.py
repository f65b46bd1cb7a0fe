"""What an examination finds: values only."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_network
from pathlib import Path
from typing import Final

from keys.trouble import Trouble
from spa_client.carriers import Answer, Result
from spa_client.compose import Wish
from spa_client.config import Host
from spa_client.outcome import Story
from spa_client.resolve import Target
from spa_protocol.access import Access
from spa_protocol.layout import Address
from spa_protocol.reason import Code, Status

_CARRIER_GRADE: Final = ip_network("100.64.0.0/10")


class Mark(StrEnum):
    """How a finding is meant."""

    OK = "ok"
    ODD = "odd"
    BAD = "bad"
    SKIPPED = "-"


@dataclass(frozen=True, slots=True)
class Finding:
    """One step: what was looked at, how it is, and in words."""

    check: str
    mark: Mark
    text: str


class Reach(StrEnum):
    """What came back from a port."""

    OPEN = "open"
    REFUSED = "refused"
    SILENT = "silent"
    ERROR = "error"
    UNASKED = "not asked"


@dataclass(frozen=True, slots=True)
class PortFound:
    """One port of one address; `error` is the system's word, `took_ms` how long it took."""

    access: Access
    reach: Reach
    error: str = ""
    took_ms: float = 0.0


@dataclass
class AddressFound:
    """One address of the host: where packets to it leave from, and all that came back.

    `own` is None where the system has no way there, and `problem` why. `closed` says that a port
    which answered though no knock was answered fell silent behind a close. `unopened` is then what
    came back from a port that nobody has asked to be opened: a gate in force is silent there.
    """

    target: Target
    own: Address | None = None
    problem: str = ""
    result: Result | None = None
    probes: Sequence[Result] = ()
    ports: list[PortFound] = field(default_factory=list)
    closed: bool = False
    unopened: Reach | None = None

    @property
    def answer(self) -> Answer | None:
        """The reply to the knock."""
        return self.result if isinstance(self.result, Answer) else None

    @property
    def error(self) -> str:
        """What the system or the network said of a knock without a reply."""
        return "" if self.result is None or isinstance(self.result, Answer) else self.result.error

    @property
    def seen(self) -> tuple[Address, ...]:
        """Every source address that the server has seen, in the order of the replies."""
        replies = (r.reply for r in (self.result, *self.probes) if isinstance(r, Answer))
        return tuple(dict.fromkeys(reply.source for reply in replies if reply.source))

    @property
    def holder(self) -> Address | None:
        """Whom the port was opened for."""
        return (self.answer.datagram.source or self.answer.reply.source) if self.answer else None

    @property
    def is_translated(self) -> bool:
        """Whether the server saw another address than this machine's own."""
        return any(seen != self.own for seen in self.seen)

    @property
    def is_misdeclared(self) -> bool:
        """Whether the knock declared an address that the server does not see."""
        declared = self.answer.datagram.source if self.answer else None
        return declared is not None and declared not in self.seen

    @property
    def is_carrier_grade(self) -> bool:
        """Whether there are signs of a NAT that uses several addresses (RFC 6888)."""
        own = self.own
        shared = own is not None and own.version == 4 and own in _CARRIER_GRADE
        return shared or len(self.seen) > 1

    def granted(self, access: Access) -> bool:
        """Whether the reply opens this access."""
        outcomes = self.answer.reply.outcomes if self.answer else ()
        return any(o.access == access and o.code is Code.GRANTED for o in outcomes)


@dataclass
class Examination:
    """All that was found about one wish; `trouble` is what ended it early, and where.

    Where no knock was answered: `lead_s` is by how much the server's clock is ahead of this one, as
    an answer to a request with another time says (None: there was none); `clock_s` is what this one
    says, in seconds since 1970, and `newer` a file that was written later than that.
    """

    written: str
    wish: Wish
    host: Host | None = None
    key_id: str = ""
    ended_at: str = ""
    trouble: Trouble | None = None
    story: Story | None = None
    addresses: list[AddressFound] = field(default_factory=list)
    lead_s: float | None = None
    clock_s: float = 0.0
    newer: Path | None = None

    @property
    def answered(self) -> list[AddressFound]:
        """The addresses that replied."""
        return [found for found in self.addresses if found.answer]

    @property
    def statuses(self) -> set[Status]:
        """What the replies say as a whole."""
        return {found.answer.reply.status for found in self.addresses if found.answer}

    @property
    def sent(self) -> int:
        """How many probes were sent to addresses that have answered before."""
        return sum(len(found.probes) for found in self.answered)

    @property
    def lost(self) -> int:
        """How many of them nobody answered."""
        return sum(not isinstance(r, Answer) for found in self.answered for r in found.probes)

"""Why a datagram was not accepted, and what a reply can say.

docs/protocol.md sections 6 (failures) and 8 (replies).
"""

from enum import IntEnum, StrEnum


class Reason(StrEnum):
    """The one way in which a datagram failed: docs/protocol.md section 6.2 says when each is."""

    MALFORMED = "malformed"
    UNKNOWN_KEY = "unknown-key"
    NOT_AUTHENTIC = "not-authentic"
    BAD_SIGNATURE = "bad-signature"
    STALE = "stale"
    AHEAD = "ahead"
    REPLAYED = "replayed"


class Status(IntEnum):
    """What became of a request as a whole: byte 1 of a reply."""

    GRANTED = 0
    REFUSED = 1
    CLOCK = 2
    JOINED = 3
    JOIN_REFUSED = 4
    UNAVAILABLE = 5
    CLOSED = 6
    PENDING = 7


class Code(IntEnum):
    """What became of one access that was asked for: the last byte of its entry in a reply."""

    GRANTED = 0
    NO_ROLE = 1
    NOT_FROM_HERE = 2
    NOT_NOW = 3
    EXPIRED = 4
    DECLARE_SOURCE = 5
    TOUCH = 6
    TOO_MANY = 7
    SHARED_SOURCE = 8
    NOT_A_TARGET = 9
    UNAVAILABLE = 10

    @property
    def sentence(self) -> str:
        """The code in words, as the record and the client show it."""
        return _SENTENCES[self]


_SENTENCES = {
    Code.GRANTED: "granted",
    Code.NO_ROLE: "no role allows it",
    Code.NOT_FROM_HERE: "not allowed from this source",
    Code.NOT_NOW: "not allowed at this hour",
    Code.EXPIRED: "the permission has expired",
    Code.DECLARE_SOURCE: "the source must be declared",
    Code.TOUCH: "the security key must be touched",
    Code.TOO_MANY: "too many at once",
    Code.SHARED_SOURCE: "the source is shared by many",
    Code.NOT_A_TARGET: "not with these addresses",
    Code.UNAVAILABLE: "the gate is unavailable",
}

"""The doorkeeper: bytes and a time in, a verdict out.

The rules, in the order in which they are applied. The first that fails decides, and cheap checks go
before dear ones (docs/protocol.md sections 6 and 7):

1.  length, tag, box, body                       malformed, unknown-key, not-authentic, malformed
2.  burned before, or under a floor              replayed
3.  the signature                                bad-signature
4.  the two clocks at most `freshness_s` apart   stale, ahead

What passes 3 is burned whatever comes of it. The verdict says so; nothing is changed in here: no
clock is read, and no socket, database or log is touched.
"""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from spa_protocol.knock import AuthenticKnock, freshness, open_request, verify_request
from spa_protocol.layout import DEFAULT_FRESHNESS_S, TAG_SIZE
from spa_protocol.publickey import Sender
from spa_protocol.reason import Reason
from spa_server.capture.datagram import Datagram
from spa_server.replay import Burn, ReplayWindow


@dataclass(frozen=True, slots=True)
class Moment:
    """One reading of the server's clock, passed on through a whole batch.

    `floor_us` is the latest stamp that is refused from every key (spa_server/replay.py, rule 4).
    """

    now_us: int
    floor_us: int = 0


class Verdict(msgspec.Struct, frozen=True):
    """What the doorkeeper found.

    `knock` is set for an authentic request, also for one that is stale or ahead: it may be told so.
    `sender` is whose tag it bore, for the record: until `knock` is set that proves nothing. `burn`
    is what to remember.
    """

    reason: Reason | None
    sender: Sender | None = None
    knock: AuthenticKnock | None = None
    burn: Burn | None = None


def judge(
    datagram: Datagram,
    moment: Moment,
    find: Callable[[bytes], Sender | None],
    window: ReplayWindow,
    freshness_s: float = DEFAULT_FRESHNESS_S,
) -> Verdict:
    """Rules 1 to 4 for one datagram."""
    opened = open_request(datagram.payload, find)
    if isinstance(opened, Reason):
        return Verdict(opened, find(datagram.payload[:TAG_SIZE]))
    sender = opened.sender
    burn = Burn(sender.key_id, opened.nonce, opened.request.sent_at_us)
    if window.is_burned(burn, moment.floor_us):
        return Verdict(Reason.REPLAYED, sender)
    knock = verify_request(opened)
    if isinstance(knock, Reason):
        return Verdict(knock, sender)
    reason = freshness(opened.request.sent_at_us, moment.now_us, freshness_s)
    return Verdict(reason, sender, knock, burn)

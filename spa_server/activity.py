"""What is going on now: the answer to the request `activity`, as `spa-server top` shows it.

    {"do": "activity", "limit": 50}  ->  {"accepted": 12, ..., "holes": [...], "recent": [...]}

Made from what the daemon has at hand: it asks neither the kernel nor the ledger.
"""

import heapq
from typing import TYPE_CHECKING, Any, Final

from spa_server import clock
from spa_server.grants import Grant

if TYPE_CHECKING:
    from spa_server.guard import Guard

MAX_LINES: Final = 200
_USUAL_LINES: Final = 50


def activity(guard: "Guard", request: dict[str, Any]) -> dict[str, Any]:
    """Counts since the daemon began; the holes that end next, the latest knocks, and the denials
    heard of last, `limit` of each. Packets of denials are "at least"."""
    asked = request.get("limit", _USUAL_LINES)
    limit = min(max(asked, 0), MAX_LINES) if isinstance(asked, int) else _USUAL_LINES
    ending = heapq.nsmallest(limit, guard.keeper.book, key=lambda grant: grant.ends_at_s)
    now_s = clock.monotonic_s()
    return {
        "now_us": clock.now_us(),
        "started_us": guard.started_at_us,
        "grants": len(guard.keeper.book),
        "holes": [_hole(grant, now_s) for grant in ending],
        **guard.meter.told(limit),
    }


def _hole(grant: Grant, now_s: float) -> dict[str, Any]:
    return {
        "grant": grant.grant_id,
        "identity": grant.identity,
        "source": str(grant.source),
        "access": str(grant.access),
        "remaining_s": round(max(0.0, grant.ends_at_s - now_s), 1),
        "once": grant.once,
    }

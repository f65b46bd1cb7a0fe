"""Sessions that nobody was let in for: those that began while the gate was away.

While the gate stands, a session at a port of this host began with a connection that the gate let
in. So what is open then is known, and of what is open after the gate was taken away and put back,
each session is explained by one of these, or by none:

1.  It was open before.
2.  It was logged as permitted (connections.py).
3.  A grant in force holds a hole for it.
4.  Its source may use the port without a knock: `always_open`, or the port is observed.

What none explains is destroyed, and recorded. Nothing is where nothing is known from before, as
when the daemon begins and the gate did not stand: open sessions live on.

Seen are the sessions that have a socket on this host at a port where somebody waits; not those that
are forwarded, to a container or another host.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from spa_server import sessions
from spa_server.attribution import holes_of
from spa_server.audit.record import Event, Record
from spa_server.connections import ConnectionLog
from spa_server.ctentry import key_of
from spa_server.flow import Flow
from spa_server.gatehouse import Gatehouse
from spa_server.grants import Grant
from spa_server.hole import Hole
from spa_server.sessions import Session

WHILE_AWAY: Final = "nobody was let in for it: it began while the gate was away"
_LINES_AT_ONCE: Final = 256


class Intruders:
    """`holders` gives the grants that hold a hole open."""

    def __init__(
        self,
        gatehouse: Gatehouse,
        connections: ConnectionLog,
        holders: Callable[[Hole], list[Grant]],
    ) -> None:
        self._gatehouse = gatehouse
        self._connections = connections
        self._holders = holders
        self._known: frozenset[Session] | None = None

    def learn(self) -> None:
        """The gate stands: what is open now was let in, or was there before. Raises
        SessionsError."""
        self._known = frozenset(sessions.served())

    def forget(self) -> None:
        """The gate was away for as long as nobody knows: nothing is known from before."""
        self._known = None

    def expel(self, now_us: int) -> list[Record]:
        """The gate was away and stands again: destroys what nothing explains; a line for each.

        What could not be destroyed is said, and is an intruder the next time too. Raises
        SessionsError.
        """
        found = sessions.served()
        known = frozenset(found) if self._known is None else self._known
        strangers = [each for each in found if each not in known and not self._explains(each)]
        self._known = frozenset(found).difference(strangers)
        gone = sessions.destroy(strangers)
        return list(_lines(gone, now_us))

    def _explains(self, session: Session) -> bool:
        flow = Flow(
            session.remote,
            session.remote_port,
            session.local,
            session.protocol,
            session.local_port,
        )
        return (
            key_of(flow) in self._connections.live
            or any(self._holders(hole) for hole in holes_of(flow))
            or self._gatehouse.needs_no_hole(session.remote, session.access)
        )


def _lines(expelled: Sequence[Session], now_us: int) -> Iterator[Record]:
    for each in expelled[:_LINES_AT_ONCE]:
        yield Record(
            Event.CONNECTION_SEVERED,
            now_us,
            source=str(each.remote),
            target=str(each.local),
            access=str(each.access),
            reason=WHILE_AWAY,
            detail={"source_port": each.remote_port},
        )
    if (further := len(expelled) - _LINES_AT_ONCE) > 0:
        detail = {"further": further}
        yield Record(Event.CONNECTION_SEVERED, now_us, reason=WHILE_AWAY, detail=detail)

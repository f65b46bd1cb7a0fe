"""Sorting: which lines belong into the chain, and which are kept apart with the denials.

The chain forgets its oldest lines first. So nobody may be able to push out what others did:

1.  What anybody can cause is apart: denied connections, and knocks by who proved no key.
2.  What one person, or who has one invite, can cause by being refused is in the chain at first:
    `OF_ONE` lines, then `AN_HOUR`. What is more is apart, folded as denials are. So is what others
    cause in their name, which are knocks of theirs that somebody replays.
3.  All else is in the chain. Of what is granted, the limits of the policy bound the number.
"""

from typing import Final

from spa_protocol.reason import Reason
from spa_server.audit.denials import is_denial
from spa_server.audit.record import Event, Record

OF_ONE: Final = 100
AN_HOUR: Final = 100
_PARTIES: Final = 100_000
_HOUR_US: Final = 3_600_000_000
_REFUSALS: Final = frozenset(
    {Event.KNOCK_REFUSED, Event.CLOSE_ASKED, Event.JOIN_REFUSED, Event.INVITE_ALARM}
)
_Party = tuple[Event, bool, str]


class Sorting:
    """Which lines are apart. Times are microseconds of the wall clock."""

    def __init__(self) -> None:
        # When a party would have all its lines again. The one that was refused last stands last.
        self._full_at_us: dict[_Party, int] = {}

    def is_apart(self, record: Record, now_us: int) -> bool:
        """Whether a record is kept apart. It counts: ask once for each."""
        if is_denial(record):
            return True
        if record.event not in _REFUSALS or record.reason is None:
            return False
        name = record.detail.get("invite") or record.identity or record.key_id or ""
        is_replay = record.reason == Reason.REPLAYED
        return not self._may_write((record.event, is_replay, str(name)), now_us)

    def _may_write(self, party: _Party, now_us: int) -> bool:
        full_at_us = self._full_at_us.pop(party, now_us)
        each_us = _HOUR_US // AN_HOUR
        if not now_us <= full_at_us <= now_us + OF_ONE * each_us:
            full_at_us = now_us  # it is full again, or the clock was set back
        may = full_at_us + each_us <= now_us + OF_ONE * each_us
        if len(self._full_at_us) >= _PARTIES:
            del self._full_at_us[next(iter(self._full_at_us))]
        self._full_at_us[party] = full_at_us + each_us if may else full_at_us
        return may

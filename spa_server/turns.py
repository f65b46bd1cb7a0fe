"""Turns: members of the group spa share a part of the daemon's time, and each gets as much of it.

What one asks is done while no knock is judged, and some of it takes tens of milliseconds (`reload`
loads the gate). So one thing is done at a time, then nothing for a multiple of what it took; and
next it is the turn of another user who waits. Whoever asks much waits for long, and hurts nobody.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, TypeAlias

_LONGEST_REST_S: Final = 5.0
_Turn: TypeAlias = "asyncio.Future[None]"


class Turns:
    """`rests` is for how many times as long as a turn took nobody has one after it."""

    def __init__(self, rests: float) -> None:
        self._rests = rests
        self._is_free = True
        self._waiting: OrderedDict[int, deque[_Turn]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, user: int) -> AsyncIterator[None]:
        """Waits for this user's turn, which lasts for as long as the block does."""
        await self._wait(user)
        began_s = time.monotonic()
        try:
            yield
        finally:
            rest_s = min(self._rests * (time.monotonic() - began_s), _LONGEST_REST_S)
            asyncio.get_running_loop().call_later(rest_s, self._next)

    async def _wait(self, user: int) -> None:
        if self._is_free:
            self._is_free = False
            return
        turn: _Turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(user, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it had come, and nobody takes it
                self._next()
            raise

    def _next(self) -> None:
        """One of each user in turn; whoever went away has none."""
        while self._waiting:
            user, turns = next(iter(self._waiting.items()))
            turn = turns.popleft()
            if turns:
                self._waiting.move_to_end(user)
            else:
                del self._waiting[user]
            if not turn.done():
                turn.set_result(None)
                return
        self._is_free = True

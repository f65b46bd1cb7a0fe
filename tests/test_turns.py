"""Turns: one after another, one of each user in turn, and a rest after each."""

import asyncio
import time
from itertools import pairwise

from spa_server.turns import Turns


def test_whoever_asks_much_waits_behind_who_asks_little() -> None:
    order: list[int] = []

    async def one(turns: Turns, user: int) -> None:
        async with turns.turn(user):
            order.append(user)

    async def run() -> None:
        turns = Turns(rests=0)
        await asyncio.gather(*(one(turns, 1) for _ in range(20)), one(turns, 2), one(turns, 3))
        await one(turns, 4)

    asyncio.run(asyncio.wait_for(run(), 5))
    assert order[:4] == [1, 1, 2, 3]
    assert order[-1] == 4
    assert len(order) == 23


def test_what_took_long_is_followed_by_a_rest_in_which_others_of_the_loop_go_on() -> None:
    async def one(turns: Turns) -> float:
        async with turns.turn(1):
            time.sleep(0.05)
            return time.monotonic()

    async def run() -> list[float]:
        turns = Turns(rests=4)
        return await asyncio.gather(*(one(turns) for _ in range(3)))

    ended = asyncio.run(asyncio.wait_for(run(), 10))
    assert all(later - earlier >= 5 * 0.05 for earlier, later in pairwise(ended))


def test_a_turn_of_whoever_went_away_is_the_next_ones() -> None:
    async def run() -> None:
        turns = Turns(rests=0)
        async with turns.turn(1):
            waiting = [asyncio.create_task(one(turns, user)) for user in (1, 2, 3)]
            await asyncio.sleep(0)
            waiting[0].cancel()
        await asyncio.sleep(0)
        waiting[1].cancel()  # perhaps its turn has just come
        await waiting[2]
        async with turns.turn(9):
            pass

    async def one(turns: Turns, user: int) -> None:
        async with turns.turn(user):
            pass

    asyncio.run(asyncio.wait_for(run(), 5))


def test_what_fails_ends_its_turn() -> None:
    async def run() -> None:
        turns = Turns(rests=1)
        for _ in range(3):
            try:
                async with turns.turn(1):
                    raise ValueError
            except ValueError:
                pass

    asyncio.run(asyncio.wait_for(run(), 5))

"""Many connections from one host at once: run there, in a process of its own.

    python -m integration.crowd TARGET JOBS

JOBS is JSON: a list of [port, how many, how many of them stay open, how many seconds it may take].
Each sends something that is echoed, as much as its number says; what is not answered is given up
before its SYN is repeated. Prints `done` when only those are open that stay, and ends with SIGTERM.
"""

import asyncio
import json
import sys
from contextlib import suppress
from typing import Final

GIVE_UP_S: Final = 0.6
_AT_ONCE: Final = 40

open_ones: list[asyncio.StreamWriter] = []


async def connect(target: str, port: int, number: int, *, stays: bool) -> None:
    """One connection, there and back."""
    try:
        async with asyncio.timeout(GIVE_UP_S):
            reading, writing = await asyncio.open_connection(target, port)
    except (TimeoutError, OSError):
        return
    said = b"x" * (1 + number * 37 % 900)
    with suppress(OSError, asyncio.IncompleteReadError):
        writing.write(said)
        await reading.readexactly(len(said))
    if stays:
        open_ones.append(writing)
    else:
        writing.close()


async def work(target: str, port: int, count: int, stay: int, over_s: float) -> None:
    """So many connections to a port, some at once, spread over some time."""
    slots = asyncio.Semaphore(_AT_ONCE)
    step_s = over_s / count

    async def one(number: int) -> None:
        await asyncio.sleep(number * step_s)
        async with slots:
            await connect(target, port, number, stays=number < stay)

    await asyncio.gather(*map(one, range(count)))


async def main(target: str, jobs: list[tuple[int, int, int, float]]) -> None:
    """All jobs at once; then it waits."""
    await asyncio.gather(*(work(target, *job) for job in jobs))
    print("done", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))

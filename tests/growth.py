"""How work grows with its input: a ratio within one run, which no busy machine changes."""

import time
from collections.abc import Callable


def growth(work: Callable[[int], object], size: int, *, times: int, attempts: int = 3) -> float:
    """How many times as much each item costs where there are `times` as many of them.

    1 where the work is in proportion to its input, `times` where it is quadratic. It is counted in
    processor time, the quickest of some attempts for each size.
    """
    few_s, many_s = (
        min(_processor_s(work, count) for _ in range(attempts)) for count in (size, size * times)
    )
    return many_s / few_s / times


def _processor_s(work: Callable[[int], object], count: int) -> float:
    begun_s = time.process_time()
    work(count)
    return time.process_time() - begun_s

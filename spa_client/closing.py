"""Giving back what was granted: a close for each address that has granted something.

It names the source that the knock declared, even where this machine has another address by now:
what is given back is the hole that was opened, and it is this machine that had it signed.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from spa_client.carriers import Answer, Result
from spa_client.compose import Source, SourceRule, Wish
from spa_client.knocking import Knocking
from spa_client.outcome import Story
from spa_client.resolve import Target
from spa_protocol.access import Access
from spa_protocol.reason import Code

_TIMEOUT_S: Final = 5.0


def granted(answers: Sequence[Answer]) -> tuple[Access, ...]:
    """What any of them has opened, each once."""
    outcomes = (o for answer in answers for o in answer.reply.outcomes)
    return tuple(dict.fromkeys(o.access for o in outcomes if o.code is Code.GRANTED))


def close(knocking: Knocking, answers: Sequence[Answer]) -> Story | None:
    """Closes at every address what its answer opened; None where that is nothing.

    Raises Trouble, where the key is in ssh-agent; a touch that came too late is asked for again.
    """
    openers = [answer for answer in answers if granted([answer])]
    if not openers:
        return None
    closing = Wish(granted(openers), closing=True)
    timeout_s = min(knocking.timeout_s, _TIMEOUT_S)
    results: list[Result] = []
    for source, targets in _groups(openers, one_by_one=knocking.composer.identity.needs_touch):
        composer = replace(knocking.composer, wish=closing, source=source)
        there = replace(knocking, targets=targets, composer=composer, timeout_s=timeout_s)
        results += there.results()
    composer = replace(knocking.composer, wish=closing)
    return replace(knocking, composer=composer).story(results)


def _groups(
    openers: Sequence[Answer], *, one_by_one: bool
) -> Iterator[tuple[Source, tuple[Target, ...]]]:
    """The sources that were declared, each with the addresses that can be asked at once.

    `one_by_one` where each request takes a touch: such a knock ends with the first address that has
    opened, and a close would end with the first that has closed.
    """
    by_source: dict[Source, list[Target]] = defaultdict(list)
    for answer in openers:
        by_source[answer.datagram.source or SourceRule.NONE].append(answer.target)
    for source, targets in by_source.items():
        if one_by_one:
            yield from ((source, (target,)) for target in targets)
        else:
            yield source, tuple(targets)

"""A case: the signs of one subject, put together, and what was told of it already.

One weak sign raises nothing: people travel, work late and try things. Within a day the signs of all
kinds add up; the score is the probability that this makes of an intruder, naively: as if each sign
came about independently of the others.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from spa_server.anomaly.finding import Kind, Sign
from spa_server.anomaly.profile import DAY_US, HOUR_US
from spa_server.anomaly.settings import Settings
from spa_server.anomaly.usual import Usual

_FURTHER_SERVICES: Final = (1.8, 1.4, 1.0, 1.0)
_FURTHER_IN_VAIN: Final = (2.8, 1.8, 1.0, 1.0)
_NEW_ROLE_US: Final = 14 * DAY_US
_WITH_NEW_ROLE: Final = 0.3
_MAX_SERVICES: Final = 16


class Held(msgspec.Struct, array_like=True, gc=False):
    """A sign that waits for others."""

    at_us: int
    weight: float
    words: str
    values: dict[str, Any]


class Case(msgspec.Struct, array_like=True, gc=False):
    """What is open about a subject. `told_us` is when a kind was last told.

    `refused` counts by class what was refused in the hour `hour`; `usual_refused` is how many
    that usually are in an hour with any.
    """

    held: dict[Kind, Held] = {}
    told_us: dict[Kind, int] = {}
    services: list[str] = []
    role_us: int = 0
    hour: int = 0
    refused: dict[str, int] = {}
    usual_refused: Usual = msgspec.field(default_factory=Usual)

    @property
    def weight(self) -> float:
        """All that is held and was not told yet, in nats."""
        return sum(held.weight for kind, held in self.held.items() if kind not in self.told_us)

    def enter(self, signs: Sequence[Sign], at_us: int, settings: Settings) -> tuple[Sign, ...]:
        """Puts signs to those that wait; all of them where that is worth telling, else none."""
        self._expire(at_us, settings)
        for sign in map(self._with_earlier, signs):
            held = self.held.get(sign.kind)
            weight = sign.weight * self._expected(sign, at_us)
            if held is None or weight > held.weight:
                self.held[sign.kind] = Held(at_us, weight, sign.words, sign.values)
        if not signs or score_of(self.weight, settings) < settings.threshold:
            return ()
        told = self.signs()
        self.told_us |= {sign.kind: at_us for sign in told}
        return told

    def signs(self) -> tuple[Sign, ...]:
        """What is held and was not told yet, the heaviest first."""
        untold = [item for item in self.held.items() if item[0] not in self.told_us]
        ordered = sorted(untold, key=lambda item: -item[1].weight)
        return tuple(Sign(kind, held.weight, held.words, held.values) for kind, held in ordered)

    def _with_earlier(self, sign: Sign) -> Sign:
        """A new service weighs more when it is not the first of the day."""
        if sign.kind is not Kind.NEW_SERVICE:
            return sign
        new = [name for name in sign.values["services"] if name not in self.services]
        before = len(self.services)
        self.services += new[: _MAX_SERVICES - before]
        held = self.held.get(Kind.NEW_SERVICE)
        if held is None or not before:
            return sign
        further = _FURTHER_IN_VAIN if sign.values["in_vain"] else _FURTHER_SERVICES
        weight = held.weight + sum(further[before - 1 : before - 1 + len(new)])
        known = held.words.partition("; ")[2]
        words = f"asked for the first time for {', '.join(self.services)}; {known}"
        return Sign(sign.kind, weight, words, held.values | {"services": list(self.services)})

    def _expected(self, sign: Sign, at_us: int) -> float:
        """Whoever was given a role is expected to use what it allows."""
        is_new = 0 <= at_us - self.role_us < _NEW_ROLE_US
        return _WITH_NEW_ROLE if is_new and sign.kind is Kind.NEW_SERVICE else 1.0

    def _expire(self, at_us: int, settings: Settings) -> None:
        since_us = at_us - settings.gather_h * HOUR_US
        self.held = {
            kind: held for kind, held in self.held.items() if since_us < held.at_us <= at_us
        }
        if Kind.NEW_SERVICE not in self.held:
            self.services = []
        quiet_us = at_us - settings.quiet_h * HOUR_US
        self.told_us = {
            kind: told for kind, told in self.told_us.items() if quiet_us < told <= at_us
        }


def score_of(weight: float, settings: Settings) -> float:
    """The probability that so many nats make of an intruder."""
    return 1 / (1 + math.exp(settings.prior - weight))

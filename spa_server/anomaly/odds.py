"""How likely things are: the scale on which all signs are weighed.

A sign weighs ln(how likely it is of an intruder / how likely it is of the owner), in nats. Of the
owner that is estimated from the baseline: whoever often comes from new networks is expected to. Of
an intruder it is a guess, the same for all.
"""

import math
from typing import Final

from spa_server.anomaly.finding import Kind

_INTRUDER: Final = {Kind.NEW_NETWORK: 0.8, Kind.NEW_SERVICE: 0.5, Kind.TWO_PLACES: 0.4}
_NEVER: Final = 0.7
_MORE_DAYS: Final = 1.5


def odds(kind: Kind, before: float, exposure: float) -> float:
    """The weight of what happened on `before` of `exposure` days.

    `_NEVER` days stand for what never happened yet: little is known after few days.
    """
    return math.log(_INTRUDER[kind] * (exposure + _MORE_DAYS) / (before + _NEVER))

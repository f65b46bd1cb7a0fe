"""What is found: signs, each weak or strong, and the anomalies that they make together."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from spa_server.audit.record import Event, Record


class Kind(StrEnum):
    """What is out of the ordinary."""

    NEW_NETWORK = "new-network"
    UNUSUAL_HOUR = "unusual-hour"
    NEW_SERVICE = "new-service"
    REFUSALS = "refusals"
    WOKEN = "woken"
    TWO_PLACES = "two-places"
    SCAN = "scan"
    RATE = "rate"


@dataclass(frozen=True, slots=True)
class Sign:
    """One thing that is out of the ordinary.

    `weight` is in nats: the logarithm of how many times likelier it is of an intruder than of the
    owner. `words` say it with its figures, `values` hold the figures in JSON's types.
    """

    kind: Kind
    weight: float
    words: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Anomaly:
    """What is worth a person's look. The signs stand with the heaviest first, which names it.

    `score` is from 0 to 1. For a scan `source` is the subject, else the identity (or the key).
    """

    name: Kind
    score: float
    at_us: int
    signs: tuple[Sign, ...]
    identity: str | None = None
    key_id: str | None = None
    source: str | None = None
    target: str | None = None
    access: str | None = None

    @property
    def reason(self) -> str:
        """Why, in words with the figures."""
        return "; ".join(sign.words for sign in self.signs)

    @property
    def detail(self) -> dict[str, Any]:
        """The figures, for the record: the kind, the score, and of each sign weight and values."""
        signs = {
            sign.kind.value: {"weight": round(sign.weight, 2), **sign.values} for sign in self.signs
        }
        return {"kind": self.name.value, "score": round(self.score, 3), "signs": signs}


def record_of(anomaly: Anomaly, event: Event) -> Record:
    """The anomaly as a line of the record."""
    return Record(
        event,
        anomaly.at_us,
        identity=anomaly.identity,
        key_id=anomaly.key_id,
        source=anomaly.source,
        target=anomaly.target,
        access=anomaly.access,
        reason=anomaly.reason,
        detail=anomaly.detail,
    )

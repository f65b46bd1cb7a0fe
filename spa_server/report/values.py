"""The facts of a report for other programs: JSON's types, moments in UTC by RFC 3339."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import date
from typing import Any, Final

from keys.when import rfc3339

_MOMENT: Final = "_us"
_SPAN: Final = "step_us"


def value_of(fact: Any) -> Any:
    """A fact with all that is in it. `last_at_us` becomes `last_at`, null where it was never."""
    if is_dataclass(fact):
        return dict(_named(each.name, getattr(fact, each.name)) for each in fields(fact))
    if isinstance(fact, Mapping):
        return {str(key): value_of(each) for key, each in fact.items()}
    if isinstance(fact, list | tuple):
        return [value_of(each) for each in fact]
    return fact.isoformat() if isinstance(fact, date) else fact


def _named(name: str, value: Any) -> tuple[str, Any]:
    if name == _SPAN:
        return "step_s", value // 1_000_000
    if name.endswith(_MOMENT):
        return name.removesuffix(_MOMENT), None if value is None else moment(value)
    return name, value_of(value)


def moment(at_us: int) -> str:
    """RFC 3339; for what no calendar has, which only a damaged file says, the number."""
    try:
        return rfc3339(at_us)
    except OverflowError:
        return f"{at_us} us"

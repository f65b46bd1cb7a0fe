"""Line plots as SVG: two axes, a grid, a few curves with their labels. Pure: text comes out.

Both light and dark pages are served: text and grid are of a middle grey, the background is clear.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from benchmarks.bench import Curve

_WIDTH: Final = 720
_HEIGHT: Final = 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 44, 92
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_GREY: Final = "#808080"
_LEGEND_COLUMNS: Final = 2


def distribution(values_ms: Sequence[float | None]) -> tuple[tuple[float, float], ...]:
    """The share of values that are at most x, in percent; what was lost (None) never arrives."""
    arrived = sorted(value for value in values_ms if value is not None)
    total = len(values_ms)
    return tuple((value, 100 * (n + 1) / total) for n, value in enumerate(arrived))


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: what it shows, from where to where, and whether each step is ten times the last."""

    label: str
    low: float
    high: float
    logarithmic: bool = False

    @classmethod
    def over(cls, label: str, values: Sequence[float], *, logarithmic: bool) -> "Axis":
        """Wide enough for all values; to full powers of ten where it is logarithmic."""
        if not logarithmic:
            return cls(label, 0.0, max(values, default=1.0) or 1.0)
        positive = [value for value in values if value > 0] or [1.0]
        low = 10.0 ** math.floor(math.log10(min(positive)))
        high = 10.0 ** math.ceil(math.log10(max(positive)))
        return cls(label, low, high if high > low else low * 10, True)

    def share(self, value: float) -> float:
        """Where a value lies, from 0 to 1."""
        if self.logarithmic:
            value = max(value, self.low)
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    @property
    def ticks(self) -> list[float]:
        """The values that are written at the axis."""
        if self.logarithmic:
            decades = round(math.log10(self.high / self.low))
            return [self.low * 10**n for n in range(decades + 1)]
        return [self.low + (self.high - self.low) * n / 5 for n in range(6)]


def plot(title: str, x: Axis, y: Axis, curves: Sequence[Curve]) -> str:
    """An SVG document."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="{_GREY}">',
        f'<text x="{_LEFT}" y="22" font-size="15">{escape(title)}</text>',
        *_grid(x, y),
    ]
    for number, curve in enumerate(curves):
        colour = _COLOURS[number % len(_COLOURS)]
        points = " ".join(f"{_x(x, px):.1f},{_y(y, py):.1f}" for px, py in curve.points)
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>'
        )
        parts += _legend(number, colour, curve.label)
    return "\n".join([*parts, "</svg>", ""])


def _grid(x: Axis, y: Axis) -> list[str]:
    parts = []
    for value in x.ticks:
        at = _x(x, value)
        parts.append(_line(at, _TOP, at, _HEIGHT - _BOTTOM))
        parts.append(_text(at, _HEIGHT - _BOTTOM + 16, _number(value), "middle"))
    for value in y.ticks:
        at = _y(y, value)
        parts.append(_line(_LEFT, at, _WIDTH - _RIGHT, at))
        parts.append(_text(_LEFT - 6, at + 4, _number(value), "end"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - _BOTTOM + 34, x.label, "middle"))
    parts.append(_text(_LEFT, _TOP - 8, y.label, "start"))
    return parts


def _legend(number: int, colour: str, label: str) -> list[str]:
    column, row = number % _LEGEND_COLUMNS, number // _LEGEND_COLUMNS
    left = _LEFT + column * (_WIDTH - _LEFT - _RIGHT) / _LEGEND_COLUMNS
    at = _HEIGHT - 38 + row * 17
    swatch = f'<rect x="{left:.1f}" y="{at - 9}" width="18" height="4" fill="{colour}"/>'
    return [swatch, _text(left + 24, at - 3, label, "start")]


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{_GREY}" stroke-opacity="0.3"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.share(value) * (_WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - axis.share(value) * (_HEIGHT - _TOP - _BOTTOM)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:g}"

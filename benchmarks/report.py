"""The results for a reader: a table for each goal, and JSON for other programs. Pure."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from benchmarks.bench import Goal, Row
from benchmarks.measure import BUSY_SHARE, NOISY_SPREAD, Figure
from benchmarks.plots import Axis, plot

_HEAD: Final = ("", "spaknock", "fwknopd", "limit", "times fwknopd", "of the limit", "goal")
_MARKS: Final = f"""\
Each figure is the median of several runs. `~` marks a noisy one, whose runs lie apart by more than
{NOISY_SPREAD:.0%} of it (the largest less the smallest); `1` marks one that was measured once.
"Times fwknopd" says how many times better ours is, "of the limit" how near it comes to what this
machine could do at best (1 is all of it).
"""
_PLOTS: Final = {
    "distribution": ("When the port is open, at rest", "ms from the packet", "% of the knocks"),
    "users": ("When the port is open, by the number of users", "users", "ms"),
    "flood": ("When the port is open, under flood", "ms from the packet", "% of the knocks"),
}


def markdown(goals: Sequence[Goal], machine: Mapping[str, str], command: str, taken_at: str) -> str:
    """RESULTS.md."""
    parts = [
        "# Results",
        f"Taken at {taken_at} by `{command}`, both systems in one run. Generated: change the "
        "programs in this directory, not this file.",
        "\n".join(f"- {name}: {value}" for name, value in machine.items()),
        _MARKS.strip(),
    ]
    plotted = {name for goal in goals for name in goal.curves}
    parts += [f"![{_PLOTS[name][0]}]({name}.svg)" for name in _PLOTS if name in plotted]
    for goal in goals:
        parts += [f"## {goal.number}. {goal.title}", *_busy(goal), "\n".join(_table(goal.rows))]
        parts += _notes(goal.rows)
    return "\n\n".join(parts) + "\n"


def _busy(goal: Goal) -> Iterator[str]:
    if goal.load is not None and goal.load.busy_share > BUSY_SHARE:
        yield (
            f"**Taken on a busy machine**: {goal.load.busy_share:.0%} of its processors were in "
            "use just before."
        )


def _table(rows: Sequence[Row]) -> Iterator[str]:
    yield f"| {' | '.join(_HEAD)} |"
    yield f"|{'---|' * len(_HEAD)}"
    for row in rows:
        yield f"| {' | '.join(cells(row))} |"


def cells(row: Row) -> tuple[str, ...]:
    """One line of a table."""
    return (
        f"{row.what} ({row.unit})",
        written(row.ours),
        written(row.fwknopd),
        written(row.limit),
        _times(row.times_better_than(row.fwknopd)),
        _times(row.times_better_than(row.limit)),
        _verdict(row),
    )


def written(figure: Figure | None) -> str:
    """A value to three digits, with its marks."""
    if figure is None:
        return ""
    mark = "`1`" if figure.is_single else "`~`" if figure.is_noisy else ""
    return f"{number(figure.value)}{' ' if mark else ''}{mark}"


def number(value: float) -> str:
    """Three digits at least, and commas between thousands."""
    if math.isinf(value):
        return "never"
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")  # which may have one digit more before the point
    places = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{value:,.{places}f}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None or math.isinf(ratio) else number(ratio)


def _verdict(row: Row) -> str:
    if row.is_reached is None or row.needed is None:
        return row.aim
    if row.is_reached:
        return f"{row.aim}: **reached**"
    lacks = row.ours.value / row.needed if row.better == "lower" else row.needed / row.ours.value
    by = f", {number(lacks)} times away" if lacks > 1 and not math.isinf(lacks) else ""
    return f"{row.aim}: **not reached**{by}"


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    notes = [f"- {row.what}: {row.note}" for row in rows if row.note]
    if notes:
        yield "\n".join(notes)


def drawings(goals: Sequence[Goal]) -> dict[str, str]:
    """The plots, SVG documents by name."""
    found = {}
    for goal in goals:
        for name, curves in goal.curves.items():
            title, across, up = _PLOTS[name]
            points = [point for curve in curves for point in curve.points]
            x = Axis.over(across, [x for x, _ in points], logarithmic=True)
            is_share = up.startswith("%")
            y = Axis.over(
                up, [100.0] if is_share else [y for _, y in points], logarithmic=not is_share
            )
            found[name] = plot(title, x, y, curves)
    return found


def as_json(
    goals: Sequence[Goal], machine: Mapping[str, str], command: str, taken_at: str
) -> dict[str, Any]:
    """Everything that was measured, run by run."""
    return {
        "taken_at": taken_at,
        "command": command,
        "machine": dict(machine),
        "goals": [
            {**asdict(goal), "rows": [_row_as_json(row) for row in goal.rows]} for goal in goals
        ],
    }


def _row_as_json(row: Row) -> dict[str, Any]:
    figures = {"ours": row.ours, "fwknopd": row.fwknopd, "limit": row.limit}
    return {
        **asdict(row),
        "reached": row.is_reached,
        **{
            name: figure
            and {"value": _finite(figure.value), "runs": list(map(_finite, figure.runs))}
            for name, figure in figures.items()
        },
        "needed": None if row.needed is None else _finite(row.needed),
    }


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return None if math.isinf(value) else value


def summary(goals: Sequence[Goal]) -> str:
    """The main ratios, for a terminal."""
    lines = []
    for goal in goals:
        lines.append(f"\n{goal.number}. {goal.title}")
        lines += _busy(goal)
        lines += [_summary_line(row) for row in goal.rows]
    return "\n".join(lines)


def _summary_line(row: Row) -> str:
    what, ours, fwknopd, limit, times, of_limit, verdict = (c.replace("*", "") for c in cells(row))
    parts = [f"  {what}: {ours}"]
    parts += (
        [f"fwknopd {fwknopd} (x {times})" if times else f"fwknopd {fwknopd}"] if fwknopd else []
    )
    parts += [f"limit {limit} ({of_limit})" if of_limit else f"limit {limit}"] if limit else []
    parts += [verdict] if verdict else []
    return "; ".join(parts).replace("`", "")

"""One frame of `spa-server top`: what a daemon answers, laid out for a terminal of some size.

Pure: answers in, lines out. Every text that came over the wire is escaped here.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from rich.cells import cell_len, set_cell_size

from keys.text import printable

_SECTIONS: Final = 3
_FRAME_LINES: Final = 2 + 2 * _SECTIONS
_MIN_WIDTH: Final = 40
_SOON_S: Final = 10


class Line(NamedTuple):
    """A line of a frame, and how it is to be shown: a style of rich's, or an empty one."""

    text: str
    style: str = ""


class _Section(NamedTuple):
    title: str
    widths: Sequence[int]
    """Of the columns; a width of 0 takes what is left. A negative one is set to the right."""
    rows: Sequence[tuple[tuple[str, ...], str]]


def frame(
    status: dict[str, Any], activity: dict[str, Any], *, width: int = 80, height: int = 24
) -> list[Line]:
    """At most `height` lines of at most `width` characters."""
    width = max(width, _MIN_WIDTH)
    sections = (_holes(activity), _knocks(activity), _denials(activity))
    shares = _shares([len(section.rows) for section in sections], max(0, height - _FRAME_LINES))
    lines = _head(status, activity)
    for section, share in zip(sections, shares, strict=True):
        lines += [Line(""), *_laid_out(section, share, width)]
    shown = [(printable(line.text), line.style) for line in lines[:height]]
    return [Line(_fit(text, width).rstrip(), style) for text, style in shown]


def _shares(wanted: Sequence[int], room: int) -> list[int]:
    """How many rows each section gets: what it wants, and where that is too much a fair share."""
    shares = [0] * len(wanted)
    open_ones = [number for number, rows in enumerate(wanted) if rows]
    while room > 0 and open_ones:
        for number in list(open_ones):
            if room > 0:
                shares[number] += 1
                room -= 1
            if shares[number] >= wanted[number]:
                open_ones.remove(number)
    return shares


def _head(status: dict[str, Any], activity: dict[str, Any]) -> list[Line]:
    up_s = (activity["now_us"] - activity["started_us"]) / 1_000_000
    is_well = status["gate"] == "loaded" and status["record"] == "written"
    is_well = is_well and status.get("gate_in_doubt") is None
    how = [
        f"gate {status['gate']}",
        f"mode {status['mode']}",
        f"record {status['record']}",
        f"up {_duration(up_s)}",
        f"{_clock(activity['now_us'])} UTC",
    ]
    counts = [
        f"{activity['grants']:,} grants",
        f"{activity['accepted']:,} knocks accepted",
        f"{activity['refused']:,} refused",
        f"{activity['denied']:,} packets denied",
    ]
    if status["lost"]:
        counts.append(f"{status['lost']:,} lost")
    style = "bold" if is_well else "bold red"
    return [
        Line(printable(f"spa-server {status['version']}: {', '.join(how)}"), style),
        Line(", ".join(counts)),
    ]


def _holes(activity: dict[str, Any]) -> _Section:
    rows = [
        (
            (
                f"{hole['remaining_s']:.0f} s",
                hole["identity"],
                hole["source"],
                hole["access"] + (", once" if hole["once"] else ""),
            ),
            "yellow" if hole["remaining_s"] < _SOON_S else "green",
        )
        for hole in activity["holes"]
    ]
    more = activity["grants"] - len(rows)
    title = f"HOLES, next to close first{f', and {more:,} more' if more > 0 else ''}"
    return _Section(title, (-8, 20, 26, 0), rows)


def _knocks(activity: dict[str, Any]) -> _Section:
    rows = []
    for knock in activity["recent"]:
        is_fine = knock["event"].endswith(".accepted")
        what = knock["access"] or "" if is_fine else knock["reason"] or ""
        said = f"{'join ' if knock['event'].startswith('join') else ''}{'' if is_fine else 'no: '}"
        row = (
            _clock(knock["at_us"]),
            knock["identity"] or "?",
            knock["source"] or "",
            said + what,
        )
        rows.append((row, "green" if is_fine else "red"))
    return _Section("KNOCKS", (-8, 20, 26, 0), rows)


def _denials(activity: dict[str, Any]) -> _Section:
    rows = [
        (
            (
                _clock(denied["last_us"]),
                f"{denied['packets']:,} packets",
                denied["source"] or "many sources",
                denied["access"] or "many ports",
            ),
            "",
        )
        for denied in activity["sources"]
    ]
    return _Section("DENIED, by source and port", (-8, 20, 26, 0), rows)


def _laid_out(section: _Section, share: int, width: int) -> list[Line]:
    shown = section.rows[:share]
    hidden = len(section.rows) - len(shown)
    title = f"{section.title}{f' ({hidden} not shown)' if hidden and share else ''}"
    lines = [Line(title, "bold cyan")]
    lines += [Line(_row(cells, section.widths, width), style) for cells, style in shown]
    return lines if section.rows else [Line(f"{section.title}: none", "bold cyan")]


def _row(cells: Sequence[str], widths: Sequence[int], width: int) -> str:
    left = width - sum(abs(one) for one in widths) - 2 * (len(widths) - 1)
    pads: dict[bool, Callable[[str, int], str]] = {True: str.rjust, False: set_cell_size}
    columns = []
    for cell, one in zip(cells, widths, strict=True):
        size = abs(one) or max(left, 8)
        columns.append(pads[one < 0](_fit(printable(cell), size), size))
    return "  ".join(columns)


def _fit(text: str, size: int) -> str:
    """By how much room it takes: some letters take two places."""
    return text if cell_len(text) <= size else set_cell_size(text, size - 1) + "…"


def _clock(at_us: int) -> str:
    return datetime.fromtimestamp(at_us // 1_000_000, UTC).strftime("%H:%M:%S")


def _duration(seconds: float) -> str:
    whole = max(0, int(seconds))
    for size, unit, smaller, small_unit in ((86_400, "d", 3600, "h"), (3600, "h", 60, "m")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // smaller:02}{small_unit}"
    return f"{whole // 60}m{whole % 60:02}s"

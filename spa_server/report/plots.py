"""Plots as SVG, to stand in a page that has their style: no script, no link, no style of its own.

Each is drawn for a wide page and for a phone; the page's style shows the one that fits, so that
letters have one size everywhere. What a plot shows stands in a table beside it as well.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

import pygal
from markupsafe import Markup
from pygal.style import Style

from keys.text import printable
from spa_server.report.buckets import Buckets

# For maps that are not used here, pygal puts itself into every import that is to come, and in a
# way that Python 3.11 warns of.
sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, pygal.PluginImportFixer)]

_WIDTHS: Final = {"wide": 900, "narrow": 340}
_HEIGHT: Final = 225
_LEGEND_COLUMNS: Final = {"wide": 3, "narrow": 1}
_LEGEND_HEIGHT: Final = 22
_LABELS: Final = {"wide": 8, "narrow": 3}
_BAR_HEIGHT: Final = 30
_STEPS: Final = {"wide": 5, "narrow": 2}
_LAST_LABEL: Final = 30  # half of it stands beyond the axis
_NAME_SHOWN: Final = {"wide": 40, "narrow": 18}
_STYLE: Final = Style(
    font_family="inherit", label_font_size=12, major_label_font_size=12, legend_font_size=13
)
_NEVER_SHOWN: Final = ("script", "style", "desc", "title", "defs")
_NEVER_SAID: Final = ("id", "onload", "onclick", "style", "href")


@dataclass(frozen=True, slots=True)
class Plot:
    """What is drawn: a title and a sentence for who cannot see it, and the series by name.

    `tones` are those whose meaning has a colour, `good`, `bad` or `plain`, which they keep whatever
    else is drawn; the other series are coloured in their order.
    """

    title: str
    description: str
    series: Mapping[str, Sequence[int]]
    tones: Mapping[str, str] = field(default_factory=dict)


class Plotter:
    """Draws the plots of one page; each gets names of its own in it."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def over_time(self, plot: Plot, buckets: Buckets) -> Markup:
        """Stacked bars, one for each step of time."""
        return self._both(plot, lambda size: _over_time(plot, buckets, size))

    def amounts(self, plot: Plot, names: Sequence[str]) -> Markup:
        """Bars that lie, one for each name; the first is on top."""
        return self._both(plot, lambda size: _amounts(plot, names, size))

    def _both(self, plot: Plot, draw: Any) -> Markup:
        drawn = Markup("").join(self._drawn(draw(size), plot, size) for size in _WIDTHS)
        caption = Markup("<figcaption>{}</figcaption>").format(printable(plot.title))
        return Markup("<figure>{}{}</figure>").format(caption, drawn)

    def _drawn(self, chart: Any, plot: Plot, size: str) -> Markup:
        name = f"plot-{next(self._numbers)}"
        chart.add_xml_filter(lambda root: _cleaned(root, plot, name, size))
        text: str = chart.render(is_unicode=True)
        return Markup(text)  # noqa: S704 - made by an XML writer, which escapes every text


def _over_time(plot: Plot, buckets: Buckets, size: str) -> Any:
    columns = min(len(plot.series), _LEGEND_COLUMNS[size])
    height = _HEIGHT + _LEGEND_HEIGHT * -(-len(plot.series) // columns)
    steps = range(buckets.count)
    labels = [buckets.label(index) for index in steps]
    every = max(1, -(-buckets.count // _LABELS[size]))
    chart = pygal.StackedBar(
        **_options(size, height),
        show_legend=len(plot.series) > 1,
        legend_at_bottom_columns=columns,
        show_minor_x_labels=False,
        truncate_label=-1,
    )
    chart.y_labels = ticks(max(map(sum, zip(*plot.series.values(), strict=True)), default=0))
    chart.x_labels = labels
    chart.x_labels_major = labels[::every]
    for name, values in plot.series.items():
        chart.add(printable(name), list(values))
    return chart


def _amounts(plot: Plot, names: Sequence[str], size: str) -> Any:
    chart = pygal.HorizontalBar(
        **_options(size, 60 + _BAR_HEIGHT * len(names)),
        show_legend=False,
        truncate_label=_NAME_SHOWN[size],
        margin_right=_LAST_LABEL,
    )
    most = max(map(max, plot.series.values()), default=0)
    chart.y_labels = ticks(most, _STEPS[size])
    chart.x_labels = [printable(name) for name in reversed(names)]
    for name, values in plot.series.items():
        chart.add(printable(name), list(reversed(values)))
    return chart


def _options(size: str, height: int) -> dict[str, Any]:
    return {
        "width": _WIDTHS[size],
        "height": height,
        "style": _STYLE,
        "js": [],
        "legend_at_bottom": True,
        "disable_xml_declaration": True,
        "explicit_size": False,
        "show_y_guides": True,
        "margin": 8,
        "value_formatter": lambda value: f"{value:,.0f}",
        "rounded_bars": 1,
        "include_x_axis": True,
        "truncate_legend": 40,
    }


def ticks(most: int, steps: int = 5) -> list[int]:
    """Labels of an axis of counts: whole numbers from 0 to `most` or more, in `steps` at most."""
    step = next(
        s * 10**power for power in count() for s in (1, 2, 5) if most <= steps * s * 10**power
    )
    return list(range(0, max(most, 1) + step, step))


def _cleaned(root: Any, plot: Plot, name: str, size: str) -> Any:
    """Only shapes and letters are left; what they are of is said to screen readers."""
    for parent in list(root.iter()):
        tip = _tip(parent)
        for child in list(parent):
            if not isinstance(child.tag, str) or _local(child.tag) in _NEVER_SHOWN:
                parent.remove(child)
        if tip:
            _say(parent, 0, "title", tip)
    for element in root.iter():
        for attribute in list(element.attrib):
            if _local(attribute) in _NEVER_SAID:
                del element.attrib[attribute]
    _tone(root, [plot.tones.get(name) for name in plot.series])
    _say(root, 0, "title", plot.title, id=f"{name}-title")
    _say(root, 1, "desc", plot.description, id=f"{name}-desc")
    root.attrib["id"] = name
    root.attrib["class"] = f"plot {size}"
    root.attrib["role"] = "img"
    root.attrib["aria-labelledby"] = f"{name}-title {name}-desc"
    return root


def _tone(root: Any, tones: Sequence[str | None]) -> None:
    """Series that have a tone are classed by it and no longer by their number."""
    words = {f"color-{index}": f"tone-{tone}" for index, tone in enumerate(tones) if tone}
    for element in root.iter():
        classes = element.attrib.get("class", "").split()
        if words.keys() & classes:
            element.attrib["class"] = " ".join(words.get(word, word) for word in classes)


def _tip(element: Any) -> str:
    """What a bar stands for, `2026-11-24: 17`; empty for what is no bar."""
    said = {each.get("class"): each.text or "" for each in element if _is(each, "desc")}
    if element.get("class") != "bar" or "value" not in said:
        return ""
    return ": ".join(filter(None, (said.get("x_label"), said["value"])))


def _say(parent: Any, position: int, tag: str, text: str, **attributes: str) -> None:
    said = parent.makeelement(tag, attributes)
    said.text = printable(text)
    parent.insert(position, said)


def _is(element: Any, tag: str) -> bool:
    return isinstance(element.tag, str) and _local(element.tag) == tag


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def stacked(
    rows: Iterable[tuple[str, Sequence[int]]], whole: Sequence[int], rest: str
) -> dict[str, Sequence[int]]:
    """Series by name, and what is missing of the whole as one more."""
    series = dict(rows)
    left = [all_ - sum(values) for all_, *values in zip(whole, *series.values(), strict=True)]
    return {**series, rest: left} if any(left) else series

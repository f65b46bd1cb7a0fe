"""The page: one file of HTML with all that it needs inside, and nothing that runs or loads.

Every value that is shown goes through `_finalized` and the escaping of Jinja2; only what `plots`
has drawn is markup. The policy in the page allows its one style by its digest and nothing else.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from itertools import islice
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from keys.text import printable
from spa_server.report.facts import Denials, Facts
from spa_server.report.groups import Group, Grouping, grouped
from spa_server.report.plots import Plot, Plotter, stacked
from spa_server.report.tables import MOST_NAMES, day, minute, number, shortened, tables

_COLUMNS: Final = 8
_SOURCES_DRAWN: Final = 5
_REASONS_DRAWN: Final = 12
_DRAWN: Final = {
    "connection.permitted": ("connections permitted", "plain"),
    "knock.accepted": ("knocks accepted", "good"),
    "knock.refused": ("knocks refused", "bad"),
}


def render(facts: Facts, *, full: bool = False) -> str:
    """The page as text, to be written in UTF-8.

    What many would fill hundreds of sheets with is summed up and cut, and says so, unless `full`.
    """
    style = (resources.files(__package__) / "templates" / "style.css").read_text(encoding="utf-8")
    all_tables, matrix = tables(facts), grouped(facts.access.people, full=full)
    page = environment().get_template("report.html.j2")
    return page.render(
        facts=facts,
        style=Markup(style),  # noqa: S704 - our own file
        policy=_policy(style),
        plots=_plots(facts),
        tables=all_tables if full else shortened(all_tables),
        matrix=matrix,
        blocks=list(_blocks(facts, matrix)),
        names_shown=None if full else MOST_NAMES,
    )


@cache
def environment() -> Environment:
    """How every template is read: what is shown is escaped, what is missing is an error."""
    environment = Environment(
        loader=PackageLoader("spa_server.report"),
        autoescape=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalized,
    )
    environment.filters |= {"minute": minute, "day": day, "number": number, "counted": _counted}
    return environment


def _finalized(value: Any) -> Any:
    """What could steer a terminal or turn the writing around is shown as an escape."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _policy(style: str) -> str:
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _counted(count: int, noun: str, nouns: str = "") -> str:
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def _blocks(facts: Facts, matrix: Grouping) -> Iterable[tuple[tuple[str, ...], list[Group]]]:
    """The matrix in tables that a sheet of paper has room for: services, and who reaches any."""
    reached = {name for group in matrix.groups for name in group.cells}
    names = [name for name in facts.access.services if name in reached]
    names += sorted(reached.difference(names))
    columns = iter(names)
    while block := tuple(islice(columns, _COLUMNS)):
        yield block, [g for g in matrix.groups if any(n in g.cells for n in block)]


# Plots


def _plots(facts: Facts) -> Mapping[str, Markup]:
    """By name; one that would be empty is not there."""
    plotter = Plotter()
    drawn = {"activity": _activity(facts, plotter), "ages": _ages(facts, plotter)}
    for name, denials, what in (
        ("denied", facts.denied, "denied"),
        ("would-deny", facts.would_deny, "that would have been denied"),
    ):
        drawn[name] = _denied(facts, denials, what, plotter)
    drawn["refusals"] = _refusals(facts, plotter)
    return {name: plot for name, plot in drawn.items() if plot}


def _activity(facts: Facts, plotter: Plotter) -> Markup | None:
    there = {event: drawn for event, drawn in _DRAWN.items() if event in facts.activity}
    found = {words: facts.activity[event] for event, (words, _) in there.items()}
    if not found:
        return None
    totals = ", ".join(f"{sum(counts):,} {words}" for words, counts in found.items())
    title = f"Knocks and connections by {facts.buckets.unit}"
    plot = Plot(title, f"In all {totals}.", found, dict(there.values()))
    return plotter.over_time(plot, facts.buckets)


def _denied(facts: Facts, denials: Denials, what: str, plotter: Plotter) -> Markup | None:
    if not denials.packets:
        return None
    drawn = [each for each in denials.sources if each.source is not None][:_SOURCES_DRAWN]
    rows = [(str(each.source), each.over_time) for each in drawn]
    others = "all others" if rows else "all sources"
    description = f"{denials.packets:,} packets; by source in the table below."
    series = stacked(rows, denials.over_time, others)
    title = f"Packets {what}, by source and {facts.buckets.unit}"
    return plotter.over_time(Plot(title, description, series), facts.buckets)


def _refusals(facts: Facts, plotter: Plotter) -> Markup | None:
    drawn = facts.refusals[:_REASONS_DRAWN]
    if not drawn:
        return None
    names = [each.reason or "no reason given" for each in drawn]
    knocks = [each.knocks for each in drawn]
    return _lying("Refused knocks by reason", "bad", names, knocks, plotter)


def _ages(facts: Facts, plotter: Plotter) -> Markup | None:
    if not any(facts.ages.values()):
        return None
    counts = list(facts.ages.values())
    return _lying("Keys in force by age", "plain", list(facts.ages), counts, plotter)


def _lying(
    title: str, tone: str, names: Sequence[str], counts: Sequence[int], plotter: Plotter
) -> Markup:
    pairs = zip(names, counts, strict=True)
    description = "; ".join(f"{name}: {count:,}" for name, count in pairs)
    return plotter.amounts(Plot(title, description, {title: counts}, {title: tone}), names)

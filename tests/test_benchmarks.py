"""The pure parts of the benchmarks: what is made of measurements, and how it is told."""

import math
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from benchmarks import report
from benchmarks.bench import Curve, Goal, Row
from benchmarks.measure import Figure, Latencies, percentile
from benchmarks.plots import Axis, distribution, plot
from benchmarks.probe import Volley
from benchmarks.process import Load

SLOWER = Row("packet to open port", "ms", "lower", Figure((2.0, 2.0, 2.1)), needed=2.5)
FASTER = Row("knocks a second", "/s", "higher", Figure((5200.0, 5000.0, 5100.0)), needed=6000.0)


class TestPercentiles:
    @pytest.mark.parametrize(
        ("share", "expected"),
        [(0.0, 1), (0.01, 1), (0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100)],
    )
    def test_so_many_of_a_hundred_are_no_larger(self, share: float, expected: int) -> None:
        assert percentile(range(100, 0, -1), share) == expected

    def test_one_value_is_all_of_them(self) -> None:
        assert percentile([7.0], 0.5) == percentile([7.0], 0.99) == 7.0

    def test_there_is_none_of_nothing(self) -> None:
        with pytest.raises(ValueError, match="no values"):
            percentile([], 0.5)

    def test_a_knock_that_was_lost_took_no_time_but_is_counted(self) -> None:
        found = Latencies((1.0, None, 3.0, None))
        assert (found.lost, found.median_ms) == (2, 1.0)
        assert math.isinf(Latencies((None,)).percentile_ms(0.99))


class TestNoise:
    @pytest.mark.parametrize(
        ("runs", "noisy"),
        [
            ((100, 100, 100), False),
            ((90, 100, 110), False),
            ((89, 100, 110), True),
            ((0, 0), False),
        ],
    )
    def test_runs_more_than_a_fifth_apart_are_noisy(
        self, runs: tuple[float, ...], noisy: bool
    ) -> None:
        assert Figure(runs).is_noisy is noisy

    def test_one_run_is_told_apart(self) -> None:
        assert Figure((1.0,)).is_single
        assert not Figure((1.0, 1.0)).is_single

    def test_the_value_is_the_median_whatever_one_run_does(self) -> None:
        assert Figure((1.0, 1000.0, 1.2)).value == 1.2


class TestGoals:
    def test_less_is_better_where_it_is_about_time(self) -> None:
        assert SLOWER.is_reached
        assert not replace(SLOWER, needed=1.9).is_reached

    def test_more_is_better_where_it_is_about_rates(self) -> None:
        assert not FASTER.is_reached
        assert replace(FASTER, needed=5000.0).is_reached

    def test_another_condition_can_fail_it(self) -> None:
        assert replace(SLOWER, holds=False).is_reached is False

    def test_where_nothing_is_needed_there_is_no_verdict(self) -> None:
        assert replace(SLOWER, needed=None).is_reached is None

    def test_ratios_say_how_many_times_better(self) -> None:
        assert SLOWER.times_better_than(Figure((120.0,))) == 60
        assert FASTER.times_better_than(Figure((102.0,))) == 50
        assert FASTER.times_better_than(None) is None


class TestReport:
    def test_a_line_of_the_table(self) -> None:
        row = replace(SLOWER, fwknopd=Figure((120.0, 200.0)), limit=Figure((0.05,)), aim="2.5 ms")
        assert report.cells(row) == (
            "packet to open port (ms)",
            "2.00",
            "160 `~`",
            "0.0500 `1`",
            "80.0",
            "0.0250",
            "2.5 ms: **reached**",
        )

    def test_a_goal_that_is_not_reached_says_by_how_much(self) -> None:
        assert report.cells(replace(FASTER, aim="6,000"))[-1] == (
            "6,000: **not reached**, 1.18 times away"
        )

    def test_what_never_happened(self) -> None:
        row = replace(SLOWER, fwknopd=Figure((math.inf,)))
        assert report.cells(row)[2] == "never `1`"
        assert report.cells(row)[4] == ""

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0, "0"),
            (0.01234, "0.0123"),
            (9.999, "10.0"),
            (0.0999, "0.0999"),
            (123.4, "123"),
            (1234567.0, "1,234,567"),
        ],
    )
    def test_numbers_have_three_digits(self, value: float, text: str) -> None:
        assert report.number(value) == text

    def test_results_name_machine_command_and_plots_and_mark_a_busy_machine(self) -> None:
        goal = Goal(1, "Soon", [SLOWER], {"users": [Curve("ours", ((1.0, 2.0),))]}, Load(0.5, 0.0))
        text = report.markdown([goal], {"processor": "a Z80"}, "python -m benchmarks", "today")
        for part in (
            "a Z80",
            "`python -m benchmarks`",
            "](users.svg)",
            "## 1. Soon",
            "busy machine",
        ):
            assert part in text
        assert "busy machine" not in report.markdown([replace_load(goal)], {}, "", "")

    def test_json_has_every_run_and_no_infinity(self) -> None:
        row = replace(SLOWER, fwknopd=Figure((math.inf,)), needed=math.inf)
        told = report.as_json([Goal(1, "Soon", [row])], {}, "", "")["goals"][0]["rows"][0]
        assert told["ours"] == {"value": 2.0, "runs": [2.0, 2.0, 2.1]}
        assert told["fwknopd"] == {"value": None, "runs": [None]}
        assert (told["needed"], told["reached"], told["limit"]) == (None, True, None)


def replace_load(goal: Goal) -> Goal:
    """The same, taken while nothing else ran."""
    return replace(goal, load=Load(0.01, 0.0))


class TestPlots:
    def test_what_was_lost_never_arrives_in_a_distribution(self) -> None:
        assert distribution([3.0, None, 1.0, 2.0]) == ((1.0, 25.0), (2.0, 50.0), (3.0, 75.0))

    def test_a_logarithmic_axis_goes_to_full_powers_of_ten(self) -> None:
        axis = Axis.over("ms", [0.3, 140], logarithmic=True)
        assert (axis.low, axis.high) == (0.1, 1000)
        assert axis.share(10) == pytest.approx(0.5)
        assert axis.ticks == pytest.approx([0.1, 1, 10, 100, 1000])

    def test_a_plot_is_well_formed_and_has_its_labels(self) -> None:
        axis = Axis.over("a < b", [1, 100], logarithmic=True)
        drawing = plot("Now & then", axis, axis, [Curve("ours", ((1, 1), (100, 100)))])
        parsed = ElementTree.fromstring(drawing)  # noqa: S314 - it was drawn here
        texts = [each.text for each in parsed.iter() if each.text]
        assert {"a < b", "Now & then", "ours"} <= set(texts)


def test_an_answer_belongs_to_the_knock_that_it_names() -> None:
    first, second, third = (bytes([n]) * 8 for n in range(3))
    found = Volley([1.0, 2.0, 3.0], [(2.004, second + b"sealed"), (1.5, first + b"sealed")])
    assert found.waits([first, second, third]).each_ms == pytest.approx((500.0, 4.0, None))

"""Metrics: what is counted, what it costs, who can read it; and the dashboard asks for what is."""

import asyncio
import json
import re
import socket
import threading
import time
import timeit
import urllib.error
import urllib.request
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from keys.tomlfile import FileProblem
from keys.trouble import Trouble
from spa_server.audit.record import Event, Record
from spa_server.config import Config, load_config
from spa_server.listen import ListenAddress
from spa_server.meter import BOUNDS_S, Histogram, Meter
from spa_server.metrics import Kernel, MetricsServer
from spa_server.snapshot import Snapshot, Snapshots, by_severity
from tests.world import NOW_US

DOCS = Path(__file__).parent.parent / "docs"
KERNEL = Kernel(True, {"denied_packets": 41, "denied_unlisted": 1, "knocks_rejected": 7})
ACCEPTED = Record(Event.KNOCK_ACCEPTED, NOW_US, identity="alice", source="10.0.0.9")
OPENED = Record(Event.HOLE_OPENED, NOW_US, identity="alice")
DENIED = Record(Event.CONNECTION_DENIED, NOW_US, source="10.0.0.9", access="tcp/22")


def refused(reason: str, **detail: Any) -> Record:
    return Record(Event.KNOCK_REFUSED, NOW_US, reason=reason, detail=detail)


def busy_meter() -> Meter:
    """One with something in every family."""
    meter = Meter()
    meter.heard()
    meter.decided(3)
    meter.opened(2)
    lost = Record(Event.RECORDS_LOST, NOW_US, detail={"count": 5, "of": "permit"})
    meter.written([ACCEPTED, OPENED, ACCEPTED, DENIED, lost])
    meter.written([refused("stale"), refused("unknown-key", further=9)])
    meter.anomalies["scan"] = 2
    return meter


def snapshot() -> Snapshot:
    return Snapshot(
        meter=busy_meter().copy(),
        version="1",
        holes=4,
        tags=10,
        drift=by_severity(["warning", "warning"]),
        outputs={"syslog": (10, 1)},
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server() -> Iterator[ListenAddress]:
    listen = ListenAddress(ip_address("127.0.0.1"), free_port())
    running = MetricsServer(listen, snapshot, lambda: KERNEL)
    yield listen
    running.close()


def scrape(listen: ListenAddress) -> str:
    with urllib.request.urlopen(f"http://{listen}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels, in the order of their names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


# What is exported


def test_a_scrape_gives_what_was_counted(server: ListenAddress) -> None:
    got = samples(scrape(server))
    expected = {
        ("spa_knocks_total", "", "accepted"): 2,
        ("spa_knocks_total", "stale", "refused"): 1,
        ("spa_knocks_total", "unknown-key", "refused"): 9,
        ("spa_connections_total", "denied"): 1,
        ("spa_connections_total", "permitted"): 0,
        ("spa_holes_total", "opened"): 1,
        ("spa_holes_open",): 4,
        ("spa_tags",): 10,
        ("spa_records_lost_total", "permit"): 5,
        ("spa_anomalies_total", "scan"): 2,
        ("spa_drift_findings", "warning"): 2,
        ("spa_output_records_total", "syslog"): 10,
        ("spa_output_dropped_total", "syslog"): 1,
        ("spa_gate_loaded",): 1,
        ("spa_gate_packets_total", "denied_packets"): 41,
        ("spa_decision_seconds_count",): 3,
        ("spa_open_seconds_count",): 2,
        ("spa_open_seconds_bucket", "+Inf"): 2,
    }
    assert {name: got.get(name) for name in expected} == expected


def test_no_person_key_or_address_is_in_it(server: ListenAddress) -> None:
    text = scrape(server)
    assert "alice" not in text
    assert "10.0.0.9" not in text


def test_without_a_gate_the_rest_is_told_all_the_same() -> None:
    listen = ListenAddress(ip_address("127.0.0.1"), free_port())
    running = MetricsServer(listen, snapshot, Kernel)
    got = samples(scrape(listen))
    running.close()
    assert got["spa_gate_loaded",] == 0
    assert got["spa_holes_open",] == 4


# The dashboard and the list of metrics

_NAME = re.compile(r"\bspa_[a-z_]+")


def dashboard_queries() -> list[tuple[str, str]]:
    """Title and query of every target of every panel."""
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    return [
        (panel["title"], target["expr"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]


@pytest.mark.parametrize(("title", "query"), dashboard_queries())
def test_every_panel_asks_for_what_is_exported(
    server: ListenAddress, title: str, query: str
) -> None:
    text = scrape(server)
    names = {name[0] for name in samples(text)}
    asked = set(_NAME.findall(query))
    assert asked, title
    assert asked <= names
    for name, labels in re.findall(r"(spa_[a-z_]+)\{([^}]*)\}", query):
        given_labels = {
            label
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
            for label in sample.labels
        }
        assert set(re.findall(r"([a-z_]+)\s*[=!]", labels)) <= given_labels | {"instance", "job"}


def test_the_dashboard_can_be_imported() -> None:
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"


def test_the_page_lists_every_metric_and_no_other(server: ListenAddress) -> None:
    suffixes = ("_total", "_bucket", "_count", "_sum", "_info", "_created")
    exported = {
        family.name for family in text_string_to_metric_families(scrape(server))
    }  # fmt: skip
    page = (DOCS / "metrics.md").read_text()
    listed = set(re.findall(r"^\| `(spa[a-z_]*)", page, re.MULTILINE))
    assert {_bare(name, suffixes) for name in listed} == {
        _bare(name, suffixes) for name in exported
    }


def _bare(name: str, suffixes: tuple[str, ...]) -> str:
    return next((name.removesuffix(one) for one in suffixes if name.endswith(one)), name)


# Where it listens


@pytest.mark.parametrize("text", ["127.0.0.1:9062", "[::1]:9062", "127.9.9.9:1"])
def test_an_address_of_this_host_is_taken(text: str) -> None:
    assert str(ListenAddress.parse(text)) == text


@pytest.mark.parametrize("text", ["0.0.0.0:9062", "[::]:9062", "10.0.0.1:9062", "[fd77::1]:1"])
def test_others_can_reach_it_only_where_that_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="metrics_beyond_loopback"):
        ListenAddress.parse(text)
    assert str(ListenAddress.parse(text, beyond_loopback=True)) == text


@pytest.mark.parametrize(
    "text", ["", "9062", "localhost:9062", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536",
             "127.0.0.1:x", "::1:9062", "[127.0.0.1]:9062", "127.0.0.1:9062:1", "[::1]", "1:²"]
)  # fmt: skip
def test_what_is_no_address_and_port_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no address and port"):
        ListenAddress.parse(text)


def test_a_port_that_is_taken_is_told(server: ListenAddress) -> None:
    with pytest.raises(Trouble, match="no metrics at"):
        MetricsServer(server, snapshot)


def test_who_connects_and_says_nothing_does_not_keep_others_out(server: ListenAddress) -> None:
    idle = [socket.create_connection((str(server.address), server.port)) for _ in range(4)]
    assert "spa_holes_open" in scrape(server)
    for one in idle:
        one.close()


def test_more_at_once_than_there_are_slots_are_hung_up_on(server: ListenAddress) -> None:
    idle = [socket.create_connection((str(server.address), server.port)) for _ in range(8)]
    time.sleep(0.2)
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        scrape(server)
    for one in idle:
        one.close()
    time.sleep(0.2)
    assert "spa_holes_open" in scrape(server)


# The meter


def test_a_knock_costs_the_meter_no_more_than_some_calls() -> None:
    """What one knock that opens a hole adds: two records, the start, two latencies.

    By itself below a microsecond. It is held against a function that does nothing, as both are
    slower on a machine with other work.
    """
    meter = Meter()
    records = [ACCEPTED, OPENED]

    def one_knock() -> None:
        meter.heard()
        meter.decided(1)
        meter.written(records, 1)
        meter.opened(1)

    def nothing() -> None:
        return

    best_s = min(timeit.repeat(one_knock, number=200, repeat=300)) / 200
    call_s = min(timeit.repeat(nothing, number=200, repeat=300)) / 200
    print(f"{best_s * 1e9:.0f} ns a knock, {call_s * 1e9:.0f} ns a call")
    assert best_s < 60 * call_s


@given(st.lists(st.floats(0, 10)))
def test_a_histogram_counts_each_once_in_the_first_bucket_that_holds_it(took: list[float]) -> None:
    histogram = Histogram()
    for one in took:
        histogram.observe(one)
    assert sum(histogram.counts) == len(took)
    assert histogram.sum_s == pytest.approx(sum(took))
    for number, bound in enumerate(BOUNDS_S):
        assert sum(histogram.counts[: number + 1]) == sum(one <= bound for one in took)


def test_whatever_reasons_come_the_meter_is_bounded() -> None:
    meter = Meter()
    for number in range(5000):
        meter.written([refused(f"reason {number}" * 20)])
        meter.written([Record(Event.CONNECTION_DENIED, NOW_US, source=f"10.0.{number}.1")])
    assert len(meter.refused) <= 65
    assert sum(meter.refused.values()) == 5000
    assert len(meter.sources) == 1000
    assert ("10.0.4999.1", "") in meter.sources
    assert meter.denied[Event.CONNECTION_DENIED] == 5000
    assert len(meter.recent) == 100


def test_denials_of_one_kind_are_added_up() -> None:
    meter = Meter()
    further = Record(Event.CONNECTION_DENIED, NOW_US + 5, source="10.0.0.9", access="tcp/22",
                     detail={"further": 11})  # fmt: skip
    meter.written([DENIED, further])
    (told,) = meter.told(10)["sources"]
    assert (told["packets"], told["last_us"]) == (12, NOW_US + 5)


def test_a_copy_does_not_change_any_more() -> None:
    meter = busy_meter()
    copied = meter.copy()
    before = (dict(copied.events), list(copied.decision.counts), dict(copied.refused))
    meter.written([ACCEPTED, refused("new")])
    meter.decided(1)
    assert (copied.events, copied.decision.counts, copied.refused) == before


# Snapshots


def test_a_snapshot_is_taken_in_the_loops_own_thread() -> None:
    taken_in: list[int] = []

    def take() -> Snapshot:
        taken_in.append(threading.get_ident())
        return snapshot()

    async def run() -> None:
        snapshots = Snapshots(take, asyncio.get_running_loop())
        snapshots._latest = Snapshot(Meter(), taken_s=time.monotonic() - 10)
        fresh = await asyncio.to_thread(snapshots)
        assert fresh.holes == 4
        again = await asyncio.to_thread(snapshots)
        assert again is fresh

    asyncio.run(run())
    assert taken_in == [threading.get_ident()] * 2


def test_a_loop_that_does_not_answer_leaves_the_last_one() -> None:
    """Also one that is closed, and one whose snapshot fails."""
    loop = asyncio.new_event_loop()
    old = Snapshot(Meter(), holes=3, taken_s=time.monotonic() - 10)
    snapshots = Snapshots(lambda: old, loop)
    assert snapshots() is old  # and does not wait for ever
    loop.close()
    assert snapshots() is old


def test_a_snapshot_that_fails_leaves_the_last_one() -> None:
    old = Snapshot(Meter(), taken_s=time.monotonic() - 10)
    answers = iter([old])

    async def run() -> None:
        snapshots = Snapshots(lambda: next(answers), asyncio.get_running_loop())
        assert await asyncio.to_thread(snapshots) is old

    asyncio.run(run())


# The configuration


def configured(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "server.toml"
    path.write_text(text)
    return load_config(path)


def test_metrics_and_outputs_are_off_unless_they_are_set(tmp_path: Path) -> None:
    config = configured(tmp_path, "")
    assert (config.metrics, config.outputs) == (None, None)
    config = configured(tmp_path, 'metrics = "[::1]:9062"\noutputs = ["journald"]\n')
    assert str(config.metrics) == "[::1]:9062"
    assert [output.name for output in config.outputs or ()] == ["journald"]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('metrics = "0.0.0.0:9062"', "metrics"),
        ('metrics = "localhost:9062"', "metrics"),
        ('outputs = ["syslog:tcp://127.0.0.1:514"]', "outputs"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, field: str) -> None:
    with pytest.raises(FileProblem, match=field):
        configured(tmp_path, text)


def test_an_address_for_others_is_taken_where_that_is_said(tmp_path: Path) -> None:
    text = 'metrics = "10.0.0.1:9062"\nmetrics_beyond_loopback = true\n'
    assert str(configured(tmp_path, text).metrics) == "10.0.0.1:9062"

"""`spa-server report`: the facts, the page, and how it looks in a real browser."""

import html
import json
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from keys.console import ExitCode, Program
from spa_server.audit.checkpoint import record_key
from spa_server.audit.record import Event
from spa_server.commands.report import report
from spa_server.report.buckets import DAY_US, HOUR_US, WEEK_US, Buckets
from tests import chromium
from tests.reported import Host, busy

plots_module = pytest.importorskip("spa_server.report.plots", reason="[report] is not installed")
page_module = pytest.importorskip("spa_server.report.page", reason="[report] is not installed")

NASTY = "<script>alert(1)</script>\"'&\x1b[31m\u202eevil {{ 7 * 7 }} {count.__class__}"
BROWSER = chromium.find()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    busy(made)
    made.denials.flush(made.now_us)
    yield made
    made.close()


def run(host: Host, *arguments: str) -> Result:
    program = Program("spa-server", commands=[report])
    return CliRunner().invoke(program, ["report", *arguments], obj=host.config)


def facts(host: Host, *arguments: str) -> dict[str, Any]:
    result = run(host, "--json", *arguments)
    assert result.exit_code in (0, 1), result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def page(host: Host, *arguments: str) -> str:
    file = host.path / "page.html"
    result = run(host, "--html", str(file), "--force", *arguments)
    assert result.exit_code == 0, result.output
    return file.read_text()


class Reader(HTMLParser):
    """Tags, attributes and the text of a page, as a browser would read them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


# The facts


def test_the_matrix_says_who_reaches_what_by_which_rule_and_how_often(host: Host) -> None:
    access = facts(host)["access"]
    rules = {rule["path"]: rule for rule in access["rules"]}
    people = {person["name"]: person for person in access["people"]}
    ssh = rules["roles.ops.allow[0]"]["number"]
    assert people["alice"]["cells"]["ssh"] == {
        "rules": [ssh],
        "partial": [],
        "connections": 27,
        "holes": 27,
    }
    assert people["carol"]["cells"]["ssh"]["connections"] == 0
    assert "ssh" not in people["bob"]["cells"]
    assert set(people["anybody"]["cells"]) == {"exporter"}
    assert rules["roles.ops.allow[1]"]["last_at"] is None
    assert access["without_access"] == ["dave"]


def test_what_was_reached_by_a_rule_that_is_gone_is_shown(host: Host) -> None:
    host.registry.ungrant("bob", ["dba"], now_us=host.now_us, actor="ines")
    people = {person["name"]: person for person in facts(host)["access"]["people"]}
    assert people["bob"]["cells"]["postgres"]["rules"] == []
    assert people["bob"]["cells"]["postgres"]["connections"] == 27
    assert "no rule now" in page(host)


def test_what_was_never_used_and_what_is_to_be_reviewed(host: Host) -> None:
    found = facts(host)
    unused = [each["where"] for each in found["findings"] if "never used in" in each["what"]]
    assert "roles.ops.allow[1]" in unused
    (review,) = found["access"]["reviews"]
    assert (review["where"], review["due"]) == ("roles.ops", "2026-01-31")
    assert review["days"] < 0


def test_keys_stand_by_age_and_those_long_gone_are_left_out(host: Host) -> None:
    host.enrol("erin", days_ago=400)
    host.registry.revoke("erin", now_us=host.ago(200), actor="ines")
    host.registry.revoke("dave", now_us=host.ago(2), actor="ines")
    found = facts(host)
    keys = [(key["identity"], key["age_days"], key["state"]) for key in found["keys"]]
    assert keys == [
        ("alice", 500, "active"),
        ("bob", 120, "active"),
        ("carol", 10, "active"),
        ("dave", 40, "revoked"),
    ]
    assert found["ages"]["1 to 2 years"] == 1
    assert sum(found["ages"].values()) == 3


def test_every_denied_packet_is_counted_once_and_has_its_day(host: Host) -> None:
    denied = facts(host)["denied"]
    assert [each["source"] for each in denied["sources"]] == ["203.0.113.7", "198.51.100.9"]
    packets = sum(40 + days + 7 for days in range(1, 80, 3))
    assert denied["packets"] == denied["ever"] == sum(denied["over_time"]) == packets
    assert denied["sources"][1]["port_count"] == 27
    would_deny = facts(host)["would_deny"]
    assert [each["source"] for each in would_deny["sources"]] == ["10.20.3.9"]


def test_denials_of_an_older_record_count_as_well(host: Host) -> None:
    host.ledger._denials = None  # as it was before they had a file of their own
    host.note(
        Event.CONNECTION_DENIED, 1, source="192.0.2.1", access="tcp/22", detail={"further": 9000}
    )
    source, *_ = facts(host)["denied"]["sources"]
    assert (source["source"], source["packets"]) == ("192.0.2.1", 9000)


def test_refusals_by_reason_know_strangers_and_what_one_line_stands_for(host: Host) -> None:
    host.note(Event.KNOCK_REFUSED, 1, identity="bob", reason="too-many", detail={"further": 5})
    found = {each["reason"]: each for each in facts(host)["refusals"]}
    assert found["too-many"]["knocks"] == 6
    assert (found["not-this-source"]["knocks"], found["not-this-source"]["people"]) == (2, 1)
    assert (found["unknown-key"]["knocks"], found["unknown-key"]["people"]) == (1, 0)


def test_changes_of_policy_and_registry_and_what_happened_to_the_host(host: Host) -> None:
    found = facts(host)
    assert [line["event"] for line in found["policy_changes"]["lines"]] == ["policy.refused"]
    changes = found["key_changes"]["lines"]
    assert {line["who"] for line in changes} == {"ines"}
    assert {line["event"] for line in changes} == {"key.enrolled", "role.granted"}
    assert [line["event"] for line in found["host_events"]["lines"]] == ["gate.restored"]


def test_an_anomaly_stands_with_its_score_and_reason(host: Host) -> None:
    host.note(Event.GATE_RESTORED, 1)
    insert = (
        "insert into event select max(id) + 1, ?, 'anomaly.found', 'bob', null, '192.0.2.7', null,"
        " null, 'a new network', null, null, ?, x'00' from event"
    )
    detail = '{"kind":"new-network","score":0.93}'
    host.connection.execute(insert, (host.ago(0.5), detail))
    (found,) = facts(host)["anomalies"]
    assert (found["name"], found["score"]) == ("new-network", 0.93)
    assert (found["subject"], found["reason"]) == ("bob, 192.0.2.7", "a new network")


def test_a_shorter_time_shows_less(host: Host) -> None:
    found = facts(host, "--since", "3d")
    people = {person["name"]: person for person in found["access"]["people"]}
    assert people["alice"]["cells"]["ssh"]["connections"] == 1
    assert found["buckets"]["unit"] == "hour"


def test_an_empty_record_and_no_denials_make_a_page(tmp_path: Path) -> None:
    host = Host(tmp_path)
    try:
        assert "the record is empty" in page(host)
    finally:
        host.close()


# The state of the record


def test_a_record_that_is_signed_and_whole_is_said_to_be(host: Host) -> None:
    assert "none of it is signed" in page(host)
    head = host.ledger.head
    made = record_key(host.secret).checkpoint(head.event_id, head.digest, host.now_us)
    host.connection.execute(
        "insert into checkpoint values (?, ?, ?, ?, ?)",
        (made.event_id, made.at_us, made.digest, made.signer, made.signature),
    )
    state = facts(host)["state"]
    assert (state["problem"], state["findings"]) == ("", [])
    assert (state["signed_id"], state["unsigned"]) == (head.event_id, 0)
    assert "The record is as it was written." in page(host)


def test_a_record_that_was_altered_makes_a_page_that_says_so_and_exit_1(host: Host) -> None:
    host.connection.execute("update event set identity = 'mallory' where id = 5")
    file = host.path / "page.html"
    result = run(host, "--html", str(file))
    assert result.exit_code == 1
    assert "not as it was written" in result.stderr
    text = file.read_text()
    assert "The record is not as it was written." in text
    assert re.search(r"line 5\b", text)


def test_lines_that_make_no_sense_any_more_are_still_reported(host: Host) -> None:
    host.note(Event.KNOCK_REFUSED, 1, reason="stale")
    host.note(Event.GATE_FAILED, 1, reason="was it?")
    host.note(Event.CONNECTION_SEVERED, 1)
    host.connection.execute("update event set detail = '{' where reason = 'stale'")
    host.connection.execute("update event set detail = '{\"{0[x]}\":1}' where reason = 'was it?'")
    far = "update event set at_us = 9000000000000000000 where event = 'connection.severed'"
    host.connection.execute(far)
    found = facts(host)
    assert found["state"]["findings"]
    assert {each["reason"]: each["knocks"] for each in found["refusals"]}["stale"] == 1
    assert "was it?; {0[x]}: 1" in [line["what"] for line in found["host_events"]["lines"]]
    file = host.path / "page.html"
    assert run(host, "--html", str(file)).exit_code == 1
    assert file.read_text().endswith("</html>\n")


def test_without_the_servers_key_the_page_says_that_nothing_was_verified(host: Host) -> None:
    (host.path / "server.key").unlink()
    file = host.path / "page.html"
    result = run(host, "--html", str(file))
    assert "The record was not verified" in file.read_text()
    assert "was not verified" in result.stderr
    assert result.exit_code == ExitCode.TROUBLE


# The page


def test_the_file_is_private_and_takes_the_place_of_none_but_by_force(host: Host) -> None:
    file = host.path / "page.html"
    page(host)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text("mine")
    result = run(host, "--html", str(file))
    assert (result.exit_code, file.read_text()) == (4, "mine")
    assert "exists already; choose another name, or --force" in result.stderr
    assert not list(host.path.glob(".page.html.*"))


def test_a_link_is_replaced_and_not_followed(host: Host) -> None:
    kept = host.path / "kept"
    kept.write_text("kept")
    (host.path / "page.html").symlink_to(kept)
    page(host)
    assert kept.read_text() == "kept"
    assert not (host.path / "page.html").is_symlink()


def test_it_must_be_said_where_to(host: Host) -> None:
    assert run(host).exit_code == 2
    assert run(host, "--json", "--since", "0s").exit_code == 2


def test_without_the_libraries_it_says_what_to_install(host: Host) -> None:
    hide = "import sys; sys.modules['pygal'] = None; from spa_server.cli import main; main()"
    command = [sys.executable, "-c", hide, "--config", str(host.config), "report"]
    done = subprocess.run(
        [*command, "--html", "x.html"], cwd=host.path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert "pygal" in done.stderr
    assert "-m pip install '.[report]', in the checkout" in done.stderr
    assert done.stderr.count("\n") == 1
    assert subprocess.run([*command, "--json"], capture_output=True, check=False).returncode == 0


def test_nothing_in_it_runs_or_comes_from_elsewhere(host: Host) -> None:
    read = Reader(page(host))
    tags = {tag for tag, _ in read.tags}
    assert not tags & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "image",
    }
    for tag, attributes in read.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "style", "action", "srcset", "xlink:href"), (tag, name)
            if name == "href":
                assert value
                assert value.startswith("#"), value
            if name not in ("xmlns", "xmlns:xlink"):
                assert "://" not in (value or ""), (tag, name, value)
    (policy,) = [
        each["content"] or ""
        for tag, each in read.tags
        if tag == "meta" and each.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    style = read.texts[[tag for tag, _ in read.tags].index("style") :]
    assert not any("url(" in text or "@import" in text for text in style)


def test_every_link_leads_somewhere_and_every_name_is_given_once(host: Host) -> None:
    read = Reader(page(host))
    links = {(each["href"] or "")[1:] for tag, each in read.tags if tag == "a"}
    assert links <= set(read.ids)
    assert len(set(read.ids)) == len(read.ids)


def test_it_can_be_read_without_eyes(host: Host) -> None:
    text = page(host)
    read = Reader(text)
    tags = [tag for tag, _ in read.tags]
    assert text.startswith("<!DOCTYPE html>")
    assert ("html", {"lang": "en"}) in read.tags
    assert tags.count("h1") == 1
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    assert tags.count("table") == tags.count("caption")
    assert all(each.get("scope") for tag, each in read.tags if tag == "th")
    plots = [each for tag, each in read.tags if tag == "svg"]
    assert plots
    for plot in plots:
        assert plot["role"] == "img"
        assert all(name in read.ids for name in (plot["aria-labelledby"] or "").split())


def test_text_of_strangers_is_text(host: Host) -> None:
    host.note(Event.POLICY_REFUSED, 1, reason=NASTY)
    host.note(Event.KNOCK_REFUSED, 1, identity=NASTY, reason=NASTY)
    host.note(Event.GATE_FAILED, 1, reason=NASTY, detail={NASTY: NASTY})
    host.denies(NASTY, NASTY)
    host.enrol("mallory", "ops", comment=NASTY)
    text = page(host, "--title", NASTY)
    read = Reader(text)
    assert not {"script"} & {tag for tag, _ in read.tags}
    assert "\x1b" not in text
    assert "\u202e" not in text
    told = "".join(read.texts)
    assert told.count("<script>alert(1)</script>") >= 6
    assert "{{ 7 * 7 }}" in told
    assert "\\u202eevil" in told


@given(st.text(max_size=60))
def test_whatever_is_shown_is_escaped_to_printable_text(text: str) -> None:
    shown = page_module.environment().from_string('<p title="{{ x }}">{{ x }}</p>').render(x=text)
    assert shown.count("<") == 2
    assert shown.isprintable()
    read = Reader(shown)
    (paragraph,) = read.tags
    assert paragraph[1]["title"] == "".join(read.texts)
    if text.isprintable():
        assert html.unescape(shown.split(">", 1)[1].removesuffix("</p>")) == text


def test_a_plot_has_no_script_style_or_link_and_says_its_numbers(host: Host) -> None:
    text = page(host)
    drawings = re.findall(r"<svg.*?</svg>", text, re.S)
    assert drawings
    for drawing in drawings:
        assert not re.search(r"<script|<style|<!--|<defs|href|pygal", drawing)
    assert any("<title>2026-" in drawing or "<title>20" in drawing for drawing in drawings)


def drawn(text: str, caption: str) -> str:
    """The first plot of this caption."""
    return text.split(f"<figcaption>{caption}</figcaption>")[1].split("</svg>", maxsplit=1)[0]


def test_an_axis_of_counts_has_each_whole_number_once(host: Host) -> None:
    host.enrol("erin", days_ago=12)
    plot = drawn(page(host), "Keys in force by age")
    axis = plot.split('class="axis x"')[1] if 'class="axis x"' in plot else plot
    labels = re.findall(r"<text[^>]*>(\d+)</text>", axis)
    assert labels == ["0", "1", "2"]


@given(most=st.integers(min_value=0, max_value=10**12), steps=st.integers(2, 5))
def test_the_labels_of_an_axis_are_few_rising_and_enough(most: int, steps: int) -> None:
    labels = plots_module.ticks(most, steps)
    assert labels[0] == 0
    assert labels[-1] >= most
    assert 2 <= len(labels) <= steps + 1
    assert len({later - earlier for earlier, later in pairwise(labels)}) == 1


def test_refused_is_red_and_accepted_green_whatever_stands_beside_it(host: Host) -> None:
    def tones(text: str) -> list[str]:
        plot = drawn(text, "Knocks and connections by day")
        return list(dict.fromkeys(re.findall(r'class="series serie-\d+ ([\w-]+)"', plot)))

    assert tones(page(host)) == ["tone-plain", "tone-bad"]
    host.note(Event.KNOCK_ACCEPTED, 1, identity="alice")
    assert tones(page(host)) == ["tone-plain", "tone-good", "tone-bad"]
    assert "tone-bad" in drawn(page(host), "Refused knocks by reason")


# Of many


@pytest.fixture
def crowd(host: Host) -> Host:
    """300 people more, of whom one is unlike the others, and 150 who reach nothing."""
    for number in range(299):
        host.enrol(f"person-{number:03}", "ops", days_ago=20)
    host.enrol("unlike", "ops", "dba", days_ago=20)
    for number in range(150):
        host.enrol(f"idle-{number:03}", days_ago=20)
    host.uses("person-007", "roles.ops.allow[0]", "tcp/22")
    host.uses("person-008", "roles.ops.allow[0]", "tcp/22")
    return host


def test_of_many_people_those_who_reach_the_same_are_one_row(crowd: Host) -> None:
    text = page(crowd)
    (row,) = re.findall(r"<tr role=\"row\">\n<th[^>]*>300 people.*?</tr>", text, re.S)
    assert "29 by 3" in row  # alice's 27, and one each of two others
    assert "alice, person-000, person-001 and others" in row
    assert "carol, unlike<" in text
    assert 'scope="row">bob<' in text
    assert "and 51 more." in text  # of dave and the 150
    assert "more rows are not on this page: spa-server report --full" in text
    assert text.count("person-1") < 100


def test_who_is_let_in_by_no_rule_of_today_stands_first_among_many(crowd: Host) -> None:
    crowd.registry.ungrant("bob", ["dba"], now_us=crowd.now_us, actor="ines")
    matrix = page(crowd).split('class="matrix"')[1]
    rows = re.findall(r'scope="row">([^<\n]+)', matrix)
    assert rows[0] == "bob"


def test_full_has_a_row_for_each(crowd: Host) -> None:
    text = page(crowd, "--full")
    for name in (*(f"person-{n:03}" for n in range(299)), *(f"idle-{n:03}" for n in range(150))):
        assert name in text
    assert "not on this page" not in text
    assert " people<" not in text.split('class="matrix"')[1].split("</table>")[0]


def test_no_fact_is_lost_to_other_programs(crowd: Host) -> None:
    found = facts(crowd)
    assert len(found["access"]["people"]) == 304
    assert len(found["keys"]) == 454
    assert len(found["access"]["without_access"]) == 151


# Buckets


@given(
    since_us=st.integers(min_value=0, max_value=4 * 10**15),
    span_us=st.integers(min_value=1, max_value=200 * 366 * DAY_US),
)
def test_buckets_cover_the_time_in_about_a_hundred_steps(since_us: int, span_us: int) -> None:
    buckets = Buckets.of(since_us, since_us + span_us)
    assert buckets.begins_us <= since_us < buckets.begins_us + buckets.step_us
    last_us = buckets.begins_us + (buckets.count - 1) * buckets.step_us
    assert last_us <= since_us + span_us < last_us + buckets.step_us
    assert buckets.count <= 101
    assert buckets.step_us in (HOUR_US, DAY_US) or buckets.step_us % WEEK_US == 0


def test_weeks_begin_on_a_monday() -> None:
    until_us = 1_795_500_000_000_000
    buckets = Buckets.of(until_us - 365 * DAY_US, until_us)
    assert (buckets.unit, buckets.label(0)) == ("week", "2025-11-24")


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    if BROWSER is None:
        pytest.skip("there is no Chromium to look at the page with")
    with chromium.browser(BROWSER, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def wide(host: Host) -> Path:
    """A page with more services than a sheet has room for, and names without a blank."""
    names = [f"service-{number:02}-of-the-backend-with-a-long-name" for number in range(20)]
    services = "".join(f'{name} = "tcp/{7000 + i}"\n' for i, name in enumerate(names))
    policy = host.path / "policy.toml"
    allowed = ", ".join(f'"{name}"' for name in names)
    text = policy.read_text().replace("[services]\n", f"[services]\n{services}")
    policy.write_text(text.replace('services = ["ssh",', f'services = [{allowed}, "ssh",'))
    host.enrol("a" * 60, "ops", comment="c" * 200)
    host.note(Event.POLICY_REFUSED, 1, reason="r" * 400)
    host.denies("2001:db8:1111:2222:3333:4444:5555:6666", "tcp/1")
    page(host)
    return host.path / "page.html"


@pytest.mark.parametrize("width", [390, 720, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_its_window_and_asks_nobody_for_anything(
    host: Host, browser: chromium.Page, width: int, *, dark: bool
) -> None:
    file = wide(host)
    browser.requests.clear()
    browser.complaints.clear()
    browser.open(file, width, dark=dark)
    assert browser.value("document.documentElement.scrollWidth") <= width
    beyond = (
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('thead') && "
        "e.getBoundingClientRect().right > innerWidth + 1).length"
    )
    assert browser.value(beyond) == 0
    assert browser.requests == [file.absolute().as_uri()]
    assert browser.complaints == []
    shown = "[...document.querySelectorAll('svg')].filter(e => e.getBoundingClientRect().width > 0)"
    assert browser.value(f"{shown}.length") == browser.value("document.images.length") + len(
        re.findall("<figure>", file.read_text())
    )
    background = browser.value("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")


def test_letters_of_a_plot_are_as_large_on_a_phone(host: Host, browser: chromium.Page) -> None:
    page(host)
    size = (
        "(() => { const s = [...document.querySelectorAll('svg')].find(e => "
        "e.getBoundingClientRect().width > 0); return s.getScreenCTM().a * "
        "parseFloat(getComputedStyle(s.querySelector('text')).fontSize); })()"
    )
    for width in (390, 1280):
        browser.open(host.path / "page.html", width)
        assert browser.value(size) >= 10


def test_on_paper_no_column_is_lost(host: Host, browser: chromium.Page) -> None:
    file = wide(host)
    browser.open(file, 1280)
    browser.pdf(host.path / "page.pdf")
    assert (host.path / "page.pdf").read_bytes().startswith(b"%PDF")
    browser.print_width(680)  # A4 without its margins, in pixels
    lost = (
        "[...document.querySelectorAll('th, td, svg')].filter(e => { const r = "
        "e.getBoundingClientRect(); return r.width > 1 && (r.right > 681 || "
        "e.scrollWidth > e.clientWidth + 1); }).map(e => e.textContent.slice(0, 60))"
    )
    assert browser.value(lost) == []


def test_thousands_of_people_fit_on_few_sheets(crowd: Host, browser: chromium.Page) -> None:
    for number in range(2000):
        crowd.enrol(f"further-{number:04}", "ops", days_ago=20)
    page(crowd)
    browser.open(crowd.path / "page.html", 1280)
    assert browser.value("document.documentElement.scrollHeight") < 30_000
    browser.pdf(crowd.path / "page.pdf")
    assert len(re.findall(rb"/Type\s*/Page\b", (crowd.path / "page.pdf").read_bytes())) < 40

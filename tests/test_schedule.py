"""Schedules: when a rule holds, against the library's own word, and through what the clocks do."""

import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from opening_hours import OpeningHours

from spa_server.policy.hours import BadSchedule
from spa_server.policy.schedule import Schedule

quick = settings(deadline=None)

BERLIN = "Europe/Berlin"
HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
ZONES = [
    "UTC",
    BERLIN,
    "America/New_York",
    "America/Santiago",  # sets its clocks at midnight
    "Australia/Lord_Howe",  # sets them by half an hour
    "Africa/Casablanca",  # goes back for Ramadan
    "Asia/Kathmandu",
]


def us(text: str, zone: str = "UTC", fold: int = 0) -> int:
    """A moment from local time; `fold` 1 for the second of two that are the same."""
    moment = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)
    return round(moment.timestamp()) * 1_000_000


def local(at_us: int, zone: str) -> str:
    moment = datetime.fromtimestamp(at_us / 1_000_000, UTC).astimezone(ZoneInfo(zone))
    return moment.isoformat(timespec="minutes")


def spans(schedule: Schedule, from_us: int, until_us: int) -> list[tuple[str, str]]:
    zone = schedule.timezone
    return [(local(a, zone), local(b, zone)) for a, b in schedule.spans(from_us, until_us)]


def week(text: str, zone: str = "UTC", country: str | None = None) -> str:
    """When it is open in the week from Monday, 23 November 2026."""
    schedule = Schedule(text, zone, country)
    begin = us("2026-11-23", zone)
    return " ".join(
        f"{datetime.fromisoformat(a):%a%H:%M}-{datetime.fromisoformat(b):%a%H:%M}"
        for a, b in spans(schedule, begin, begin + 7 * DAY_US)
    )


# The library as the oracle: its word for one moment. In wall time, since with a zone it answers
# wrongly in the last minute before the clocks are set back.


def oracle(text: str, country: str | None = "DE") -> OpeningHours:
    return OpeningHours(text, country=country)


def is_open_by(library: OpeningHours, zone: str, at_us: int) -> bool:
    return library.is_open(wall(zone, at_us).replace(tzinfo=None))


def wall(zone: str, at_us: int) -> datetime:
    return datetime.fromtimestamp(at_us // 1_000_000, UTC).astimezone(ZoneInfo(zone))


def clocks_are_set_within_a_minute(zone: str, at_us: int) -> bool:
    return wall(zone, at_us).utcoffset() != wall(zone, at_us + 60_000_000).utcoffset()


TIMES = st.integers(0, 48).map(lambda half: f"{half // 2:02}:{half % 2 * 30:02}")
SPANS = st.tuples(TIMES, TIMES).map("-".join)
DAYS = st.sampled_from(
    ["", "Mo-Fr ", "Sa,Su ", "Su ", "Fr-Mo ", "We ", "Mo[1] ", "Su[-1] ", "PH ", "Mo,PH "]
)
DATES = st.sampled_from(
    ["", "", "", "Mar-Oct ", "Dec 24-Jan 06 ", "Feb 29 ", "week 10-44/2 ", "2027 ", "Oct 31 "]
)
OPENING = st.tuples(DATES, DAYS, st.lists(SPANS, min_size=1, max_size=2).map(",".join)).map("".join)
CLOSING = st.sampled_from(["PH off", "Su off", "Mar 28 off", "Oct 25-31 off", "02:00-03:00 off"])
TEXTS = st.tuples(st.lists(OPENING, min_size=1, max_size=2), st.lists(CLOSING, max_size=1)).map(
    lambda parts: "; ".join([*parts[0], *parts[1]])
)
# Half of the moments are near one at which the clocks of some zone are set.
SET = [
    us("2027-03-28T01:00"),
    us("2027-10-31T01:00"),
    us("2027-03-14T07:00"),
    us("2027-11-07T06:00"),
]
SET += [us("2027-04-03T15:00"), us("2027-10-02T15:30"), us("2028-02-29"), us("2026-12-31")]
MOMENTS = st.one_of(
    st.integers(us("2024-01-01"), us("2034-01-01")),
    st.tuples(st.sampled_from(SET), st.integers(-2 * DAY_US, 2 * DAY_US)).map(sum),
)


def made(text: str, zone: str) -> Schedule:
    try:
        return Schedule(text, zone, "DE")
    except BadSchedule:
        assume(False)
        raise


@quick
@given(TEXTS, st.sampled_from(ZONES), st.lists(MOMENTS, min_size=1, max_size=30))
@example("01:00-02:30", BERLIN, [us("2027-10-31T02:45", BERLIN)])
@pytest.mark.once
def test_it_is_open_when_the_library_says_so(text: str, zone: str, moments: list[int]) -> None:
    schedule, library = made(text, zone), oracle(text)
    there = OpeningHours(text, timezone=ZoneInfo(zone), country="DE")
    for at_us in moments:  # in any order: what is remembered of one must not answer another
        assert schedule.is_open(at_us) == is_open_by(library, zone, at_us)
        if not clocks_are_set_within_a_minute(zone, at_us):
            assert schedule.is_open(at_us) == there.is_open(wall(zone, at_us))


@quick
@given(TEXTS, st.sampled_from(ZONES), MOMENTS, st.lists(st.floats(0, 1), max_size=20))
@example("01:00-02:30", BERLIN, us("2027-10-30T12:00"), [0.99])
@example("02:00-03:00", BERLIN, us("2027-03-27T12:00"), [0.99])
def test_it_changes_when_it_says_and_not_before(
    text: str, zone: str, at_us: int, parts: list[float]
) -> None:
    schedule, library = made(text, zone), oracle(text)
    is_open = is_open_by(library, zone, at_us)
    change_us = schedule.changes_at_us(at_us)
    end_us = change_us or at_us + 3 * 366 * DAY_US
    assert end_us > at_us
    for part in parts:
        between_us = at_us + int((end_us - at_us) * part)
        assert between_us == end_us or is_open_by(library, zone, between_us) is is_open
    if change_us is not None:
        assert is_open_by(library, zone, change_us) is not is_open
        assert is_open_by(library, zone, change_us - 1_000_000) is is_open or change_us == at_us + 1


@quick
@given(TEXTS, st.sampled_from(ZONES), MOMENTS, st.integers(1, 4 * DAY_US))
def test_spans_are_apart_and_hold_every_minute_that_is_open(
    text: str, zone: str, from_us: int, length_us: int
) -> None:
    schedule, library = made(text, zone), oracle(text)
    found = schedule.spans(from_us, from_us + length_us)
    edges = [edge for span in found for edge in span]
    assert edges == sorted(set(edges))
    assert all(from_us <= edge <= from_us + length_us for edge in edges)
    for at_us in range(from_us, from_us + length_us, 15 * 60_000_000):
        inside = any(begin <= at_us < end for begin, end in found)
        assert inside == is_open_by(library, zone, at_us)


CLOCKS = [
    # The night to 28 March 2027 has no 02:00 to 03:00.
    ("02:00-03:00", "2027-03-28", []),
    ("01:00-02:30", "2027-03-28", [("2027-03-28T01:00+01:00", "2027-03-28T03:00+02:00")]),
    ("02:30-06:00", "2027-03-28", [("2027-03-28T03:00+02:00", "2027-03-28T06:00+02:00")]),
    ("08:00-18:00", "2027-03-28", [("2027-03-28T08:00+02:00", "2027-03-28T18:00+02:00")]),
    # That to 31 October has it twice.
    ("02:00-03:00", "2027-10-31", [("2027-10-31T02:00+02:00", "2027-10-31T03:00+01:00")]),
    (
        "01:00-02:30",
        "2027-10-31",
        [
            ("2027-10-31T01:00+02:00", "2027-10-31T02:30+02:00"),
            ("2027-10-31T02:00+01:00", "2027-10-31T02:30+01:00"),
        ],
    ),
    ("08:00-18:00", "2027-10-31", [("2027-10-31T08:00+01:00", "2027-10-31T18:00+01:00")]),
]


@pytest.mark.parametrize(("text", "day", "expected"), CLOCKS)
def test_the_days_on_which_the_clocks_are_set(
    text: str, day: str, expected: list[tuple[str, str]]
) -> None:
    begin = us(day, BERLIN)
    assert spans(Schedule(text, BERLIN), begin, begin + 23 * HOUR_US) == expected


@pytest.mark.parametrize(("day", "hours"), [("2027-03-28", 23), ("2027-10-31", 25)])
def test_a_whole_day_is_as_long_as_the_day_is(day: str, hours: int) -> None:
    schedule = Schedule("Su 00:00-24:00", BERLIN)
    begin = us(day, BERLIN)
    assert schedule.changes_at_us(begin) == begin + hours * HOUR_US
    assert schedule.changes_at_us(begin - 1) == begin


def test_the_hour_that_comes_twice_is_told_apart() -> None:
    schedule = Schedule("02:15-02:45", BERLIN)
    first, second = us("2027-10-31T02:30", BERLIN), us("2027-10-31T02:30", BERLIN, fold=1)
    assert second - first == HOUR_US
    quarter = HOUR_US // 4
    assert schedule.changes_at_us(first) == first + quarter
    assert schedule.changes_at_us(first + quarter) == second - quarter
    assert schedule.changes_at_us(second) == second + quarter


@pytest.mark.parametrize(
    ("country", "day", "is_open"),
    [
        ("DE", "2026-12-25", False),
        ("DE", "2026-10-03", False),
        ("DE", "2027-03-26", False),  # Good Friday
        ("DE", "2026-07-03", True),
        ("DE", "2026-12-24", True),
        ("US", "2026-07-03", False),  # Independence Day is a Saturday: observed on Friday
        ("US", "2026-11-26", False),  # Thanksgiving
        ("US", "2026-10-03", True),
        ("US", "2026-12-25", False),
    ],
)
def test_public_holidays_are_those_of_the_country(country: str, day: str, is_open: bool) -> None:
    schedule = Schedule("08:00-18:00; PH off", "UTC", country)
    assert schedule.is_open(us(f"{day}T12:00")) is is_open


MEANINGS = [
    ("Mo-We 08:00-18:00", "Mon08:00-Mon18:00 Tue08:00-Tue18:00 Wed08:00-Wed18:00"),
    ("Mo 8:00-9:30", "Mon08:00-Mon09:30"),
    ("mo 08:00 - 09:00", "Mon08:00-Mon09:00"),
    ("Mo,We 08:00-09:00", "Mon08:00-Mon09:00 Wed08:00-Wed09:00"),
    ("Mo 08:00-12:00,13:00-17:00", "Mon08:00-Mon12:00 Mon13:00-Mon17:00"),
    ("Mo 08:00-12:00, 13:00-17:00", "Mon08:00-Mon12:00 Mon13:00-Mon17:00"),
    ("Mo 08:00-12:00, Tu 13:00-17:00", "Mon08:00-Mon12:00 Tue13:00-Tue17:00"),
    ("Mo 22:00-06:00", "Mon22:00-Tue06:00"),
    ("Su 22:00-06:00", "Mon00:00-Mon06:00 Sun22:00-Mon00:00"),
    ("Mo 20:00-00:00", "Mon20:00-Tue00:00"),
    ("Mo-Tu", "Mon00:00-Wed00:00"),
    ("Mo-Su; Tu-Su off", "Mon00:00-Tue00:00"),
    ("Mo-Tu 08:00-18:00; Tu 10:00-12:00", "Mon08:00-Mon18:00 Tue10:00-Tue12:00"),
    ("Mo-Tu 08:00-18:00, Tu off", "Mon08:00-Mon18:00"),
    ("24/7", "Mon00:00-Mon00:00"),
    ("Nov 23 08:00-10:00", "Mon08:00-Mon10:00"),
    ("Nov Mo[-1] 08:00-10:00", ""),
    ("week 48 Tu 08:00-10:00", "Tue08:00-Tue10:00"),
    ("week 49 Tu 08:00-10:00", ""),
    ("2026 Nov 25 08:00-10:00", "Wed08:00-Wed10:00"),
    ("2027 Nov 25 08:00-10:00", ""),
    ("Mar-Oct 08:00-10:00; Nov Fr 09:00-10:00", "Fri09:00-Fri10:00"),
    ("Mo 08:00-10:00 || Tu 08:00-10:00", "Mon08:00-Mon10:00 Tue08:00-Tue10:00"),
]


@pytest.mark.parametrize(("text", "expected"), MEANINGS)
def test_what_is_accepted_means_what_it_says(text: str, expected: str) -> None:
    assert week(text) == expected
    assert week(text, "Asia/Kathmandu") == expected


def test_a_leap_day_comes_every_four_years() -> None:
    schedule = Schedule("Feb 29 10:00-12:00")
    assert schedule.is_open(us("2028-02-29T11:00"))
    opens_us = schedule.changes_at_us(us("2028-03-01"))
    assert opens_us == us("2032-02-29T10:00")


def test_a_night_before_a_holiday_ends_at_midnight() -> None:
    schedule = Schedule("Mo-Fr 22:00-06:00; PH off", "UTC", "DE")
    assert schedule.changes_at_us(us("2026-12-24T23:00")) == us("2026-12-25T00:00")


MISREAD = [
    ("", "it says nothing"),
    ("  ", "it says nothing"),
    (":", "it says nothing"),
    ("Mo, Tu 08:00-18:00", "Mo would be open all day; write a list without blanks, as in Mo,We"),
    ("PH, Su off; 08:00-10:00", "PH would be open all day"),
    ("Mo-Fr; 08:00-18:00", "Mo-Fr would be open all day; write its times, or off"),
    ("Mo-Fr 08:00-18:00; Dec 24", "Dec 24 would be open all day"),
    ("Mo-Fr 08:00-18:00;", "a rule between separators is missing"),
    ("PH off; Mo-Fr 08:00-18:00", "a later rule overrides PH off; put exceptions last"),
    ("easter off; 08:00-10:00", "a later rule overrides easter off"),
    ("Mo-Fr 08:00-12:00; Mo-Fr 13:00-18:00", "a later rule overrides Mo-Fr 08:00-12:00"),
    ("Mo-Fr 08:00-12:00; 13:00-18:00", "a later rule overrides Mo-Fr 08:00-12:00"),
    ("Mo-Fr 08:00-18:00; 24/7", "24/7 overrides all that stands before it"),
    ("PH Mo-Fr 08:00-18:00", "a blank between PH and a day"),
    ("Mo-Fr PH off", "a blank between PH and a day"),
    ("Mo-Fr 9:00-5:00", "9:00-5:00 ends the next morning; write 17:00"),
    ("Mo-Fr 12:00-06:00", "12:00-06:00 ends the next morning"),
    ("Mo-Fr 08:00-28:00", "a day ends at 24:00; 08:00-28:00 is 08:00-04:00 the next morning"),
    ("08:00-08:00", "08:00-08:00 ends when it begins; write 00:00-24:00"),
    ("8:00-08:00", "ends when it begins"),
    ("00:00-00:00", "ends when it begins"),
    ("Mo-Fr 08:00+", "an open end (+) is no end"),
    ("Mo-Fr 8:00-18:00 +", "an open end (+) is no end"),
    ("10:00-16:00/01:30", "a time that repeats (/)"),
    ("sunrise-20:00", "the sun is not known here"),
    ("Dawn-Dusk", "the sun is not known here"),
    ("Mo-Fr 08:00-18:00; SH off", "school holidays (SH) are not known here"),
    ("Mo-Fr 08:00-18:00 unknown", "unknown is not open"),
    ('Mo-Fr 08:00-18:00 "ask"', "a comment is no time"),
    ("Feb 30 08:00-10:00", "there is no Feb 30"),
    ("Feb 28-30 08:00-10:00", "there is no Feb 30"),
    ("Dec 24-Feb 31 08:00-10:00", "there is no Feb 31"),
    ("Dec 24-20 08:00-10:00", "Dec 24-20 runs backwards"),
    ("Dec 24-Dec 20 08:00-10:00", "Dec 24-Dec 20 runs backwards"),
    ("Mo\u2013Fr 08:00\u201318:00", "only plain letters, digits and signs; a dash is -"),
    ("Mo-Fr 08:00-18:00\n", "only plain letters, digits and signs"),
    ("Mo-Fr\t08:00-18:00", "only plain letters, digits and signs"),
    ("Mo 08:00-10:00," * 40, "longer than 300 characters"),
    ("off", "'off' is never open, from 2020 to 2080"),
    ("PH off", "is never open"),
    ("1999 08:00-10:00", "is never open"),
    ("2027 Feb 29 08:00-10:00", "is never open"),
    ("2027 Mar 01-2026 Feb 10 08:00-10:00", "is never open"),
    ("2027-2026 08:00-10:00", "inverted year ranges are ambiguous, do you mean '2026-2027'?"),
    ("Mon-Fri 08:00-18:00", "at character 3: days are Mo Tu We Th Fr Sa Su; write it like"),
    ("monday 08:00-18:00", "days are Mo Tu We Th Fr Sa Su"),
    ("daily 08:00-18:00", "days are Mo Tu We Th Fr Sa Su"),
    ("Mo-Fr 9am-5pm", "at character 7: hours run from 00:00 to 24:00"),
    ("Mo-Fr 9:00 am-5:00 pm", "hours run from 00:00 to 24:00"),
    ("Mo-Fr 8-18", "at character 7: times are 08:00-18:00"),
    ("Mo-Fr 08.00-18.00", "times are 08:00-18:00"),
    ("Mo-Fr 0800-1800", "times are 08:00-18:00"),
    ("Mo-Fr 08h-18h", "times are 08:00-18:00"),
    ("Mo-Fr 08:00", "at character 12: expected an end like -18:00"),
    ("Mo-Fr 08:00 to 18:00", "expected an end like -18:00"),
    ("Mo-Fr 08:00-18:60", "expected minutes up to 59"),
    ("Mo-Fr  08:00-18:00", "blanks stand alone"),
    ("Mo-Fr 08:00-18:00; ph off", "public holidays are PH"),
    ("Mo-Fr 08:00-18:00 except holidays", "public holidays are PH"),
    ("2026-12-24 08:00-10:00", "a date is 2027 Dec 24"),
    ("24.12.2026 08:00-10:00", "a date is 2027 Dec 24"),
    ("24 Dec 08:00-10:00", "a date is 2027 Dec 24"),
    ("08:00-18:00 Mo-Fr", 'at character 13: expected its end, ";", "off"; write it like "Mo-Fr'),
    ("Mo-Fr 08:00-18:00 Sa 09:00-12:00", 'at character 19: expected its end, ";", "off"'),
    ("Mo-Fr 24/7", "at character 7: expected"),
    ("Mo[6] 08:00-10:00", "expected a number from 1 to 5"),
    ("Di-Do 08:00-18:00", "at character 1: expected"),
    ("always", "at character 1: expected"),
]


@pytest.mark.parametrize(("text", "words"), MISREAD, ids=[repr(row[0][:30]) for row in MISREAD])
def test_what_would_be_misread_is_refused_in_one_line(text: str, words: str) -> None:
    with pytest.raises(BadSchedule) as refused:
        Schedule(text, BERLIN, "DE")
    message = str(refused.value)
    assert words in message
    assert message.isprintable()
    assert len(message) < 220
    assert refused.value.key == "when"


@pytest.mark.parametrize(
    "zone",
    [
        "",
        "Berlin",
        "europe/berlin",
        "Europe",
        "UTC+1",
        "+01:00",
        "../Europe/Berlin",
        "/etc/localtime",
        "right/Europe/Berlin",  # counts leap seconds
        "posix/Europe/Berlin",
        "localtime",  # another one on another host
        "posixrules",
        "Factory",
        "tzdata.zi",
        "Europe/Berlin\n",
        "Europe\0Berlin",
        "E" * 5000,
    ],
)
def test_what_is_no_time_zone(zone: str) -> None:
    with pytest.raises(BadSchedule, match="is no time zone of this host; write it like") as refused:
        Schedule("24/7", zone)
    assert refused.value.key == "timezone"
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("country", ["", "de", "Germany", "XX", "UK", "DE-BY", "DE\n"])
def test_what_is_no_country(country: str) -> None:
    with pytest.raises(BadSchedule, match="is no country; write it like DE") as refused:
        Schedule("Mo-Fr 08:00-18:00; PH off", BERLIN, country)
    assert refused.value.key == "country"


def test_public_holidays_need_a_country() -> None:
    with pytest.raises(BadSchedule, match="say whose public holidays") as refused:
        Schedule("Mo-Fr 08:00-18:00; PH off", BERLIN)
    assert refused.value.key == "country"


DAYS_AND_DATES = ["Mo", "Tu", "Fr", "PH", "SH", "Feb", "Dec", "2027", "29", "31", "week", "easter"]
HOURS = ["08:00", "18:00", "26:00", "24/7", "9am", "dawn", "08:00-18:00", "22:00-06:00"]
SIGNS = ["-", ",", ", ", ";", "; ", "||", "/", "+", "[1]", "[-1]", '"', ":", "(", ")", " ", "  "]
OTHERS = [
    "off",
    "open",
    "closed",
    "unknown",
    " +1 days",
    " -2 days",
    "\n",
    "\0",
    "\u2013",
    "Mon",
    "",
]
WORDS = st.lists(st.sampled_from(DAYS_AND_DATES + HOURS + SIGNS + OTHERS), max_size=9)


def refusal(text: str, zone: str = BERLIN, country: str | None = "DE") -> str:
    """Why it is refused; empty if it is not."""
    try:
        schedule = Schedule(text, zone, country)
    except BadSchedule as refused:
        return str(refused)
    assert schedule.spans(us("2020-01-01"), us("2020-01-02")) is not None
    return ""


@quick
@given(WORDS.map("".join) | WORDS.map(" ".join))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    assert refusal(text).isprintable()


@quick
@given(st.text(max_size=60), st.text(max_size=30), st.text(max_size=5))
def test_nor_any_zone_or_country(text: str, zone: str, country: str) -> None:
    assert refusal(text).isprintable()
    assert refusal("24/7", zone).isprintable()
    assert refusal("24/7", BERLIN, country).isprintable()


def test_when_it_opens_again_is_told_in_its_own_time() -> None:
    schedule = Schedule("Mo-Fr 08:00-18:00", BERLIN)
    assert schedule.opens_again(us("2026-11-27T19:00")) == "opens again Mon 08:00 Europe/Berlin"
    assert schedule.told(us("2026-11-27T19:00")) == "Fri 20:00 Europe/Berlin"
    later = Schedule("2027 Mar 01 08:00-18:00", BERLIN)
    assert later.opens_again(us("2026-11-27")) == "opens again 2027-03-01 08:00 Europe/Berlin"
    assert later.opens_again(us("2027-04-01")) == "does not open again"


def test_a_zone_with_a_long_name_is_told_by_its_offset() -> None:
    zone = "America/Argentina/ComodRivadavia"
    schedule = Schedule("Mo 08:00-18:00", zone)
    assert schedule.opens_again(us("2026-11-24")) == "opens again Mon 08:00 UTC-03:00"


@pytest.mark.parametrize("text", ["Mo 08:00-18:00", "2031 Mar 03 08:00-18:00"])
def test_it_is_told_in_so_few_words_that_a_reply_has_room_for_them(text: str) -> None:
    for zone in sorted(available_timezones()):
        if zone.startswith(("posix", "right", "localtime", "Factory")):
            continue
        told = Schedule(text, zone).opens_again(us("2026-11-24T12:00"))
        assert len(told) <= 45, zone
        assert told.isprintable()


def looked_for(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The moments for which a schedule evaluates its expression, from now on."""
    looks: list[int] = []
    look = Schedule._look

    def counted(schedule: Schedule, at_us: int) -> None:
        looks.append(at_us)
        look(schedule, at_us)

    monkeypatch.setattr(Schedule, "_look", counted)
    return looks


@pytest.mark.parametrize(
    ("text", "is_open"), [("2020-2026 Mo-Fr 08:00-18:00", False), ("Mo-Su 00:00-24:00", True)]
)
def test_that_nothing_changes_any_more_is_remembered(
    text: str, is_open: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = Schedule(text, BERLIN)
    at_us = us("2035-11-24T12:00")
    assert schedule.changes_at_us(at_us) is None
    looks = looked_for(monkeypatch)
    for second in range(10_000):
        assert schedule.changes_at_us(at_us + second * 1_000_000) is None
        assert schedule.is_open(at_us + second * 1_000_000) is is_open
    assert looks == []


def test_no_text_takes_long_to_be_judged() -> None:
    """Thousands of days are compared where a rule looks overridden, none up to the year 2080."""
    begin_s = time.process_time()
    Schedule("Mar-Oct 00:00-01:00; 01:30-00:00,00:00-02:00", BERLIN, "DE")
    assert time.process_time() - begin_s < 30


def test_what_is_remembered_is_not_told_of_other_times() -> None:
    schedule = Schedule("2030-2060 Mo-Fr 08:00-18:00", BERLIN)
    moments = [us(f"{year}-07-01T07:00") for year in (2061, 2026, 2040, 2061, 2031, 2026)]
    assert [schedule.is_open(at_us) for at_us in moments] == [
        False,
        False,
        False,
        False,
        True,
        False,
    ]
    assert schedule.changes_at_us(moments[0]) is None
    assert schedule.changes_at_us(moments[1]) == us("2030-01-01T08:00", BERLIN)


@pytest.mark.parametrize("at_us", [-(10**18), -1, 0, 1, us("9990-01-01"), 253_402_300_799_999_999])
def test_no_time_is_too_early_or_too_late(at_us: int) -> None:
    for text in ("24/7", "Mo-Fr 08:00-18:00; PH off", "2027 Dec 31 23:00-24:00", "9000+ Mo"):
        if text.startswith("9"):
            with pytest.raises(BadSchedule, match="never open"):
                Schedule(text, BERLIN, "DE")
            continue
        schedule = Schedule(text, BERLIN, "DE")
        assert schedule.is_open(at_us) in (True, False)
        change_us = schedule.changes_at_us(at_us)
        assert change_us is None or change_us > at_us
        assert schedule.opens_again(at_us)


def test_an_answer_that_is_known_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = Schedule("Mo-Fr 08:00-18:00; PH off", BERLIN, "DE")
    looks = looked_for(monkeypatch)
    for at_us in range(us("2026-11-24T12:00"), us("2026-11-24T13:00"), 1_000_000):
        assert schedule.is_open(at_us)
    assert len(looks) == 1


def test_two_that_say_the_same_are_equal() -> None:
    one, other = Schedule("24/7", BERLIN), Schedule("24/7", BERLIN)
    assert one == other
    assert len({one, other}) == 1
    assert one != Schedule("24/7", "UTC")
    assert one != Schedule("24/7", BERLIN, "DE")
    assert one != "24/7"
    assert str(Schedule("24/7", BERLIN, "DE")) == "24/7 Europe/Berlin (DE)"


def test_the_clock_of_utc_needs_no_database() -> None:
    assert Schedule("Mo 08:00-09:00").told(us("2026-11-23T08:00")) == "Mon 08:00 UTC"
    assert Schedule("Mo 08:00-09:00").timezone == "UTC"


def test_the_library_alone_would_keep_a_hole_an_hour_too_long() -> None:
    """Why the clocks are reckoned with here: if this fails, the library has learned it."""
    library = OpeningHours("01:00-02:30", timezone=ZoneInfo(BERLIN))
    at = datetime(2027, 10, 31, 1, 30, tzinfo=ZoneInfo(BERLIN))
    closes = library.next_change(at)
    assert closes is not None
    late = closes.astimezone(UTC) - at.astimezone(UTC)
    assert late == timedelta(hours=2)
    found = Schedule("01:00-02:30", BERLIN).changes_at_us(round(at.timestamp()) * 1_000_000)
    assert found == round(at.timestamp()) * 1_000_000 + HOUR_US

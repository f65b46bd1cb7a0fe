"""Reading the text of `when`: OpenStreetMap's opening_hours, less what is easily misread.

The language allows more than a rule needs, and some of it means something else than whoever wrote
it believes: `Mo, Tu 08:00-18:00` is open all Monday. What is not plain is refused, with what to
write instead. `Schedule` evaluates what is left. spa-policy(5), "Time".
"""

import re
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from typing import Final

from opening_hours import OpeningHours, State

from keys.text import printable

FIRST_DAY: Final = datetime(2020, 1, 1)  # wall time, in whatever zone
HORIZON_DAYS: Final = 60 * 366
_COMPARED_UNTIL: Final = datetime(2032, 1, 1)  # wall time, in whatever zone
_MAX_TEXT: Final = 300
_DAY: Final = 24 * 60
_NOON: Final = 12 * 60

_DAYS: Final = "Mo|Tu|We|Th|Fr|Sa|Su"
_EXAMPLE: Final = '"Mo-Fr 08:00-18:00; PH off"'
_TRAPS: Final = (
    (re.compile(r"[^ -~]"), "only plain letters, digits and signs; a dash is -"),
    (re.compile(r"^\W*$"), "it says nothing"),
    (re.compile(r'"'), "a comment is no time; take it out"),
    (re.compile(r"\bunknown\b", re.I), "unknown is not open; take it out"),
    (re.compile(r"\bSH\b"), "school holidays (SH) are not known here"),
    (re.compile(r"dawn|sunrise|sunset|dusk", re.I), "the sun is not known here; write times"),
    (re.compile(r":\d\d\s*\+"), "an open end (+) is no end; write one"),
    (re.compile(r":\d\d\s*/"), "a time that repeats (/) is not known here"),
    (
        re.compile(rf"\bPH ({_DAYS})|\b({_DAYS})(\[[^]]*\])? PH\b", re.I),
        "a blank between PH and a day is read as a comma; write a comma",
    ),
    (re.compile(r"[;,|].*24/7"), "24/7 overrides all that stands before it"),
)
# What nobody could parse, but whose cause is plain.
_SLIPS: Final = (
    (re.compile(r"\d\s*[ap]\.?m\b", re.I), "hours run from 00:00 to 24:00"),
    (
        re.compile(r"\b(mon|tue|wed|thu|fri|sat|sun)[a-z]*\b|\bdaily\b|\bweekdays?\b", re.I),
        "days are Mo Tu We Th Fr Sa Su",
    ),
    (re.compile(r"\bph\b|\bholidays?\b", re.I), "public holidays are PH, as in PH off"),
    (re.compile(r"  "), "blanks stand alone"),
    (re.compile(r"\d{4}-\d\d-\d\d|\d\.\d+\.\d|\d\s+[A-Z][a-z]{2}\b"), "a date is 2027 Dec 24"),
    (re.compile(r"\b\d{1,2}\s*-\s*\d{1,2}\b(?!:)|\d\.\d|\dh|\d{4}-\d{4}"), "times are 08:00-18:00"),
)
# The names of the parser's rules, in words. Those that are not here help nobody.
_RULES: Final = {
    "EOI": "its end",
    "any_rule_separator": '";"',
    "rules_modifier": '"off"',
    "timespan": "a time like 08:00-18:00",
    "small_range_selectors": "days or times",
    "timespan_plus": "an end like -18:00",
    "extended_time": "a time up to 24:00",
    "minute": "minutes up to 59",
    "hour": "hours up to 23",
    "holiday": '"PH"',
    "week_selector": "a week",
    "monthday_range": "a month",
    "month": "a month",
    "daynum": "a day of the month",
    "wday": "a day like Mo",
    "nth_entry": "a number from 1 to 5",
    "weeknum": "a week from 1 to 53",
    "year": "a year",
}
_TIME: Final = re.compile(r"\d:\d\d")
_SPAN: Final = re.compile(r"(\d?\d):(\d\d)\s*-\s*(\d?\d):(\d\d)")
_RULE: Final = re.compile(r"\s*(?:;|\|\||,\s)\s*")
_MONTH: Final = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
_SHORT_MONTHS: Final = {"feb": 29, "apr": 30, "jun": 30, "sep": 30, "nov": 30}
_DATE: Final = r"\s*(\d{1,2})(?!\d|:)"
_DATES: Final = re.compile(rf"({_MONTH}){_DATE}(?:\s*-\s*({_MONTH})?{_DATE})?", re.I)
_POSITION: Final = re.compile(r"--> \d+:(\d+)")
_EXPECTED: Final = re.compile(r"= expected (.*)")


class BadSchedule(ValueError):
    """A schedule that cannot be. The message says what was expected, in one line.

    `key` is the key of the rule that is wrong: when, timezone or country.
    """

    def __init__(self, problem: str, key: str = "when") -> None:
        super().__init__(problem)
        self.key = key


@lru_cache(maxsize=1024)
def read_hours(text: str, country: str | None) -> OpeningHours:
    """The expression, to be asked in wall time without a zone. Raises BadSchedule.

    What would next change in more than HORIZON_DAYS counts as never changing.
    """
    why = next(_misread(text), None)
    if why is not None:
        raise BadSchedule(f"{_shown(text)}: {why}")
    if country is None and "PH" in text:
        raise BadSchedule('say whose public holidays (PH) these are: country = "DE"', "country")
    if country is not None:
        _check_country(country)
    hours = _parsed(text, country)
    if not _is_ever_open(hours):
        last_year = FIRST_DAY.year + HORIZON_DAYS // 366
        raise BadSchedule(f"{_shown(text)} is never open, from {FIRST_DAY.year} to {last_year}")
    _refuse_overridden(text, hours, country)
    return hours


def _misread(text: str) -> Iterator[str]:
    """Why it is refused before anybody parses it, if it is."""
    if len(text) > _MAX_TEXT:
        yield f"longer than {_MAX_TEXT} characters; make two rules of it"
    for trap, why in _TRAPS:
        if trap.search(text):
            yield why
    yield from _bad_spans(text)
    yield from _bad_dates(text)
    yield from _whole_days(text)


def _bad_spans(text: str) -> Iterator[str]:
    for span in _SPAN.finditer(text):
        hour, minute, end_hour, end_minute = map(int, span.groups())
        begin, end = hour * 60 + minute, end_hour * 60 + end_minute
        if end > _DAY:
            early = f"{end_hour - 24:02}:{span[4]}"
            yield f"a day ends at 24:00; {span[0]} is {span[1]}:{span[2]}-{early} the next morning"
        if begin == end:
            yield f"{span[0]} ends when it begins; write 00:00-24:00 for whole days"
        # From one morning into the next: it is five in the afternoon that was meant.
        if 0 < end < begin <= _NOON:
            yield f"{span[0]} ends the next morning; write 17:00 for five in the afternoon"


def _bad_dates(text: str) -> Iterator[str]:
    for found in _DATES.finditer(text):
        month, day, last_month, last_day = found.groups()
        last_month = last_month or month
        for of_month, of_day in ((month, day), (last_month, last_day or day)):
            if not 1 <= int(of_day) <= _SHORT_MONTHS.get(of_month.lower(), 31):
                yield f"there is no {of_month} {of_day}"
        if last_day and last_month.lower() == month.lower() and int(last_day) < int(day):
            yield f"{found[0]} runs backwards"


def _whole_days(text: str) -> Iterator[str]:
    """A rule that forgot its times is open all day, which shows only beside rules with times."""
    rules, signs = _RULE.split(text), _RULE.findall(text)
    has_times = _TIME.search(text)
    for rule, sign in zip(rules, [*signs, ""], strict=True):
        if _TIME.search(rule) or rule == "24/7" or re.search(r"\b(off|closed)$", rule, re.I):
            continue
        if not rule:
            yield "a rule between separators is missing"
        elif sign.startswith(","):
            yield f"{rule} would be open all day; write a list without blanks, as in Mo,We"
        elif has_times:
            yield f"{rule} would be open all day; write its times, or off"


def _check_country(country: str) -> None:
    try:
        OpeningHours("24/7", country=country)
    except Exception:  # its stubs name no errors
        raise BadSchedule(f"{_shown(country)} is no country; write it like DE", "country") from None


def _parsed(text: str, country: str | None) -> OpeningHours:
    try:
        return OpeningHours(text, country=country, max_interval_days=HORIZON_DAYS)
    except Exception as error:  # its stubs name no errors; whatever it is, this is no schedule
        problem = _problem(text, printable(str(error).replace("\n", " ")))
    raise BadSchedule(f"{_shown(text)}: {problem}")


def _problem(text: str, message: str) -> str:
    """The parser's message, which draws a picture, in a few words."""
    position, expected = _POSITION.search(message), _EXPECTED.search(message)
    if position is None:
        problem = message.rpartition("expression: ")[2]
        return problem[:1].lower() + problem[1:]
    names = re.split(r", or |, | or ", expected[1]) if expected else []
    words = [_RULES[name] for name in names if name in _RULES][:4]
    slip = next((why for wrong, why in _SLIPS if wrong.search(text)), None)
    what = slip or (f"expected {', '.join(words)}" if words else "not understood")
    return f"at character {position[1]}: {what}; write it like {_EXAMPLE}"


def _is_ever_open(hours: OpeningHours) -> bool:
    return hours.is_open(FIRST_DAY) or hours.next_change(FIRST_DAY) is not None


def _refuse_overridden(text: str, hours: OpeningHours, country: str | None) -> None:
    """A rule replaces what the ones before it say of its days: one that is left with nothing was
    written by someone who did not know."""
    rules = text.split(";")
    for index, rule in enumerate(rules[:-1]):
        others = _parsed(";".join(rules[:index] + rules[index + 1 :]).strip(), country)
        if _is_same(hours, others) and _is_contradicted(rule.strip(), hours, country):
            raise BadSchedule(
                f"{_shown(text)}: a later rule overrides {rule.strip()}; put exceptions last, "
                "and several times of a day in one rule, 08:00-12:00,13:00-18:00"
            )


def _is_same(one: OpeningHours, other: OpeningHours) -> bool:
    pairs = zip(
        one.intervals(FIRST_DAY, _COMPARED_UNTIL),
        other.intervals(FIRST_DAY, _COMPARED_UNTIL),
        strict=False,  # what is equal up to the last interval of both ends there
    )
    return all(of_one == of_other for of_one, of_other in pairs)


def _is_contradicted(rule: str, hours: OpeningHours, country: str | None) -> bool:
    """Whether the schedule as a whole ever says something else than this rule of it."""
    selector = re.sub(r"\s*\b(off|closed)$", "", rule, flags=re.I)
    says_open = selector == rule
    alone = _parsed(selector or "24/7", country)
    return any(
        (state == State.OPEN) is not says_open
        for begin, end, about, _ in alone.intervals(FIRST_DAY, _COMPARED_UNTIL)
        if about == State.OPEN
        for _, _, state, _ in hours.intervals(begin, end)
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")

"""The watcher: what it tells of, what it does not, and what it does not tell twice."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spa_server.anomaly.finding import Anomaly, Kind, record_of
from spa_server.anomaly.settings import Settings
from spa_server.anomaly.watcher import Watcher
from spa_server.audit.record import Event, Record
from tests.anomaly_life import (
    AWAY,
    HOME,
    MINUTE_US,
    NIGHT,
    OFFICE,
    at,
    denial,
    familiar,
    knock,
    refusal,
    see,
    weeks,
    working_day,
)

TUESDAY = 43


def kinds(anomaly: Anomaly) -> set[Kind]:
    return {sign.kind for sign in anomaly.signs}


class TestWhatIsTold:
    def test_a_new_network_at_night_once_the_owner_comes_to_work(self) -> None:
        watcher = familiar()
        assert see(watcher, weeks(42, 43)) == []
        assert see(watcher, [knock(at(TUESDAY, NIGHT), AWAY)]) == [], "a journey may begin so"
        told = see(watcher, working_day(TUESDAY))
        assert len(told) == 1
        assert {Kind.NEW_NETWORK, Kind.TWO_PLACES, Kind.UNUSUAL_HOUR} <= kinds(told[0])
        assert (told[0].identity, told[0].key_id) == ("alice", "key-alice")
        assert "first knock from 198.51.100.0/24; 248 knocks in " in told[0].reason
        assert "came from 2 other networks" in told[0].reason
        assert "Tuesday 02 h UTC; 0 of " in told[0].reason

    def test_a_journey_is_nothing_to_tell_of(self) -> None:
        watcher = familiar()
        journey = [knock(at(day, hour), AWAY) for day in (42, 43, 44) for hour in (8.5, 10, 15)]
        assert see(watcher, journey) == []

    def test_a_job_s_key_used_from_elsewhere(self) -> None:
        watcher = familiar()
        told = see(watcher, [knock(at(42, 0.2), AWAY, "tcp/443", who="job")])
        told += see(watcher, [knock(at(42, 0.3), "10.9.0.4", "tcp/443", who="job")])
        assert [one.identity for one in told] == ["job"]
        assert told[0].name is Kind.NEW_NETWORK

    def test_several_new_services_in_a_row(self) -> None:
        watcher = familiar()
        ports = ("tcp/3306", "tcp/6379", "tcp/9200", "tcp/8443")
        told = see(
            watcher, [knock(at(42, 9) + n * MINUTE_US, access=p) for n, p in enumerate(ports)]
        )
        assert [one.name for one in told] == [Kind.NEW_SERVICE]
        assert "knocks were for 2 others: tcp/22, tcp/5432" in told[0].reason
        assert see(familiar(), [knock(at(42, 9), access="tcp/3306")]) == [], "one is no matter"

    def test_services_asked_for_in_vain_count_too(self) -> None:
        told = see(
            familiar(),
            [
                refusal(at(42, 9) + n * MINUTE_US, "no role allows it", access=f"tcp/{n}")
                for n in range(3000, 3005)
            ],
        )
        assert told[0].name is Kind.NEW_SERVICE
        assert "asked for the first time for tcp/3000, tcp/3001" in told[0].reason

    @pytest.mark.parametrize("reason", ["replayed", "not-authentic", "bad-signature"])
    def test_a_burst_of_refusals_that_prove_no_key(self, reason: str) -> None:
        burst = [refusal(at(42, 9) + n * MINUTE_US, reason, AWAY) for n in range(8)]
        told = see(familiar(), burst)
        assert [one.name for one in told] == [Kind.REFUSALS]
        assert f"refused within an hour, the last {reason}" in told[0].reason
        assert "did not prove the key" in told[0].reason
        assert see(familiar(), burst[:2]) == [], "networks duplicate packets"

    def test_a_count_of_further_refusals_names_the_key_only(self) -> None:
        further = Record(
            Event.KNOCK_REFUSED,
            at(42, 9),
            key_id="key-alice",
            source=AWAY,
            reason="not-authentic",
            detail={"further": 50},
        )
        told = see(familiar(), [further])
        assert [(one.identity, one.name) for one in told] == [("alice", Kind.REFUSALS)]

    def test_a_wrong_clock_is_nobody_s_intrusion(self) -> None:
        burst = [refusal(at(42, 9) + n * MINUTE_US, "stale") for n in range(20)]
        assert see(familiar(), burst) == []

    def test_a_ledger_that_fails_is_not_the_key_s_fault(self) -> None:
        burst = [refusal(at(42, 9) + n * MINUTE_US, "unavailable") for n in range(50)]
        assert see(familiar(), burst) == []

    def test_a_key_that_slept_for_long(self) -> None:
        watcher = familiar()
        assert see(watcher, weeks(42, 102)) == []
        told = see(watcher, [knock(at(101, 10), "10.9.0.4", "tcp/443", who="job")])
        assert [one.name for one in told] == [Kind.WOKEN]
        assert "not heard for 59 days" in told[0].reason

    def test_a_key_whose_owner_had_a_holiday(self) -> None:
        watcher = familiar()
        assert see(watcher, weeks(42, 56, who="bob")) == []
        assert see(watcher, weeks(56, 57)) == []

    def test_a_key_that_only_the_daemon_did_not_hear(self) -> None:
        """When nobody was heard, nobody slept."""
        watcher = familiar()
        assert see(watcher, weeks(42 + 98, 42 + 105)) == []

    def test_two_places_by_turns(self) -> None:
        watcher = familiar()
        turns = [knock(at(42, 9) + n * 9 * MINUTE_US, (OFFICE, AWAY)[n % 2]) for n in range(6)]
        told = see(watcher, turns)
        assert [one.name for one in told] == [Kind.TWO_PLACES]
        assert "9 min after" in told[0].reason
        assert "of 31 days it moved like that" in told[0].reason

    def test_a_tunnel_that_many_hop_through_is_no_place(self) -> None:
        """The same turns, through a network that colleagues hop through every day."""
        watcher = Watcher()
        people = [f"person-{n}" for n in range(6)]
        records = []
        for number, who in enumerate(people):
            home = f"203.0.{number}.9"
            for day in (day for day in range(42) if day % 7 < 5):
                for n in range(8):
                    source = home if n % 2 else "10.200.0.5"
                    records.append(knock(at(day, 8 + n), source, who=who))
        assert see(watcher, sorted(records, key=lambda one: one.at_us)) == []
        see(watcher, weeks(0, 42))
        turns = [
            knock(at(42, 9) + n * 9 * MINUTE_US, (OFFICE, "10.200.0.9")[n % 2]) for n in range(6)
        ]
        assert see(watcher, turns) == []

    def test_many_more_knocks_than_usual(self) -> None:
        told = see(familiar(), [knock(at(42, 9) + n * MINUTE_US // 2) for n in range(120)])
        assert [one.name for one in told] == [Kind.RATE]
        assert "knocks within this hour; usually up to" in told[0].reason

    def test_usual_numbers_are_a_key_s_own(self) -> None:
        watcher = Watcher()
        busy = [
            knock(at(day, 9) + n * MINUTE_US // 2)
            for day in range(42)
            if day % 7 < 5
            for n in range(100)
        ]
        assert see(watcher, busy) == []
        assert see(watcher, [knock(at(42, 9) + n * MINUTE_US // 2) for n in range(120)]) == []


class TestWhatIsNotToldTwice:
    def test_a_kind_is_told_once_in_its_quiet_time(self) -> None:
        watcher = familiar()
        burst = [refusal(at(42, 9) + n * MINUTE_US, "replayed", AWAY) for n in range(8)]
        assert len(see(watcher, burst)) == 1
        again = [refusal(at(42, 11) + n * MINUTE_US, "replayed", AWAY) for n in range(40)]
        assert see(watcher, again) == []
        later = [refusal(at(43, 11) + n * MINUTE_US, "replayed", AWAY) for n in range(40)]
        assert len(see(watcher, later)) == 1

    def test_what_happens_every_day_becomes_usual(self) -> None:
        watcher = familiar()
        told = []
        for day in range(42, 56):
            burst = [refusal(at(day, 9) + n * MINUTE_US, "replayed", AWAY) for n in range(8)]
            told.append(len(see(watcher, burst)))
        assert sum(told) <= 6
        assert told[-5:] == [0] * 5

    def test_a_network_seen_on_several_days_is_known(self) -> None:
        watcher = familiar()
        see(watcher, [knock(at(day, 9), AWAY) for day in (42, 43, 44, 45)])
        turns = [knock(at(49, 9) + n * 9 * MINUTE_US, (OFFICE, AWAY)[n % 2]) for n in range(6)]
        told = [sign for one in see(watcher, turns) for sign in one.signs]
        assert Kind.NEW_NETWORK not in {sign.kind for sign in told}

    def test_a_new_key_is_not_judged(self) -> None:
        watcher = familiar()
        wild = [
            knock(at(40 + n, 3 * n), f"198.51.{n}.4", f"tcp/{n}", who="carol") for n in range(6)
        ]
        assert see(watcher, wild) == []

    def test_a_new_key_of_a_known_person_is_judged_by_the_person(self) -> None:
        watcher = familiar()
        assert see(watcher, weeks(42, 44, key="new-laptop")) == []
        see(watcher, [knock(at(44, NIGHT), AWAY, key="new-laptop")])
        told = see(watcher, working_day(44, key="new-laptop"))
        assert len(told) == 1
        assert told[0].key_id == "new-laptop"


class TestWhatExplainsIt:
    def test_whoever_was_given_a_role_may_use_it(self) -> None:
        watcher = familiar()
        role = Record(Event.KEYS_CHANGED, at(41), identity="alice", reason="role.granted")
        ports = ("tcp/3306", "tcp/6379", "tcp/9200", "tcp/8443")
        knocks = [knock(at(42, 9) + n * MINUTE_US, access=p) for n, p in enumerate(ports)]
        assert see(watcher, [role, *knocks]) == []

    def test_a_service_that_many_begin_to_use(self) -> None:
        people = [f"person-{n}" for n in range(8)]
        watcher = Watcher()
        everyone = [one for who in people for one in weeks(0, 42, who=who)]
        see(watcher, sorted(everyone, key=lambda one: one.at_us))
        see(watcher, [knock(at(42, 9), access="tcp/3000", who=who) for who in people[:6]])
        stranger = knock(at(42, 10), AWAY, "tcp/3000", who=people[7])
        ordinary = knock(at(42, 10), AWAY, "tcp/3001", who=people[6])
        assert see(watcher, [stranger]) == []
        told = see(watcher, [ordinary])
        assert len(told) == 1
        assert "first use of tcp/3001" in told[0].reason

    def test_after_the_clock_was_set_hours_and_silences_mean_nothing(self) -> None:
        watcher = familiar()
        step = Record(Event.CLOCK_SET, at(142), detail={"by_s": 100 * 86400.0})
        job = knock(at(142, 0.5), "10.9.0.4", "tcp/443", who="job")
        assert see(watcher, [step, job, knock(at(142, 1))]) == []

    def test_a_clock_that_goes_back_makes_no_noise(self) -> None:
        watcher = familiar()
        assert see(watcher, weeks(14, 21)) == []


class TestWhoTeachesIt:
    def test_nobody_but_the_holder_of_a_key(self) -> None:
        """Refusals that prove no key change no baseline, whatever they say."""
        watcher, other = familiar(), familiar()
        noise = [
            refusal(at(42, h) + n, reason, f"198.51.{n}.3", f"tcp/{n}")
            for h in range(24)
            for n, reason in enumerate(("replayed", "not-authentic", "bad-signature", "malformed"))
        ]
        see(watcher, noise)
        assert profiles(watcher) == profiles(other)

    def test_a_revoked_key_is_forgotten(self) -> None:
        watcher = familiar()
        gone = Record(Event.KEYS_CHANGED, at(42), identity="bob", key_id="key-bob")
        see(watcher, [msgspec.structs.replace(gone, reason="key.revoked")])
        assert "key/key-bob" not in profiles(watcher)
        assert dict(all_states(watcher))["key/key-bob"] is None


def all_states(watcher: Watcher) -> list[tuple[str, bytes | None]]:
    states = []
    while some := watcher.unsaved(7):
        states += some
    return states


def profiles(watcher: Watcher) -> dict[str, bytes | None]:
    states = all_states(watcher)
    watcher.put_back(name for name, _ in states)
    return {name: state for name, state in states if state and name.startswith(("key/", "who/"))}


def eventful(first: int, until: int) -> list[Record]:
    """Weeks in which some things happen to alice and bob, and a source tries ports."""
    records = weeks(0, 60) + weeks(0, 60, who="bob")
    for day in (24, 38, 52):
        records += [knock(at(day, NIGHT), f"198.51.{day}.3", f"tcp/{3000 + day}")]
        records += [knock(at(day, 9.01), HOME, who="bob", key="phone")]
        records += [refusal(at(day, 12) + n * MINUTE_US, "replayed", AWAY) for n in range(day // 4)]
    records += [denial(at(32.9, n / 9), "198.51.7.7", f"tcp/{n}") for n in range(18)]
    records += [knock(at(44, 9) + n * MINUTE_US // 3, who="bob") for n in range(90)]
    records += [knock(at(45, 9) + n * MINUTE_US, access=f"tcp/{900 + n}") for n in range(2)]
    ordered = sorted(records, key=lambda one: one.at_us)
    return [one for one in ordered if at(first) <= one.at_us < at(until)]


class TestWhatIsKept:
    def test_a_watcher_that_was_saved_goes_on_as_if_nothing_had_been(self) -> None:
        whole, first, second = Watcher(), Watcher(), Watcher()
        before, after = eventful(0, 33), eventful(33, 60)
        see(whole, before)
        see(first, before)
        states = [(name, state) for name, state in all_states(first) if state is not None]
        assert second.restore(states) == 0
        told = see(whole, after)
        assert len(told) >= 3
        assert see(second, after) == told

    def test_with_few_at_hand_it_says_the_same(self) -> None:
        told = see(Watcher(), eventful(0, 60))
        assert see(Watcher(at_hand=1), eventful(0, 60)) == told

    def test_what_is_not_sound_is_left_out(self) -> None:
        watcher = familiar()
        states = [(name, state or b"") for name, state in all_states(watcher)]
        spoiled = [("key/key-bob", b"\xc1"), ("case/x", b""), ("new/kind", b"\x90")]
        kept = [one for one in states if one[0] != "key/key-bob"]
        fresh = Watcher()
        assert fresh.restore([*spoiled, *kept]) == 3
        assert see(fresh, weeks(42, 49)) == []

    def test_what_could_not_be_saved_is_saved_later(self) -> None:
        watcher = familiar()
        states = all_states(watcher)
        assert watcher.unsaved(100) == []
        watcher.put_back(name for name, _ in states)
        assert sorted(all_states(watcher)) == sorted(states)


def test_an_anomaly_is_a_line_of_the_record() -> None:
    burst = [refusal(at(42, 9) + n * MINUTE_US, "replayed", AWAY) for n in range(8)]
    anomaly = see(familiar(), burst)[0]
    record = record_of(anomaly, Event.KNOCK_REFUSED)
    assert (record.identity, record.key_id, record.source) == ("alice", "key-alice", AWAY)
    assert record.reason == anomaly.reason
    detail = msgspec.json.decode(msgspec.json.encode(record.detail))
    assert detail["kind"] == "refusals"
    assert 0.5 <= detail["score"] <= 1
    assert detail["signs"]["refusals"]["reason"] == "replayed"


def test_a_higher_threshold_tells_less() -> None:
    told = [see(Watcher(Settings(threshold=one)), eventful(0, 60)) for one in (0.2, 0.5, 0.95)]
    assert len(told[0]) >= len(told[1]) > len(told[2]) > 0
    assert all(one.score >= 0.95 for one in told[2])


TEXTS = st.one_of(
    st.none(), st.sampled_from(["", "alice", "10.1.1.7", "2001:db8::1", "tcp/22", ", "])
)
RECORDS = st.builds(
    Record,
    st.sampled_from(list(Event)),
    st.integers(-(2**40), 2**55),
    identity=TEXTS,
    key_id=TEXTS,
    source=st.one_of(TEXTS, st.text(max_size=12), st.ip_addresses().map(str)),
    target=TEXTS,
    access=st.one_of(TEXTS, st.text(max_size=12)),
    reason=st.one_of(TEXTS, st.sampled_from(["replayed", "stale", "no role allows it"])),
    detail=st.dictionaries(
        st.sampled_from(["further", "by_s", "count"]),
        st.one_of(st.none(), st.integers(-5, 10**9), st.text(max_size=3), st.floats()),
        max_size=2,
    ),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(RECORDS, max_size=60))
def test_nothing_that_a_record_holds_makes_it_raise(records: list[Record]) -> None:
    watcher = Watcher(at_hand=2)
    told = see(watcher, records)
    states = [(name, state) for name, state in all_states(watcher) if state is not None]
    assert Watcher().restore(states) == 0
    assert all(0 <= one.score <= 1 and one.reason for one in told)

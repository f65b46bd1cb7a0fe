"""The doorkeeper: one test for each reason, and the order of the checks."""

import secrets
from dataclasses import replace

from spa_protocol.knock import Close
from spa_protocol.reason import Reason
from spa_server.capture.datagram import Datagram
from spa_server.doorkeeper import Moment, Verdict, judge
from spa_server.replay import ReplayWindow
from tests.world import NOW_US, SECOND, SSH, World, datagram, knock_at


def verdict_on(world: World, one: Datagram, now_us: int = NOW_US, floor_us: int = 0) -> Verdict:
    return judge(one, Moment(now_us, floor_us), world.admission.find, ReplayWindow())


def test_a_knock_is_accepted_and_to_be_burned() -> None:
    world = World()
    alice = world.enrol()
    verdict = verdict_on(world, world.datagram(alice, knock_at()))
    assert verdict.reason is None
    assert verdict.knock is not None
    assert verdict.knock.request == knock_at()
    assert verdict.burn is not None
    assert verdict.burn.key_id == alice.public.key_id


def test_malformed() -> None:
    world = World()
    payload = world.payload(world.enrol(), knock_at())
    for torn in (b"", payload[:-1], payload + b"\0"):
        verdict = verdict_on(world, datagram(torn))
        assert (verdict.reason, verdict.burn) == (Reason.MALFORMED, None)


def test_unknown_key() -> None:
    world = World()
    stranger = World().enrol()
    verdict = verdict_on(world, world.datagram(stranger, knock_at()))
    assert (verdict.reason, verdict.sender, verdict.burn) == (Reason.UNKNOWN_KEY, None, None)


def test_not_authentic_names_the_key_whose_tag_was_used() -> None:
    world = World()
    alice = world.enrol()
    payload = world.payload(alice, knock_at())
    verdict = verdict_on(world, datagram(payload[:8] + secrets.token_bytes(232)))
    assert verdict.reason is Reason.NOT_AUTHENTIC
    assert verdict.sender is not None
    assert verdict.sender.public.key_id == alice.public.key_id
    assert verdict.burn is None


def test_bad_signature_burns_nothing() -> None:
    """Whoever stole the agreement key alone moves nothing, not even the replay window."""
    world = World()
    alice, mallory = world.enrol(), World().enrol()
    forged = replace(alice, _seed=mallory._seed)
    verdict = verdict_on(world, world.datagram(forged, knock_at()))
    assert (verdict.reason, verdict.knock, verdict.burn) == (Reason.BAD_SIGNATURE, None, None)


def test_stale_and_ahead_are_burned_and_may_be_told() -> None:
    world = World()
    alice = world.enrol()
    for by_s, reason in ((-31, Reason.STALE), (31, Reason.AHEAD)):
        verdict = verdict_on(world, world.datagram(alice, knock_at(NOW_US + by_s * SECOND)))
        assert verdict.reason is reason
        assert verdict.knock is not None
        assert verdict.burn is not None


def test_replayed_comes_before_the_signature_and_before_the_clock() -> None:
    world = World()
    alice = world.enrol()
    late = world.datagram(alice, knock_at(NOW_US - 60 * SECOND))
    window = ReplayWindow()
    first = judge(late, Moment(NOW_US), world.admission.find, window)
    assert first.burn is not None
    window.add(first.burn)
    again = judge(late, Moment(NOW_US), world.admission.find, window)
    assert (again.reason, again.knock, again.burn) == (Reason.REPLAYED, None, None)


def test_other_ports_make_no_other_knock() -> None:
    world = World()
    payload = world.payload(world.enrol(), knock_at())
    window = ReplayWindow()
    first = judge(datagram(payload), Moment(NOW_US), world.admission.find, window)
    assert first.burn is not None
    window.add(first.burn)
    other = datagram(payload, source_port=1, target_port=2)
    again = judge(other, Moment(NOW_US), world.admission.find, window)
    assert again.reason is Reason.REPLAYED


def test_under_the_floor_of_a_boot_everything_is_replayed() -> None:
    world = World()
    one = world.datagram(world.enrol(), knock_at())
    assert verdict_on(world, one, floor_us=NOW_US).reason is Reason.REPLAYED
    assert verdict_on(world, one, floor_us=NOW_US - 1).reason is None


def test_judging_changes_nothing() -> None:
    world = World()
    one = world.datagram(world.enrol(), Close(NOW_US, (SSH,)))
    window = ReplayWindow()
    verdicts = [judge(one, Moment(NOW_US), world.admission.find, window) for _ in range(3)]
    assert verdicts[0] == verdicts[1] == verdicts[2]
    assert len(window) == 0

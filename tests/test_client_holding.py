"""What is held, against a clock that the test turns and a server that says what it is told."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import pytest

from keys import identity
from keys.trouble import ExitCode, Trouble
from spa_client import holding
from spa_client.carriers import Answer, Result, Silence
from spa_client.compose import Composer, Datagram, Wish
from spa_client.holding import Clocks, Holder
from spa_client.outcome import Story
from spa_client.resolve import Target
from spa_protocol.layout import Address
from spa_protocol.reason import Code, Status
from spa_protocol.reply import Outcome, Reply
from tests.test_client_fake_server import SSH

HERE, THERE = ip_address("10.0.0.9"), ip_address("10.0.0.77")
TARGET = Target(ip_address("10.0.0.5"), 62201)
LIFETIME_S = 30
Say = Callable[[], Result]


def granted(
    source: Address = HERE, lifetime_s: int = LIFETIME_S, *, declared: bool = False
) -> Answer:
    reply = Reply(Status.GRANTED, 0, source, None, (Outcome(SSH, Code.GRANTED, lifetime_s),))
    return Answer(TARGET, Datagram(b"", b"", 0, source if declared else None), reply, 0)


def refused(code: Code, status: Status = Status.REFUSED) -> Answer:
    reply = Reply(status, 0, HERE, None, (Outcome(SSH, code),))
    return Answer(TARGET, Datagram(b"", b"", 0, None), reply, 0)


def silence() -> Silence:
    return Silence(TARGET, 4)


@dataclass
class World:
    """A host, this machine's address and both clocks; `says` is how the server answers."""

    now_s: float = 1000.0
    slept_s: float = 0.0
    own: Address | None = HERE
    says: Callable[[], Result] = granted
    resolves: bool = True
    knocks: list[float] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    shown: list[float] = field(default_factory=list)
    closed: list[list[Answer]] = field(default_factory=list)
    end_s: float = 0.0
    at: dict[float, Callable[[], Any]] = field(default_factory=dict)

    def holder(self) -> Holder:
        return Holder(self.aim, self, Clocks(lambda: self.now_s, lambda: self.now_s + self.slept_s))

    def aim(self) -> Any:
        if not self.resolves:
            raise Trouble("cannot resolve db1", "check the name and the network")
        return _Knocking(self)

    def keep(self, holder: Holder, seconds: float) -> Story | None:
        self.end_s = self.now_s + seconds
        return holder.keep(self)

    # The display

    def tell(self, line: str) -> None:
        self.told.append(line)

    def show(self, left_s: float, renewals: int) -> None:
        assert renewals <= len(self.knocks)
        self.shown.append(left_s)

    # What asks for the end

    def wait(self, seconds: float | None) -> bool:
        assert seconds is not None
        self.now_s += max(seconds, 0.001)
        for moment in sorted(self.at):
            if moment <= self.now_s:
                self.at.pop(moment)()
        return self.now_s >= self.end_s

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        yield


@dataclass(frozen=True)
class _Knocking:
    world: World
    timeout_s: float = 10.0

    @property
    def composer(self) -> Composer:
        return Composer(identity.generate(), bytes(32), None, Wish((SSH,)))  # type: ignore[arg-type]

    def run(self) -> Story:
        self.world.knocks.append(self.world.now_s)
        result = self.world.says()
        if isinstance(result, Silence):
            self.world.now_s += self.timeout_s
        return Story("db1", 62201, "key", Wish((SSH,)), [result])


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()

    def own_address(_: Target) -> Address:
        if made.own is None:
            raise OSError("no network")
        return made.own

    monkeypatch.setattr(holding, "own_address", own_address)
    monkeypatch.setattr(holding.closing, "close", lambda _, answers: made.closed.append(answers))
    return made


def opened(world: World) -> Holder:
    holder = world.holder()
    assert holder.open().exit_code is ExitCode.FINE
    return holder


def test_it_is_renewed_when_half_of_its_time_is_over(world: World) -> None:
    holder = opened(world)
    assert world.keep(holder, 61) is None
    gaps = [later - earlier for earlier, later in zip(world.knocks, world.knocks[1:], strict=False)]
    assert gaps == pytest.approx([15] * 4, abs=0.1)
    assert world.told == []
    assert max(world.shown) <= LIFETIME_S
    assert min(world.shown) > LIFETIME_S / 2 - 1


def test_a_long_one_is_renewed_every_ten_minutes(world: World) -> None:
    world.says = lambda: granted(lifetime_s=8 * 3600)
    world.keep(opened(world), 1900)
    assert len(world.knocks) == 1 + 3


def test_a_lost_answer_is_told_once_and_asked_for_again(world: World) -> None:
    holder = opened(world)
    world.says = silence
    world.at = {world.now_s + 22: lambda: setattr(world, "says", granted)}
    world.keep(holder, 40)
    assert world.told == [
        "not renewed: no answer; open for 12 s more, and knocking goes on",
        "answered again; it is open",
    ]


def test_that_it_is_not_open_any_more_is_told_once(world: World) -> None:
    holder = opened(world)
    world.says = silence
    world.at = {world.now_s + 100: lambda: setattr(world, "says", granted)}
    assert world.keep(holder, 130) is None
    assert [line.partition(":")[0] for line in world.told] == [
        "not renewed",
        "not open any more",
        "answered again; it is open",
    ]
    assert 0.0 in world.shown


def test_a_name_that_cannot_be_resolved_for_a_while_is_the_same(world: World) -> None:
    holder = opened(world)
    world.resolves = False
    world.at = {world.now_s + 20: lambda: setattr(world, "resolves", True)}
    world.keep(holder, 30)
    assert "cannot resolve db1; check the name and the network" in world.told[0]
    assert world.told[-1] == "answered again; it is open"


def test_another_address_is_knocked_from_at_once_and_the_old_hole_closed(world: World) -> None:
    world.says = lambda: granted(world.own or HERE, declared=True)
    holder = opened(world)
    world.at = {
        world.now_s + 5: lambda: setattr(world, "own", None),
        world.now_s + 8: lambda: setattr(world, "own", THERE),
    }
    world.keep(holder, 12)
    assert world.knocks == pytest.approx([1000, 1008], abs=1.1)
    assert world.told == [
        f"this machine's address is {THERE} now ({HERE} before); knocking again",
        f"the server sees this machine at {THERE} now ({HERE} before)",
    ]
    (left,) = world.closed
    assert [answer.datagram.source for answer in left] == [HERE]


def test_of_an_address_that_was_not_declared_nothing_is_closed(world: World) -> None:
    """From elsewhere that cannot be said: it ends by itself."""
    world.says = lambda: granted(world.own or HERE)
    holder = opened(world)
    world.at = {world.now_s + 5: lambda: setattr(world, "own", THERE)}
    world.keep(holder, 10)
    assert world.closed == []


def test_a_moved_machine_that_is_not_answered_has_nothing_open(world: World) -> None:
    holder = opened(world)

    def move() -> None:
        world.own, world.says = THERE, silence

    world.at = {world.now_s + 5: move}
    world.keep(holder, 20)
    assert world.told[1] == "not open any more: no answer; knocking goes on"
    assert len([line for line in world.told if line.startswith("this machine's")]) == 1


def test_a_machine_that_has_slept_knocks_at_once(world: World) -> None:
    holder = opened(world)
    world.at = {world.now_s + 5: lambda: setattr(world, "slept_s", 3600.0)}
    world.keep(holder, 8)
    assert world.knocks == pytest.approx([1000, 1005], abs=1.1)
    assert world.told == ["this machine has slept, or its clock was set; knocking again"]


def test_a_wall_clock_set_back_is_no_sleep(world: World) -> None:
    holder = opened(world)
    world.at = {
        world.now_s + 5: lambda: setattr(world, "slept_s", -3600.0),
        world.now_s + 9: lambda: setattr(world, "slept_s", -3500.0),
    }
    world.keep(holder, 12)
    assert world.knocks == pytest.approx([1000, 1009], abs=1.1)


@pytest.mark.parametrize("code", [Code.NO_ROLE, Code.NOT_NOW, Code.EXPIRED, Code.NOT_FROM_HERE])
def test_a_refusal_ends_it(world: World, code: Code) -> None:
    holder = opened(world)
    world.says = lambda: refused(code)
    story = world.keep(holder, 100)
    assert story is not None
    assert story.exit_code is ExitCode.REFUSED
    assert len(world.knocks) == 2


@pytest.mark.parametrize(
    ("code", "status"),
    [(Code.TOO_MANY, Status.REFUSED), (Code.UNAVAILABLE, Status.UNAVAILABLE)],
)
def test_what_passes_by_itself_is_borne_while_it_is_open(
    world: World, code: Code, status: Status
) -> None:
    holder = opened(world)
    world.says = lambda: refused(code, status)
    world.at = {world.now_s + 20: lambda: setattr(world, "says", granted)}
    assert world.keep(holder, 40) is None
    assert code.sentence in world.told[0]
    world.says = lambda: refused(code, status)
    assert world.keep(holder, 100) is not None


def test_a_first_knock_that_fails_holds_nothing(world: World) -> None:
    for result, code in ((silence(), 3), (refused(Code.NO_ROLE), 1)):
        world.says = lambda result=result: result
        assert world.holder().open().exit_code == code


def test_nothing_is_given_back_that_was_not_tried(world: World) -> None:
    assert world.holder().give_back() is None
    assert world.closed == []

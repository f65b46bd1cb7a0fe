"""The gate in doubt: whatever goes wrong in a restore is recorded, and tried again."""

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from keys.tomlfile import FileProblem
from spa_server.audit.record import Event, Record
from spa_server.enforcement import Enforcement, FirewallFaults
from spa_server.firewall.kernel import FirewallError
from spa_server.netlink import NetlinkError
from spa_server.policy.model import Policy
from spa_server.spare import SpareDescriptors

NOW_US = 1_700_000_000_000_000
FAULTS = (
    FirewallError("nft: not today"),
    NetlinkError(errno.EMFILE, "Too many open files"),
    OSError(errno.ENFILE, "Too many open files in system"),
    FileProblem(Path("server.toml"), "observe", "no such service"),
    RuntimeError("a fault of our own"),
    MemoryError(),
)


class Notes:
    """A ledger that keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def note(self, records: list[Record], _now_us: int) -> None:
        self.records += records

    def of(self, event: Event) -> list[Record]:
        return [record for record in self.records if record.event is event]


class Kernel:
    """Gate, backstop, gatehouse, holes and tags in one: all well, but for `fault` when applied."""

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.is_wanted = True
        self.backstop = self
        self.trouble: str | None = None
        self.absence = self.observed = ""
        self.not_counted = ()
        self.in_doubt = False
        self.applied = 0

    def apply(self, _policy: Policy) -> None:
        if self.fault is not None:
            raise self.fault
        self.applied += 1

    def sync(self) -> tuple[list[object], list[object]]:
        return [], []

    def admit_all(self, _now_us: int) -> None:
        pass

    def again(self) -> None:
        self.trouble = None


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def enforcement(kernel: Any, notes: Any) -> Iterator[Enforcement]:
    faults = FirewallFaults(notes)
    made = Enforcement(kernel, kernel, kernel, kernel, ledger=notes, faults=faults)
    with closing(made):
        yield made


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_whatever_fails_in_a_restore_is_recorded_once_and_tried_again(
    enforcement: Enforcement, kernel: Kernel, notes: Notes, fault: Exception
) -> None:
    kernel.fault = fault
    enforcement.restore(Policy(), NOW_US, "somebody changed the ruleset")
    assert enforcement.gate_in_doubt
    for _ in range(3):
        enforcement.recover(Policy(), NOW_US)
    assert enforcement.in_doubt
    (failed,) = notes.of(Event.GATE_FAILED)
    assert failed.reason is not None
    assert failed.reason.startswith("the gate: ")
    kernel.fault = None
    enforcement.recover(Policy(), NOW_US)
    assert not enforcement.in_doubt
    assert kernel.applied == 1
    (restored,) = notes.of(Event.GATE_RESTORED)
    assert restored.reason == "it could not be loaded before"


def test_whether_the_gate_is_wanted_may_be_what_cannot_be_told(
    kernel: Any, notes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot_tell(_: object) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.delattr(kernel, "is_wanted")
    monkeypatch.setattr(Kernel, "is_wanted", property(cannot_tell), raising=False)
    faults = FirewallFaults(notes)
    with closing(Enforcement(kernel, kernel, kernel, kernel, ledger=notes, faults=faults)) as made:
        made.restore(Policy(), NOW_US, None)
        assert made.gate_in_doubt


def test_trouble_with_the_backstop_is_no_doubt_about_the_gate(
    enforcement: Enforcement, kernel: Kernel, notes: Notes
) -> None:
    kernel.trouble = "Operation not permitted"
    enforcement.apply(Policy(), NOW_US)
    assert enforcement.in_doubt
    assert not enforcement.gate_in_doubt
    assert [record.reason for record in notes.of(Event.GATE_FAILED)] == [
        "the backstop: Operation not permitted"
    ]
    enforcement.recover(Policy(), NOW_US)
    assert not enforcement.in_doubt
    assert kernel.applied == 1


def test_spare_descriptors_are_there_when_all_others_are_gone() -> None:
    spare = SpareDescriptors(8)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 4, limits[1]))
    taken: list[int] = []
    try:
        with pytest.raises(OSError, match="Too many open files"):
            _take(lambda: taken.append(os.dup(0)))
        with spare.lent():
            pipes = [os.pipe() for _ in range(4)]
        for end in (end for pipe in pipes for end in pipe):
            os.close(end)
        with spare.lent():
            pass  # and they are kept again
        with pytest.raises(OSError, match="Too many open files"):
            _take(lambda: taken.append(os.dup(0)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for number in taken:
            os.close(number)
        spare.close()


def _take(one_more: Callable[[], object]) -> None:
    for _ in range(10_000):
        one_more()

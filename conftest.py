"""The tests mean the same however they were started, and each answers for what it leaves open.

What runs in the background of a shell, or under nohup, was told to ignore SIGINT, SIGQUIT, SIGHUP,
and so would every program be that a test starts and then stops by one of them.

A file, a socket or a connection that nobody closed is an error when Python finds it, which may be
much later. So it is looked for after each test: the error is then that test's, and no other's.

How long an example of a property takes depends on what else the machine does.
"""

import gc
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_collection_finish() -> None:
    """What is there before the first test, by far the most, is not looked through after each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _leaves_nothing_open() -> Iterator[None]:
    """The first fixture, so the last that is undone."""
    yield
    gc.collect()

"""How many keys a host hears at most: `max_keys` in server.toml.

The kernel's set of tags has a size, and where it is full, nobody who comes later is heard. So what
does not fit is refused when it is enrolled.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from keys.trouble import ExitCode, Trouble

DEFAULT_MAX_KEYS: Final = 150_000
LEAST_MAX_KEYS: Final = 100
MOST_MAX_KEYS: Final = 2_000_000


class NoRoom(Trouble):
    """As many keys and invites are heard as may."""

    exit_code = ExitCode.REFUSED


@contextmanager
def within(heard: Callable[[], int], most: int | None) -> Iterator[None]:
    """For a change inside a transaction: raises NoRoom behind it where it leaves more than `most`.

    A registry that has more already may be changed as long as it does not grow.
    """
    before = heard()
    yield
    after = heard()
    if most is not None and after > max(before, most):
        raise NoRoom(
            f"{after} keys and invites would be heard, and this host hears {most} at most",
            "revoke some, or set a larger `max_keys` in server.toml and restart the daemon",
        )

"""Renewing what a knock has opened while something else goes on: `--hold`."""

import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from spa_client.commands.telling import note_all, note_line
from spa_client.holding import Holder


@dataclass
class Keeping:
    """Renews in a thread, for as long as the block lasts."""

    holder: Holder
    _end: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> None:
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _keep(self) -> None:
        refused = self.holder.keep(self)
        if refused is not None:
            note_all(refused)

    def wait(self, seconds: float | None) -> bool:
        """For the holder."""
        return self._end.wait(seconds)

    def interruptible(self) -> AbstractContextManager[None]:
        """For the holder: signals reach the main thread alone."""
        return nullcontext()


@dataclass(frozen=True)
class Notes:
    """What happens meanwhile, on stderr."""

    name: str

    def tell(self, line: str) -> None:
        note_line(f"{self.name}: {line}")

    def show(self, left_s: float, renewals: int) -> None:
        """No countdown: the terminal is somebody else's."""

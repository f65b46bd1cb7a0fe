"""What an access.conf says: stanzas of settings, each of which knows where it stands.

fwknopd(8), "ACCESS.CONF VARIABLES". Secrets are not in here: of a key there is only a mark by which
two stanzas with the same key can be told from two with different ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from keys.text import printable
from keys.trouble import Trouble


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file, counted from 1."""

    file: Path
    line: int

    def __str__(self) -> str:
        return printable(f"{self.file}:{self.line}")


class AccessProblem(Trouble):
    """A line that cannot be used: `file:line: VARIABLE: what is wrong; what to do`."""

    def __init__(self, place: Place, variable: str, problem: str, hint: str = "") -> None:
        what = f"{variable}: " if variable else ""
        super().__init__(printable(f"{place}: {what}{problem}"), hint)


@dataclass(frozen=True, slots=True)
class Setting:
    """One line `VARIABLE value`. The value of a key is a mark (`reading.settings`)."""

    variable: str
    value: str
    place: Place

    def problem(self, problem: str, hint: str = "") -> AccessProblem:
        """What is wrong with it."""
        return AccessProblem(self.place, self.variable, problem, hint)


@dataclass(frozen=True)
class Stanza:
    """A SOURCE and the settings below it, in the order of the file; SOURCE is the first."""

    settings: tuple[Setting, ...]

    @property
    def source(self) -> Setting:
        """Where it begins."""
        return self.settings[0]

    @cached_property
    def last(self) -> Mapping[str, Setting]:
        """Each variable with the setting that counts: of several, fwknopd takes the last."""
        return {setting.variable: setting for setting in self.settings}

    def get(self, *variables: str) -> Setting | None:
        """The last setting of a variable that has several names."""
        found = [s for name in variables if (s := self.last.get(name)) is not None]
        return max(found, key=self.settings.index, default=None)

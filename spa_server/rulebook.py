"""The rulebook: which policy is in force, and which one was the last that was found sound.

A policy that cannot be read, or that fails one of its own tests, is never put in force: the one
that is stays. So that a restart in the meantime locks nobody out, each policy that comes into
force is kept beside the database, and a daemon that begins with a broken one takes the last good,
as it was meant when it came into force.
Each bears the digest of its text, so that the record can say which was in force; the texts of the
latest are kept in the ledger (spa_server/audit/policytexts.py).
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from keys import privatefile, tomlfile
from keys.owner import as_owner
from keys.readfile import read_plain
from keys.tomlfile import FileProblem
from keys.trouble import Trouble
from spa_server import clock
from spa_server.audit.policytexts import digest_of
from spa_server.config import Config
from spa_server.policy.lines import lines_of
from spa_server.policy.load import parse_policy
from spa_server.policy.model import Policy
from spa_server.policy.testing import check as check_tests


class Rulebook:
    """`roles_of` gives the roles of an identity, for the policy's own tests.

    `problem` is why the policy in force is not the one in its file; None while it is. It was first
    seen at `refused_at_us`. `text` is that of the policy read last.
    """

    def __init__(self, config: Config, roles_of: Callable[[str], frozenset[str]]) -> None:
        self.problem: FileProblem | None = None
        self.refused_at_us = 0
        self.text = ""
        self._config = config
        self._roles_of = roles_of
        self._before_trial = ""

    @property
    def _good(self) -> Path:
        return self._config.database.parent / "policy.good.toml"

    def begin(self) -> Policy:
        """The policy to begin with. Raises FileProblem where neither is sound."""
        try:
            return self.read()
        except FileProblem as problem:
            with as_owner(self._good):
                text = tomlfile.read_text(self._good, how=read_plain)
            if text is None:
                raise
            policy = policy_of(text, self._good, was_in_force=True)
            self.text = text
            self.refuse(problem, clock.now_us())
            return policy

    def refuse(self, problem: FileProblem, now_us: int) -> None:
        """What is in the file was not put in force; the policy of before stays."""
        if self.problem is None or str(self.problem) != str(problem):
            self.refused_at_us = now_us
        self.problem = problem

    def begin_trial(self) -> None:
        """What will be read now may have to be taken back."""
        self._before_trial = self.text

    def take_back(self, now_us: int) -> None:
        """Nobody confirmed what was read during the trial: what was in force before is again."""
        before, self._before_trial = self._before_trial, ""
        if before and before != self.text:
            self._keep(before)
            problem = "it was on trial and nobody confirmed it"
            self.refuse(FileProblem(self._config.policy, "", problem), now_us)

    def read(self) -> Policy:
        """The policy in the file, read and tested, to be put in force. Raises FileProblem."""
        path = self._config.policy
        text = tomlfile.read_text(path)
        if text is None:
            raise FileProblem(path, "", "no such file or directory")
        policy = policy_of(text, path)
        check_tests(policy, path, self._config.shared_sources, self._roles_of)
        self.problem = None
        self._keep(text)
        return policy

    def _keep(self, text: str) -> None:
        """Where it cannot be kept, a restart has to do without."""
        self.text = text
        with suppress(Trouble):
            privatefile.write(self._good, text.encode(), overwrite=True)


def policy_of(text: str, path: Path, *, was_in_force: bool = False) -> Policy:
    """The policy of a text with its digest; `path` is for the message. Raises FileProblem.

    One that was in force is read as it was meant then.
    """
    values, lines = tomlfile.parse(text, path), lines_of(text)
    policy = parse_policy(values, path, lines, was_in_force=was_in_force)
    return replace(policy, digest=digest_of(text))

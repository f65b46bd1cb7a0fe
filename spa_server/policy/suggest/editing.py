"""The policy file with the allows that were never used commented out.

1.  Each line that belongs to such an allow gets `# ` before it, and its header the reason behind
    it. No line is added or taken, no other byte is changed.
2.  An allow stays that one of the policy's own tests expects to be there.
3.  An allow stays whose going could give anybody more: where an access is no longer had any number
    of times, it may be had once for longer (spa_server/policy/decide.py, rule 3).
4.  A role of which no allow is left goes with them where it has an expiry or a review of its own.
    Where it has limits they stay: who has them and another role may do no more than they say.
5.  What comes out is parsed again: it must be the policy less those allows, and pass the tests that
    it passed before.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from keys import tomlfile
from keys.trouble import Trouble
from spa_server.policy.lines import lines_of
from spa_server.policy.load import parse_policy
from spa_server.policy.model import Allow, Network, Policy, Role
from spa_server.policy.testing import Result, RolesOf, run_tests

_BY_HAND: Final = "take them out by hand"


@dataclass(frozen=True, slots=True)
class Edit:
    """A policy's text without `taken`, which were allows; `left` are those that stay, and why."""

    text: str
    taken: tuple[Allow, ...]
    left: tuple[tuple[Allow, str], ...]


class Editor:
    """Edits one policy file. Its text is given as it is read, with the line ends that it has."""

    def __init__(self, text: str, path: Path, shared: Sequence[Network], roles_of: RolesOf) -> None:
        """Raises FileProblem where the text is no policy."""
        self._text = text
        self._path = path
        self._shared = shared
        self._roles_of = roles_of
        self._lines = lines_of(text)
        self.policy = self._parse(text)

    def without(self, allows: Iterable[Allow], reason: str) -> Edit:
        """Comments allows of this policy out. Raises Trouble where the text does not allow it."""
        why = {allow: self._stays(allow) for allow in allows}
        why |= self._last_ones([allow for allow, stays in why.items() if not stays])
        taken = tuple(allow for allow, stays in why.items() if not stays)
        left = tuple((allow, stays) for allow, stays in why.items() if stays)
        text = self._commented(taken, reason)
        self._check(text, {allow.path for allow in taken})
        return Edit(text, taken, left)

    def _last_ones(self, taken: Sequence[Allow]) -> dict[Allow, str]:
        """Rule 4: why allows stay without which nothing would be left of their role."""
        stay: dict[Allow, str] = {}
        for role in self._emptied(taken):
            if role.limits:
                why = f"the limits of {role.name} hold for whoever has it"
            elif not self._can_go(role):
                why = f"{role.name} means nothing without it; take both out by hand"
            else:
                continue
            stay |= dict.fromkeys((a for a in taken if a.role == role.name), why)
        return stay

    def _emptied(self, taken: Sequence[Allow]) -> list[Role]:
        """Roles that nothing would be left of, but what may not stand alone."""
        return [
            role
            for role in self.policy.roles.values()
            if role.allows and set(role.allows) <= set(taken) and _needs_allows(role)
        ]

    def _can_go(self, role: Role) -> bool:
        has_lines = f"roles.{role.name}" in self._lines
        return has_lines and not any(test.role == role.name for test in self.policy.tests)

    def _stays(self, allow: Allow) -> str:
        """Why it does, empty where it goes."""
        if allow.path not in self._lines:
            return "it has no lines of its own; take it out by hand"
        needs_header = f"roles.{allow.role}" not in self._lines
        for test in self.policy.tests:
            if needs_header and test.role == allow.role:
                return f"{test.path} is about its role, which is nowhere else"
            roles = {test.role} if test.role else self._roles_of(test.identity or "")
            is_its = allow.role in roles and allow.covers(test.access)
            if test.is_allowed and is_its and test.source in allow.sources:
                return f"{test.path} expects it"
        if not allow.once and any(_is_once_for_longer(other, allow) for other in self._others):
            return "without it somebody would get a single connection for longer"
        return ""

    @property
    def _others(self) -> Iterable[Allow]:
        return (allow for allow in self.policy.allows if allow.once)

    def _commented(self, allows: Sequence[Allow], reason: str) -> str:
        lines = self._text.split("\n")
        roles = [f"roles.{role.name}" for role in self._emptied(allows)]
        for path in (*roles, *(allow.path for allow in allows)):
            first = self._lines[path] - 1
            end = self._end_of(first, lines)
            lines[first] = _with_reason(lines[first], reason)
            for index in range(first + 1, end):
                if _is_content(lines[index]):
                    lines[index] = f"# {lines[index]}"
        return "\n".join(lines)

    def _end_of(self, first: int, lines: Sequence[str]) -> int:
        """One past the last line of the table; comments behind it are about what follows."""
        later = (number - 1 for number in self._lines.values() if number - 1 > first)
        end = min(later, default=len(lines))
        while not _is_content(lines[end - 1]):
            end -= 1
        return end

    def _check(self, text: str, taken: Collection[str]) -> None:
        """Rule 5."""
        edited = self._parse(text)
        if _meaning(edited, ()) != _meaning(self.policy, taken):
            raise Trouble(f"{self._path} cannot be edited line by line", _BY_HAND)
        before, after = (
            run_tests(policy, self._path, self._shared, self._roles_of)
            for policy in (self.policy, edited)
        )
        for old, new in zip(before, after, strict=True):
            if old.result is Result.PASSED and new.result is not Result.PASSED:
                raise Trouble(f"without them {new.test.path} would fail", _BY_HAND)

    def _parse(self, text: str) -> Policy:
        return parse_policy(tomlfile.parse(text, self._path), self._path, lines_of(text))


def _needs_allows(role: Role) -> bool:
    """Whether it says something that means nothing without an allow."""
    return bool(role.limits) or role.expires_at_us is not None or role.review_by is not None


def _is_once_for_longer(once: Allow, allow: Allow) -> bool:
    longer = once.lifetime_s > allow.lifetime_s or once.max_lifetime_s > allow.max_lifetime_s
    return longer and any(a.overlaps(b) for a in once.accesses for b in allow.accesses)


def _is_content(line: str) -> bool:
    """Neither blank nor a comment."""
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _with_reason(header: str, reason: str) -> str:
    end = "\r" if header.endswith("\r") else ""
    return f"# {header.removesuffix(end)}  # {reason}{end}"


def _meaning(policy: Policy, without: Collection[str]) -> object:
    """Everything that the policy says but for where it says it; a role that gives and limits
    nothing is none."""
    roles = {
        name: replace(
            role,
            line=0,
            allows=tuple(
                replace(allow, path="", line=0)
                for allow in role.allows
                if allow.path not in without
            ),
        )
        for name, role in policy.roles.items()
    }
    roles = {name: role for name, role in roles.items() if role.allows or role.limits}
    return policy.services, roles, policy.always_open, policy.limits, policy.tests

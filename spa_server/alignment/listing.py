"""The gate as nft lists it, against the gate as it is planned.

What the plan would give cannot be told from the script that loads it: nft writes rules in its own
words. So the planned gate is loaded as well, in a network namespace that nothing is attached to,
and listed by the same nft on the same kernel.
"""

import ctypes
import difflib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from spa_server.firewall.kernel import FirewallError, Gate
from spa_server.firewall.plan import GatePlan

_CLONE_NEWNET: Final = 0x40000000
_COUNTED: Final = re.compile(r"packets \d+ bytes \d+")
_LONGEST_LINE: Final = 120
_BLOCK: Final = re.compile(r"(?:chain|set|map|counter) \S+")


def list_planned(plan: GatePlan) -> str:
    """How nft would list this gate. Raises FirewallError, without CAP_SYS_ADMIN among others.

    The thread that does it enters a new network namespace, and both end together.
    """
    with ThreadPoolExecutor(max_workers=1) as threads:
        return threads.submit(_list_in_new_namespace, plan).result()


def _list_in_new_namespace(plan: GatePlan) -> str:
    # os.unshare is there only since Python 3.12.
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(_CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise FirewallError(f"no network namespace to try it in: {os.strerror(number)}", number)
    with Gate() as gate:
        gate.apply(plan)
        return gate.ruleset()


def first_difference(listed: str, planned: str) -> str | None:
    """Where two listings of the gate part, in words; None where they mean the same.

    What a counter has counted means nothing.
    """
    ours, theirs = _lines(listed), _lines(planned)
    if ours == theirs:
        return None
    matcher = difflib.SequenceMatcher(None, ours, theirs, autojunk=False)
    _, begin, end, planned_begin, planned_end = next(
        code for code in matcher.get_opcodes() if code[0] != "equal"
    )
    extra, missing = ours[begin:end], theirs[planned_begin:planned_end]
    where = _block(ours, begin)
    told = [f"has '{_short(extra[0])}'"] if extra else []
    told += [f"lacks '{_short(missing[0])}'"] if missing else []
    return f"{where} {' and '.join(told)}"


def _lines(listing: str) -> list[str]:
    """Block by block, by name: nft lists them as they were made, in place after an upgrade."""
    bare = (" ".join(_COUNTED.sub("", line).split()) for line in listing.splitlines())
    outside: list[str] = []
    blocks: list[list[str]] = []
    is_inside = False
    for line in filter(None, bare):
        if not is_inside and _BLOCK.match(line) and line.endswith("{"):
            blocks.append([])
            is_inside = True
        (blocks[-1] if is_inside else outside).append(line)
        is_inside = is_inside and line != "}"
    return outside + [line for block in sorted(blocks) for line in block]


def _short(line: str) -> str:
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..."


def _block(lines: list[str], at: int) -> str:
    """The chain or set that a line stands in."""
    for line in reversed(lines[: at + 1]):
        found = _BLOCK.match(line)
        if found and line.endswith("{"):
            return found[0]
    return "the table"

"""Switching on what conntrack does not do by itself: counting, and noting the time.

The gate's own rules make the kernel count (gate.nft, chain `accounting`), also where /proc/sys may
not be written, as in the unit's sandbox. Times need the setting. All are those of the caller's
network namespace, concern connections that begin later, and stay when the gate goes.
"""

from pathlib import Path
from typing import Final

_SETTINGS: Final = Path("/proc/sys/net/netfilter")
# Without events nobody is told of ends; 2 is "where somebody listens", the default.
_WANTED: Final = {
    "nf_conntrack_acct": ("packets and bytes of connections are not counted", {"1"}),
    "nf_conntrack_timestamp": ("how long a connection took is known to the minute", {"1"}),
    "nf_conntrack_events": ("ends of connections are not told", {"1", "2"}),
}


def switch_on() -> tuple[str, ...]:
    """What could not be switched on, each as a sentence for an operator."""
    return tuple(
        f"{consequence}: net.netfilter.{name} is not 1 and cannot be set ({trouble})"
        for name, (consequence, accepted) in _WANTED.items()
        if (trouble := _switch_on(_SETTINGS / name, accepted))
    )


def _switch_on(setting: Path, accepted: set[str]) -> str:
    """Why not, or nothing."""
    try:
        if setting.read_text("ascii").strip() not in accepted:
            setting.write_text("1\n", "ascii")
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""

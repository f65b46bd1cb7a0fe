"""What systemd will give the daemon, asked before it is needed."""

import subprocess
from collections.abc import Iterable
from typing import Final

from spa_protocol.carrier import Carrier
from spa_server.firewall import programs

UNIT: Final = "spa-server.service"
_WITHIN_S: Final = 5
_ROOT: Final = {"", "root", "0"}


def why_not_raw(carriers: Iterable[Carrier]) -> str:
    """Why the daemon's unit could not answer the raw carriers among these.

    Empty where it could, and where nobody knows: without systemd, or without the unit.
    """
    raw = [str(carrier) for carrier in carriers if carrier.is_raw]
    if not raw:
        return ""
    unit = _properties()
    is_ours = unit.get("LoadState") == "loaded" and unit.get("User", "") not in _ROOT
    if not is_ours or "cap_net_raw" in unit.get("AmbientCapabilities", "").lower().split():
        return ""
    return (
        f"{' and '.join(raw)} cannot be answered: {UNIT} has no CAP_NET_RAW; give it that by"
        f" `systemctl edit {UNIT}`, as spa-server(8), Carriers, says, or take it out of `carriers`"
    )


def _properties() -> dict[str, str]:
    try:
        done = subprocess.run(
            [programs.find("systemctl"), "show", UNIT, "-p", "LoadState,User,AmbientCapabilities"],
            capture_output=True,
            text=True,
            env=programs.ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            timeout=_WITHIN_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)

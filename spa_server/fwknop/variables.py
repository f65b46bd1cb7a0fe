"""The variables of access.conf, and what becomes of each that a policy has no place for.

fwknopd(8) of fwknop 2.6.10. Those of fwknop 1.x (in Perl), which fwknopd passes over, are unknown.
"""

from dataclasses import dataclass
from typing import Final

KEYS: Final = ("KEY", "KEY_BASE64", "HMAC_KEY", "HMAC_KEY_BASE64")
SECRET: Final = frozenset({*KEYS, "GPG_DECRYPT_PW"})
INCLUDE_KEYS: Final = "%include_keys"

CARRIED: Final = frozenset(
    {
        "SOURCE",
        "OPEN_PORTS",
        "RESTRICT_PORTS",
        "FW_ACCESS_TIMEOUT",
        "MAX_FW_TIMEOUT",
        "REQUIRE_SOURCE_ADDRESS",
        "REQUIRE_SOURCE",
        "REQUIRE_USERNAME",
        "ACCESS_EXPIRE",
        "ACCESS_EXPIRE_EPOCH",
        "GPG_REMOTE_ID",
        "GPG_FINGERPRINT_ID",
    }
)


@dataclass(frozen=True, slots=True)
class Loss:
    """What a setting meant that is not carried over, and what to do about it.

    `once`: told once for a whole file. `switch`: means something only where it says Y.
    """

    what: str
    hint: str
    once: bool = False
    switch: bool = False


_KEY: Final = Loss(
    "shared keys are not carried over",
    "let whoever has one join by an invite, with a key of their own",
    once=True,
)
_FIXED: Final = Loss("the protocol leaves no choice of algorithms", "nothing to do", once=True)
_GPG: Final = Loss("GnuPG is not used; every knock is signed", "nothing to do", once=True)
_COMMAND: Final = "a knock runs no command"
_OF_COMMANDS: Final = Loss(_COMMAND, "nothing more to do", once=True)
_CYCLE: Final = Loss(
    f"{_COMMAND}, so no port of this stanza is opened",
    "write an allow for the ports that it opened on this host, if any",
)
_NAT: Final = Loss("addresses are not translated", "route to that host, and guard it itself")
_FORWARD: Final = Loss("nothing is forwarded", "guard the other host itself", switch=True)

LOST: Final = {
    **dict.fromkeys((*KEYS, INCLUDE_KEYS), _KEY),
    "DESTINATION": Loss(
        "a rule holds for every address of this host, which is wider than it was",
        "let the service listen at this address alone",
    ),
    "ENCRYPTION_MODE": _FIXED,
    "HMAC_DIGEST_TYPE": _FIXED,
    **dict.fromkeys(
        (
            "GPG_HOME_DIR",
            "GPG_EXE",
            "GPG_DECRYPT_ID",
            "GPG_DECRYPT_PW",
            "GPG_ALLOW_NO_PW",
            "GPG_REQUIRE_SIG",
            "GPG_DISABLE_SIG",
            "GPG_IGNORE_SIG_VERIFY_ERROR",
        ),
        _GPG,
    ),
    "ENABLE_CMD_EXEC": Loss(_COMMAND, "open tcp/22 by a knock and run it by ssh", switch=True),
    "ENABLE_CMD_SUDO_EXEC": Loss(_COMMAND, "let sudo say who may, behind ssh", switch=True),
    **dict.fromkeys(
        (
            "CMD_EXEC_USER",
            "CMD_EXEC_GROUP",
            "CMD_SUDO_EXEC_USER",
            "CMD_SUDO_EXEC_GROUP",
            "SUDO_EXE",
        ),
        _OF_COMMANDS,
    ),
    "CMD_CYCLE_OPEN": _CYCLE,
    "CMD_CYCLE_CLOSE": _OF_COMMANDS,
    "CMD_CYCLE_TIMER": _OF_COMMANDS,
    "FORCE_NAT": Loss(
        "nothing is forwarded to another host, and no port of this stanza is opened",
        "guard that host itself",
    ),
    "FORCE_SNAT": _NAT,
    "FORCE_MASQUERADE": Loss(_NAT.what, _NAT.hint, switch=True),
    "FORWARD_ALL": _FORWARD,
    "DISABLE_DNAT": _FORWARD,
}

# A stanza with one of these opened no port of this host, or not by itself.
ELSEWHERE: Final = ("FORCE_NAT", "CMD_CYCLE_OPEN")

KNOWN: Final = CARRIED | LOST.keys()

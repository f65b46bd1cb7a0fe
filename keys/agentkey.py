"""Making a key whose signing half is an SSH key in ssh-agent: which one, and does it sign?"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from keys import agent, identity, sshkey
from keys.agent import NotThere, Tell
from keys.identity import Identity
from keys.sshkey import CannotKnock, SshKey, Torn
from keys.trouble import ExitCode, Trouble
from spa_protocol.sshsig import KeyType

Choose = Callable[[Sequence[str]], int]
"""Asks a person which of several lines is meant; returns its index."""

_PROBE: Final = b"spa-keys: does this key sign"
_KINDS: Final = {KeyType.ED25519: "Ed25519", KeyType.SK_ED25519: "Ed25519 security key"}
_MAKE: Final = "make one: ssh-keygen -t ed25519"
_NAME_ONE: Final = "'ssh-add -L' prints them; say which by --ssh FILE.pub"


def of_file(path: Path, comment: str, tell: Tell) -> Identity:
    """A new key that signs with the SSH key of a public key file, `-` being stdin.

    Where no agent holds it yet, `tell` is told so. Raises Trouble and OSError; AgentTrouble where
    the agent holds the key and does not sign.
    """
    made = _made(sshkey.read(path), comment, tell)
    try:
        made.sign(_PROBE)
    except NotThere as not_there:
        tell(f"before you knock: {not_there}")
    return made


def of_agent(comment: str, tell: Tell, choose: Choose | None) -> Identity:
    """A new key that signs with a key of the agent's.

    `choose` is asked where there are several; None says that nobody can be. Raises Trouble.
    """
    with agent.reached() as connection:
        held = connection.keys()
    if not held:
        raise agent.lists_no_key()
    usable, others = _sorted(held)
    if not usable:
        kinds = ", ".join(dict.fromkeys(others))
        raise Trouble(f"ssh-agent holds no key that can sign a knock ({kinds})", _MAKE)
    if len(usable) > 1 and choose is None:
        what = f"ssh-agent holds {len(usable)} keys that can knock"
        raise Trouble(what, _NAME_ONE, exit_code=ExitCode.USAGE)
    chosen = choose([_line(key) for key in usable]) if choose and len(usable) > 1 else 0
    made = _made(usable[chosen], comment, tell)
    made.sign(_PROBE)
    return made


def _made(key: SshKey, comment: str, tell: Tell) -> Identity:
    key_type, signing = key.signing_key()
    return identity.in_agent(key_type, signing, comment, tell)


def _sorted(held: Sequence[SshKey]) -> tuple[list[SshKey], list[str]]:
    """The keys that can sign a knock, and of the others what they are."""
    usable, others = [], []
    for key in held:
        try:
            key.signing_key()
        except CannotKnock as cannot:
            others.append(cannot.what)
        except Torn:
            others.append("a key that makes no sense")
        else:
            usable.append(key)
    return usable, others


def _line(key: SshKey) -> str:
    key_type, _ = key.signing_key()
    return f"{key.fingerprint}  {key.comment}  ({_KINDS[key_type]})"

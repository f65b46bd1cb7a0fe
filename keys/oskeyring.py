"""The passphrase of a key file in the system's own keyring, by the package `keyring`.

The keyring of the desktop (Secret Service, KWallet, macOS's Keychain, Windows' Credential Manager)
is open while its owner is logged in. It has the passphrase alone, under the service `spaknock` and
the key's id; the key stays in its file.
"""

import sys
from typing import Final

from keys.trouble import Trouble

SERVICE: Final = "spaknock"


class NoKeyring(Trouble):
    """The keyring cannot be used, or has no passphrase for a key; and why."""


def keep(key_id: str, passphrase: str) -> None:
    """Puts a passphrase into the keyring. Raises NoKeyring."""
    try:
        import keyring  # noqa: PLC0415 - a quarter of a second, and an optional package

        keyring.set_password(SERVICE, key_id, passphrase)
    except Exception as error:
        raise _no_keyring(error) from None


def recall(key_id: str) -> str:
    """The passphrase that was put there. Raises NoKeyring."""
    try:
        import keyring  # noqa: PLC0415 - as above

        found = keyring.get_password(SERVICE, key_id)
    except Exception as error:
        raise _no_keyring(error) from None
    if found is None:
        raise NoKeyring(f"the keyring holds no passphrase for key {key_id}")
    return found


def forget(key_id: str) -> None:
    """Takes a passphrase out of the keyring, if it is there. Raises NoKeyring."""
    try:
        import keyring  # noqa: PLC0415 - as above

        if keyring.get_password(SERVICE, key_id) is not None:
            keyring.delete_password(SERVICE, key_id)
    except Exception as error:
        raise _no_keyring(error) from None


def _no_keyring(error: Exception) -> NoKeyring:
    """Backends raise what they like; each of it means that the keyring cannot be used now."""
    if isinstance(error, ImportError):
        hint = f"{sys.executable} -m pip install keyring"
        return NoKeyring("the keyring cannot be used: the package keyring is missing", hint)
    if type(error).__name__ == "NoKeyringError":
        return NoKeyring("the keyring cannot be used: this system offers none")
    reason = str(error).partition("\n")[0] or type(error).__name__
    return NoKeyring(f"the keyring cannot be used: {reason}")

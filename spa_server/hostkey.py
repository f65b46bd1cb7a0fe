"""This host's own key, read by the daemon, and by root who operates it.

`spa-server init` gives the key to the daemon's user. Who that is, the directory of the database
says, which is that user's (StateDirectory= of the unit): so root may read what only the daemon can,
and a key of anybody else is still refused.
"""

from contextlib import suppress

from keys import serverkey
from keys.serverkey import ServerKey
from spa_server.config import Config


def load(config: Config) -> ServerKey:
    """The key that the configuration names. Raises KeyFileError."""
    service = None
    with suppress(OSError):
        service = config.database.parent.stat().st_uid
    return serverkey.load(config.key, service=service)

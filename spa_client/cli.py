"""The program `spa-client`: which command is in which module."""

import importlib
from collections.abc import Iterator, MutableMapping
from typing import Final

import click

from keys.console import Program
from spa_protocol import __version__

PROGRAM: Final = "spa-client"

_WHERE: Final = {
    "add": "spa_client.commands.hosts:add",
    "close": "spa_client.commands.knock:close",
    "connect": "spa_client.commands.connect:connect",
    "doctor": "spa_client.commands.doctor:doctor",
    "exec": "spa_client.commands.exec:exec_",
    "forward": "spa_client.commands.forward:forward",
    "hold": "spa_client.commands.hold:hold",
    "hosts": "spa_client.commands.hosts:hosts",
    "join": "spa_client.commands.join:join",
    "knock": "spa_client.commands.knock:knock",
    "remove": "spa_client.commands.remove:remove",
    "ssh-config": "spa_client.commands.ssh_config:ssh_config",
}


class _Commands(MutableMapping[str, click.Command]):
    """The commands by name; the module of one is imported when it is asked for."""

    def __init__(self, where: dict[str, str]) -> None:
        self._where = where
        self._there: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._there:
            module, _, attribute = self._where[name].partition(":")
            self._there[name] = getattr(importlib.import_module(module), attribute)
        return self._there[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._where, **self._there})

    def __len__(self) -> int:
        return len({**self._where, **self._there})

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._there[name] = command

    def __delitem__(self, name: str) -> None:
        self._where.pop(name, None)
        self._there.pop(name, None)


@click.group(
    PROGRAM,
    cls=Program,
    commands=_Commands(_WHERE),
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 refused, 2 usage, 3 no answer, 4 trouble on this side (a key, a "
    "file, a name, the network).",
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
def main() -> None:
    """Opens ports of a server for this machine, by one signed datagram.

    \b
      spa-client join -                       and paste the invite that its operator gave you
      spa-client add db1 'spa-server AX...'   or a server line, where your key is enrolled
    \b
    Then no further command is needed:
      spa-client ssh-config >> ~/.ssh/config  ssh, scp, git: they knock by themselves
      spa-client exec db1 tcp/5432 -- psql -h db1 app
      spa-client forward 15432:db1:5432       for programs that cannot
    \b
    Or by hand:
      spa-client knock db1 tcp/5432           open for a moment; connect meanwhile
      spa-client hold db1 tcp/5432            open until Ctrl-C
      spa-client doctor db1 tcp/5432          why does it not open?
    """

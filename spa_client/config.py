"""The client's configuration: `config.toml`, and where it and the keys are.

    key = "default"               a name in the keys directory, or a path
    [hosts.db1]
    server = "spa-server ..."     the line that `spa-server init` printed
    address = "db1.internal"      optional: where to knock and connect, if not there
    key = "work"                  optional
    source = "203.0.113.9"        optional: an address to declare, or "auto" or "none"
    target = "none"               optional: sign no target, or "auto": see below
    carrier = "udp:53"            optional: what carries knocks: udp, udp:53, icmp, tcp-syn
    access = ["tcp/22"]           optional: what `spa-client knock db1` asks for

A knock names the address that it is sent to as its target, so that it is good at that host alone.
Where a port forwarder stands before the server, its operator names the forwarder's address in
server.toml (`also_addressed_as`). Where that cannot be, `target` is "none", which the server has to
allow (`undeclared_target`), and a knock is then good at every host that has the same server key.

What is not known here is refused, with the file and the key's path. A path of a key is taken from
the directory of the configuration.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Final

import msgspec

from keys import places, privatefile, tomlfile
from keys.tomlfile import FileProblem
from keys.trouble import ExitCode, Trouble
from spa_client.compose import NamedTarget, Source, SourceRule, TargetRule
from spa_client.resolve import plain_address
from spa_client.services import BadAccess, parse_access, together
from spa_protocol.access import Access
from spa_protocol.carrier import UDP, Carrier
from spa_protocol.keytext import BadKeyText, Endpoint, ServerLine
from spa_protocol.layout import Address, is_unicast, may_be_elsewhere

DEFAULT_KEY: Final = "default"


class UnknownHost(Trouble):
    """No host, or more than one, is meant by what was written on the command line."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True, slots=True)
class Host:
    """A server, how to reach it, and with what to knock there."""

    name: str
    server: ServerLine
    address: str
    key: Path
    source: Source = SourceRule.AUTO
    access: tuple[Access, ...] = ()
    carrier: Carrier = UDP
    target: NamedTarget = TargetRule.AUTO

    @property
    def target_word(self) -> str:
        """The target as the file and the command line write it."""
        return self.target.value if isinstance(self.target, TargetRule) else str(self.target)

    @property
    def found_by(self) -> frozenset[str]:
        """Its name and addresses, as `plain_name` writes them."""
        return frozenset(map(plain_name, (self.name, self.address, self.server.endpoint.host)))

    @property
    def short_names(self) -> frozenset[str]:
        """`db1` for a host `db1.internal`: what people type where a search domain would do."""
        dotted = (name for name in self.found_by if "." in name and not _is_address(name))
        return frozenset(name.partition(".")[0] for name in dotted) - self.found_by

    @property
    def knocks_on(self) -> Endpoint:
        """The address and the UDP port that its knocks go to."""
        return Endpoint(self.address, self.server.endpoint.port)

    @property
    def source_word(self) -> str:
        """The source as the file writes it."""
        return self.source.value if isinstance(self.source, SourceRule) else str(self.source)


@dataclass(frozen=True, slots=True)
class Config:
    """What a configuration file says; `path` need not exist, then it says nothing."""

    path: Path
    key: Path
    hosts: Mapping[str, Host]

    def find(self, written: str) -> Host:
        """The host of this name, else the one of this name or address in other letters (ssh asks
        in small ones), else the one whose name or address begins with this label (`db1` for
        `db1.internal`). Raises UnknownHost."""
        if written in self.hosts:
            return self.hosts[written]
        at = plain_name(written)
        whole = [host for host in self.hosts.values() if at in host.found_by]
        found = whole or [host for host in self.hosts.values() if at in host.short_names]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(host.name for host in found)
            what = "the address" if whole else "short"
            of = "of" if whole else "for"
            raise UnknownHost(f"{written} is {what} {of} {names}", "say which of them")
        hint = f"see 'spa-client hosts', or: spa-client add {written} 'spa-server ...'"
        raise UnknownHost(f"no host {written!r} in {self.path}", hint)


def _is_address(name: str) -> bool:
    try:
        plain_address(name)
    except ValueError:
        return False
    return True


def plain_name(host: str) -> str:
    """A host's name in small letters, without the dot that may end a whole one."""
    return host.rstrip(".").lower()


class _File(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    key: str = DEFAULT_KEY
    hosts: dict[str, Any] = {}


class _Entry(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    server: str
    address: str | None = None
    key: str | None = None
    source: str | None = None
    access: list[str] = []
    carrier: str | None = None
    target: str | None = None


def is_key_name(written: str) -> bool:
    """Whether a key is named by its name, and not by a path."""
    is_plain = PurePath(written).name == written and not written.startswith(("~", "."))
    return is_plain and not written.endswith(".key")


def key_path(written: str, *, keys: Path, base: Path) -> Path:
    """`work` is `work.key` in the keys directory; `./work` and `work.key` are paths from base."""
    if is_key_name(written):
        return keys / f"{written}.key"
    try:
        return base / Path(written).expanduser()
    except RuntimeError:
        return base / written


def default_path() -> Path:
    """`config.toml` in the user's directory for this software."""
    return places.configuration_directory() / "config.toml"


def load(chosen: Path | None = None, keys: Path | None = None) -> Config:
    """The configuration in the file that was chosen, which must exist, or else in the usual one.

    `keys` is the directory of the keys, if it is not the usual one. Raises FileProblem.
    """
    path = chosen or default_path()
    text = tomlfile.read_text(path)
    if text is None and chosen is not None:
        raise FileProblem(path, "", "does not exist", "see 'spa-client add --help'")
    return parse(text or "", path, keys)


def parse(text: str, path: Path, keys: Path | None = None) -> Config:
    """From TOML; `path` is for messages and relative paths. Raises FileProblem."""
    file = tomlfile.convert(tomlfile.parse(text, path), _File, path, "")

    def find_key(written: str) -> Path:
        return key_path(written, keys=keys or places.keys_directory(), base=path.parent)

    hosts = {}
    for name, value in file.hosts.items():
        entry = tomlfile.convert(value, _Entry, path, f"hosts.{tomlfile.quoted(name)}")
        hosts[name] = _host(name, entry, find_key(entry.key or file.key), path)
    return Config(path, find_key(file.key), hosts)


def _host(name: str, entry: _Entry, key: Path, path: Path) -> Host:
    where = f"hosts.{tomlfile.quoted(name)}"
    try:
        server = ServerLine.parse(entry.server)
    except BadKeyText as problem:
        raise FileProblem(path, f"{where}.server", str(problem)) from None
    try:
        access = together(map(parse_access, entry.access)) if entry.access else ()
    except BadAccess as problem:
        raise FileProblem(path, f"{where}.access", str(problem)) from None
    try:
        source = parse_source(entry.source) if entry.source is not None else SourceRule.AUTO
    except ValueError as problem:
        raise FileProblem(path, f"{where}.source", str(problem)) from None
    try:
        target = TargetRule.AUTO if entry.target is None else parse_target_rule(entry.target)
    except ValueError as problem:
        raise FileProblem(path, f"{where}.target", str(problem)) from None
    try:
        carrier = UDP if entry.carrier is None else Carrier.parse(entry.carrier)
    except ValueError as problem:
        raise FileProblem(path, f"{where}.carrier", str(problem)) from None
    address = server.endpoint.host if entry.address is None else entry.address
    if not address.strip() or any(c.isspace() for c in address):
        raise FileProblem(path, f"{where}.address", "expected a host name or an address")
    return Host(name, server, address, key, source, access, carrier, target)


def parse_source(text: str) -> Source:
    """An address, `auto` or `none`. Raises ValueError with what was expected."""
    if text.lower() in {rule.value for rule in SourceRule}:
        return SourceRule(text.lower())
    address = _address_of_a_host(text, "source")
    if not may_be_elsewhere(address):
        raise ValueError(f"{text!r} is an address that no other host sees packets come from")
    return address


def parse_target_rule(text: str) -> TargetRule:
    """`auto` or `none`. Raises ValueError with what was expected."""
    try:
        return TargetRule(text.lower())
    except ValueError:
        raise ValueError(f"{text!r} is no rule for the target; expected auto or none") from None


def parse_target(text: str) -> NamedTarget:
    """An address, `auto` or `none`. Raises ValueError with what was expected."""
    if text.lower() in {rule.value for rule in TargetRule}:
        return TargetRule(text.lower())
    return _address_of_a_host(text, "target")


def _address_of_a_host(text: str, what: str) -> Address:
    try:
        address = plain_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is no {what}; expected an address, auto or none") from None
    if not is_unicast(address):
        raise ValueError(f"{text!r} is the address of no single host")
    return address


@dataclass(frozen=True, slots=True)
class NewHost:
    """What `add` writes, in the words of the file."""

    name: str
    server: str
    address: str | None = None
    key: str | None = None
    source: str | None = None
    access: tuple[str, ...] = ()
    carrier: str | None = None
    target: str | None = None


def add(path: Path, new: NewHost) -> Host:
    """Appends a host to the file, which keeps all that is in it. Raises FileProblem."""
    text = tomlfile.read_text(path) or ""
    if new.name in parse(text, path).hosts:
        raise FileProblem(path, "", f"has a host {new.name!r} already", "edit it there")
    return _write(path, _appended(text, path, new), new.name)


def enter(path: Path, new: NewHost, *, dry_run: bool = False) -> Host:
    """Adds a host; one of this name gets the new server line and key, and keeps all else it has.

    All other lines stay as they are, comments too. With `dry_run` the file is left alone, and only
    what could be wrong is found. Raises FileProblem, also where the name is another server's.
    """
    text = tomlfile.read_text(path) or ""
    known = parse(text, path).hosts.get(new.name)
    if known is None:
        whole = _appended(text, path, new)
    elif known.server.public != ServerLine.parse(new.server).public:
        hint = "take it out there, or call this one otherwise by --name"
        raise FileProblem(path, "", f"has a host {new.name!r} with another server key", hint)
    else:
        values = {"server": new.server, "key": new.key}
        whole = _changed(text, path, new.name, {k: v for k, v in values.items() if v is not None})
    return parse(whole, path).hosts[new.name] if dry_run else _write(path, whole, new.name)


def remove(path: Path, name: str) -> None:
    """Takes a host out of the file; all other lines stay as they are. Raises FileProblem.

    Where its table is written in a way that no program can take out safely, nothing is changed.
    """
    text = tomlfile.read_text(path) or ""
    wanted = tomlfile.parse(text, path)
    del wanted["hosts"][name]
    whole = "\n".join(_without_table(text.split("\n"), name))
    try:
        found = tomlfile.parse(whole, path)
    except FileProblem:
        found = {}
    if _with_hosts(found) != _with_hosts(wanted):
        where = f"hosts.{tomlfile.quoted(name)}"
        raise FileProblem(path, where, "cannot be taken out by a program", "take it out by hand")
    parse(whole, path)
    privatefile.write(path.resolve(), whole.encode(), overwrite=True)


def _with_hosts(found: Mapping[str, Any]) -> dict[str, Any]:
    """A file without hosts may have an empty table of them, or none: it means the same."""
    return {**found, "hosts": found.get("hosts", {})}


def _without_table(lines: list[str], name: str) -> list[str]:
    """The lines without the host's table, and without the empty lines before it.

    Comments right before the next table are that one's, and stay.
    """
    begin = next((i for i, line in enumerate(lines) if _heads(line, name)), len(lines))
    after = range(begin + 1, len(lines))
    end = next((i for i in after if lines[i].lstrip().startswith("[")), len(lines))
    if end < len(lines):
        while end > begin + 1 and lines[end - 1].lstrip().startswith("#"):
            end -= 1
    kept = lines[:begin]
    while kept and not kept[-1].strip():
        kept.pop()
    rest = lines[end:]
    return [*kept, *([""] if kept else []), *rest]


def _write(path: Path, whole: str, name: str) -> Host:
    host = parse(whole, path).hosts[name]
    privatefile.write(path.resolve(), whole.encode(), overwrite=True)
    return host


def _appended(text: str, path: Path, new: NewHost) -> str:
    table = _table(new)
    parse(table, path)
    whole = f"{text.rstrip()}\n\n{table}" if text.strip() else table
    try:
        parse(whole, path)
    except FileProblem:
        hint = "write its hosts as tables like [hosts.db1]"
        raise FileProblem(path, "", "cannot be appended to", hint) from None
    return whole


def _changed(text: str, path: Path, name: str, values: Mapping[str, str]) -> str:
    """The text with other values in the table of one host.

    Lines are exchanged, and what they mean together is then compared with what they should: where
    the table is written in some other way, FileProblem is raised and nothing guessed.
    """
    wanted = tomlfile.parse(text, path)
    if all(wanted["hosts"][name].get(key) == value for key, value in values.items()):
        return text
    wanted["hosts"][name].update(values)
    whole = "\n".join(_with_values(text.split("\n"), name, values))
    try:
        found = tomlfile.parse(whole, path)
    except FileProblem:
        found = {}
    if found != wanted:
        lines = " and ".join(f"{key} = {tomlfile.string(value)}" for key, value in values.items())
        where = f"hosts.{tomlfile.quoted(name)}"
        raise FileProblem(path, where, "cannot be changed by a program", f"write there: {lines}")
    return whole


def _with_values(lines: list[str], name: str, values: Mapping[str, str]) -> list[str]:
    """The lines, with those of the values right behind the head of the table."""
    begin = next((i for i, line in enumerate(lines) if _heads(line, name)), len(lines))
    after = range(begin + 1, len(lines))
    end = next((i for i in after if lines[i].lstrip().startswith("[")), len(lines))
    kept = [line for line in lines[begin + 1 : end] if not _sets(line, values)]
    new = [f"{key} = {tomlfile.string(value)}" for key, value in values.items()]
    return [*lines[: begin + 1], *new, *kept, *lines[end:]]


def _heads(line: str, name: str) -> bool:
    return line.lstrip().startswith("[") and _meaning(line) == {"hosts": {name: {}}}


def _sets(line: str, keys: Iterable[str]) -> bool:
    return any(key in _meaning(line) for key in keys)


def _meaning(line: str) -> dict[str, Any]:
    """One line as TOML by itself; nothing where it is none."""
    try:
        return tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return {}


def _table(new: NewHost) -> str:
    access = list(new.access)
    entry = _Entry(new.server, new.address, new.key, new.source, access, new.carrier, new.target)
    lines = [f"[hosts.{tomlfile.quoted(new.name)}]"]
    for field, value in msgspec.to_builtins(entry).items():
        is_list = isinstance(value, list)
        items = ", ".join(map(tomlfile.string, value if is_list else [value]))
        written = f"[{items}]" if is_list else items
        lines.append(f"{field} = {written}")
    return "\n".join(lines) + "\n"

"""The whole ruleset of the host, as nft tells it in JSON (libnftables-json(5)).

Only what can let packets by the gate or stop them is kept: base chains, rules, flowtables. Sets
come without their elements (--terse), of which there may be 100,000s.

Targets of iptables have no more than their name in JSON; nft translates them in its own language
only. Rules with such a target are kept with their line of that as well.
"""

import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, TypeAlias

import msgspec

from keys.text import printable
from spa_server.firewall import backstop, programs
from spa_server.firewall.kernel import FirewallError

TableName: TypeAlias = tuple[str, str]
_NFT_WITHIN_S: Final = 30
_HANDLE: Final = re.compile(r"^\s*(.*) # handle (\d+)$")


class BaseChain(msgspec.Struct, frozen=True):
    """A chain; `hook` is None for one that others only jump to. `prio` orders those of a hook."""

    family: str
    table: str
    name: str
    type: str | None = None
    hook: str | None = None
    prio: int = 0
    policy: str = "accept"


class Rule(msgspec.Struct, frozen=True):
    """A rule; `expr` is its statements, each an object with one key. `text` is its line in nft's
    language, where nft was asked for it."""

    family: str
    table: str
    chain: str
    handle: int
    expr: tuple[dict[str, Any], ...]
    text: str = ""

    @property
    def statements(self) -> Iterator[tuple[str, Any]]:
        """Each statement's kind and what belongs to it."""
        for statement in self.expr:
            yield from statement.items()


class Flowtable(msgspec.Struct, frozen=True):
    """What carries established flows past every hook after ingress."""

    family: str
    table: str
    name: str
    dev: str | list[str] = ""

    @property
    def devices(self) -> list[str]:
        """The interfaces at which it takes packets."""
        return [self.dev] if isinstance(self.dev, str) else self.dev


class _Object(msgspec.Struct, frozen=True):
    """One entry of the listing: of the kinds that matter, at most one is there."""

    chain: BaseChain | None = None
    rule: Rule | None = None
    flowtable: Flowtable | None = None


class _Listing(msgspec.Struct, frozen=True):
    nftables: tuple[_Object, ...]


@dataclass(frozen=True)
class Ruleset:
    """Every chain, rule and flowtable of one network namespace."""

    chains: Sequence[BaseChain] = ()
    rules: Sequence[Rule] = ()
    flowtables: Sequence[Flowtable] = ()
    _by_chain: Mapping[tuple[str, str, str], list[Rule]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        by_chain: dict[tuple[str, str, str], list[Rule]] = defaultdict(list)
        for rule in self.rules:
            by_chain[rule.family, rule.table, rule.chain].append(rule)
        object.__setattr__(self, "_by_chain", by_chain)

    @cached_property
    def base_chains(self) -> list[BaseChain]:
        """The chains that hang in a hook, in the order in which packets meet them."""
        hooked = [chain for chain in self.chains if chain.hook is not None]
        return sorted(hooked, key=lambda chain: chain.prio)

    def rules_of(self, family: str, table: str, chain: str) -> list[Rule]:
        """The rules of one chain, in order."""
        return self._by_chain.get((family, table, chain), [])

    def reached_from(self, chain: BaseChain) -> list[Rule]:
        """The rules that a packet in this chain may meet, those behind jumps included."""
        found: list[Rule] = []
        waiting, seen = [chain.name], {chain.name}
        while waiting:
            for rule in self.rules_of(chain.family, chain.table, waiting.pop()):
                found.append(rule)
                new = [target for target in self._targets(rule) if target not in seen]
                seen.update(new)
                waiting += new
        return found

    def _targets(self, rule: Rule) -> Iterator[str]:
        """The chains that a rule leads to: by a named map, whose elements are not listed, any."""
        for kind, value in verdicts(rule):
            if kind in {"jump", "goto"} and isinstance(value, dict):
                yield str(value.get("target"))
            elif kind == "vmap" and isinstance(value, dict) and isinstance(value.get("data"), str):
                yield from self._regular.get((rule.family, rule.table), ())

    @cached_property
    def _regular(self) -> dict[TableName, list[str]]:
        """The chains of each table that hang in no hook."""
        regular: dict[TableName, list[str]] = {}
        for chain in self.chains:
            if chain.hook is None:
                regular.setdefault((chain.family, chain.table), []).append(chain.name)
        return regular


def verdicts(rule: Rule) -> Iterator[tuple[str, Any]]:
    """Each statement of a rule, and of a verdict map in it each verdict."""
    for kind, value in rule.statements:
        yield kind, value
        if kind == "vmap" and isinstance(value, dict) and isinstance(value.get("data"), dict):
            for pair in value["data"].get("set", ()):
                if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], dict):
                    yield from pair[1].items()


def parse_ruleset(text: str) -> Ruleset:
    """From what `nft --json list ruleset` prints. Raises FirewallError for anything else."""
    try:
        objects = msgspec.json.decode(text, type=_Listing).nftables
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FirewallError(f"what nft lists is not understood: {error}") from None
    return Ruleset(
        chains=[one.chain for one in objects if one.chain is not None],
        rules=[one.rule for one in objects if one.rule is not None],
        flowtables=[one.flowtable for one in objects if one.flowtable is not None],
    )


def read_ruleset() -> Ruleset:
    """The ruleset of the network namespace, but for our own backstop. Raises FirewallError.

    Table by table: of a table that outlives its owner nft 1.0.6 writes flags that are no JSON, and
    leaves out all that comes after it.
    """
    tables = [tuple(line.split()[1:3]) for line in _nft("list", "tables").splitlines()]
    listed = [
        parse_ruleset(_nft("--json", "--terse", "list", "table", *table))
        for table in tables
        if table != ("inet", backstop.TABLE)
    ]
    found = Ruleset(
        [chain for each in listed for chain in each.chains],
        [rule for each in listed for rule in each.rules],
        [flowtable for each in listed for flowtable in each.flowtables],
    )
    foreign = {(rule.family, rule.table) for rule in found.rules if _has_target(rule)}
    texts = {table: _texts(table) for table in foreign}
    rules = [
        msgspec.structs.replace(rule, text=texts[rule.family, rule.table].get(rule.handle, ""))
        if _has_target(rule)
        else rule
        for rule in found.rules
    ]
    return Ruleset(found.chains, rules, found.flowtables)


def _has_target(rule: Rule) -> bool:
    return any(
        kind == "xt" and isinstance(value, dict) and value.get("type") == "target"
        for kind, value in rule.statements
    )


def _texts(table: TableName) -> dict[int, str]:
    """Each rule's line by its handle, which is unique in a table."""
    listing = _nft("--handle", "--terse", "list", "table", *table)
    lines = (_HANDLE.match(line) for line in listing.splitlines())
    return {int(line[2]): printable(line[1]) for line in lines if line}


def _nft(*arguments: str) -> str:
    """What nft prints. Raises FirewallError."""
    try:
        done = subprocess.run(
            [programs.find("nft"), *arguments],
            capture_output=True,
            text=True,
            env=programs.ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            timeout=_NFT_WITHIN_S,
            check=False,
        )
    except OSError as error:
        raise FirewallError(f"nft could not be run: {error.strerror}", error.errno) from None
    except (subprocess.TimeoutExpired, UnicodeDecodeError) as error:
        raise FirewallError(f"nft: {error}") from None
    if done.returncode:
        complaint = next(iter(done.stderr.strip().splitlines()), "it did not say why")
        raise FirewallError(f"nft: {printable(complaint)}")
    return done.stdout

"""Joining: from an invite to a key that works, in the one order that loses nothing.

1.  The configuration is looked at first: what stands in the way there, a host of the same name with
    another server key for one, is found while the invite is still good.
2.  The new key is on the disk before a datagram leaves. It is enrolled by the first one that
    arrives, whether or not the answer does.
3.  Its file is named after the invite. So the same line, given again, means the same key, and the
    server answers that one again.
4.  Only an answer that the key is not enrolled takes the file away again, and only one that this
    or an earlier try with the same invite has made.
5.  The host goes into the configuration, and a first request by the new key proves that all of it
    works: a knock, where somebody says for what, else a close of what was never open. That a server
    says "joined" proves little: whoever has the invite, and stole it, can say so too.

The invite signs the join, and seals it; the new key signs nothing before step 5.
"""

import contextlib
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from keys import identity, newkey, places
from keys.console import note
from keys.identity import Identity
from keys.passphrase import Ask
from keys.privatefile import Missing
from keys.trouble import ExitCode, Trouble
from spa_client import carriers, config, knocking
from spa_client.carriers import Answer, Result
from spa_client.compose import Composer, Datagram, Wish
from spa_client.config import Host, NewHost
from spa_client.outcome import Story
from spa_client.resolve import Target, resolve
from spa_client.services import BadAccess, parse_access, together
from spa_protocol.access import HARMLESS, Access
from spa_protocol.carrier import Carrier
from spa_protocol.keytext import Invite, ServerLine
from spa_protocol.knock import Join, Kind, message_to_sign, seal_request
from spa_protocol.layout import Address
from spa_protocol.publickey import PublicKey
from spa_protocol.reason import Status
from spa_protocol.seal import PairKeys, WeakKey

TIMEOUT_S: Final = 5.0

_STDIN: Final = "-"
_MAX_LINE: Final = 4096
_ID_SHOWN: Final = 8
_MAX_NAME: Final = 40
_BEST_FIRST: Final = (
    Status.JOINED,
    Status.PENDING,
    Status.JOIN_REFUSED,
    Status.CLOCK,
    Status.UNAVAILABLE,
)
_ACCEPTED: Final = {Status.JOINED, Status.PENDING}
_NOT_ENROLLED: Final = {Status.JOIN_REFUSED, Status.CLOCK}


@dataclass(frozen=True, slots=True)
class Options:
    """What the options say; None is the usual.

    `chosen` is the configuration file, `keys` the directory of the keys, `version` 4 or 6. Of a key
    that is made: `wants_passphrase` None leaves it to whoever is asked.
    """

    name: str | None = None
    address: str | None = None
    key: str | None = None
    source: str | None = None
    access: tuple[str, ...] = ()
    carrier: str | None = None
    target: str | None = None
    wants_passphrase: bool | None = None
    passphrase_file: Path | None = None
    wants_ssh: bool = False
    chosen: Path | None = None
    keys: Path | None = None
    version: int | None = None
    timeout_s: float = TIMEOUT_S


def read_invite(words: Iterable[str]) -> Invite:
    """The invite that was given, or the first line of stdin for `-`. Raises BadKeyText.

    A line that was broken by blanks on its way is put together again: its checksum guards it.
    """
    written = "".join(words)
    if written == _STDIN:
        if sys.stdin.isatty():
            note("Paste the invite and press Enter.")
        written = sys.stdin.buffer.readline(_MAX_LINE).decode(errors="replace")
    return Invite.parse(written)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be joined: all that can be known before anything is done.

    `host` is what will stand in the configuration, `key` where the key is or will be, `own` the
    invite's own key, and `pair` what it shares with the server.
    """

    server: bytes
    own: Identity
    pair: PairKeys
    options: Options
    config: Path
    host: NewHost
    key: Path
    targets: tuple[Target, ...]
    carrier: Carrier
    accesses: tuple[Access, ...]


def plan(invite: Invite, options: Options) -> Plan:
    """Raises Trouble for whatever stands in the way."""
    own = Identity.from_invite(invite.token)
    path = options.chosen or config.default_path()
    name = options.name or invite.endpoint.host
    word = _key_word(name, own) if options.key is None else _anywhere(options.key)
    line = str(ServerLine(invite.server, invite.endpoint))
    host = NewHost(
        name,
        line,
        options.address,
        word,
        options.source,
        options.access,
        options.carrier,
        options.target,
    )
    carrier = config.enter(path, host, dry_run=True).carrier
    if options.carrier is not None:
        carrier = Carrier.parse(options.carrier)
    port = carrier.port or invite.endpoint.port
    return Plan(
        server=invite.server,
        own=own,
        pair=_pair(own, invite.server),
        options=options,
        config=path,
        host=host,
        key=config.key_path(word, keys=options.keys or places.keys_directory(), base=path.parent),
        targets=resolve(options.address or invite.endpoint.host, port, version=options.version),
        carrier=carrier,
        accesses=_accesses(options.access),
    )


def _key_word(name: str, own: Identity) -> str:
    """A name in the keys directory: the host's, and the beginning of the invite's id."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:_MAX_NAME] or "key"
    return f"{plain}-{own.public.key_id[:_ID_SHOWN]}"


def _anywhere(key: str) -> str:
    """The name of a key as it is, and a path as one that means the same from everywhere."""
    if config.is_key_name(key):
        return key
    return str(config.key_path(key, keys=Path(), base=Path()).absolute())


def _pair(own: Identity, server: bytes) -> PairKeys:
    try:
        return own.pair_with(server)
    except WeakKey:
        raise Trouble("the invite holds no usable server key", "ask for a new one") from None


def _accesses(written: tuple[str, ...]) -> tuple[Access, ...]:
    try:
        return together(map(parse_access, written)) if written else ()
    except BadAccess as bad:
        raise Trouble(str(bad), exit_code=ExitCode.USAGE) from None


@dataclass(frozen=True, slots=True)
class JoinComposer(Composer):
    """Makes the datagrams that ask to enrol one key: `identity` and `pair` are the invite's."""

    brings: PublicKey = field(kw_only=True)

    @property
    def kind(self) -> Kind:
        """A join."""
        return Kind.JOIN

    def compose(
        self,
        own: Address,  # noqa: ARG002
        to: Address,  # noqa: ARG002
        *,
        nonce: bytes,
        now_us: int,
        tag_number: int = 0,
    ) -> Datagram:
        """One datagram; a join names no addresses."""
        request = Join(now_us, self.brings)
        agreement = self.identity.public.agreement
        message = message_to_sign(request, server=self.server, agreement=agreement, nonce=nonce)
        signature = self.identity.sign(message)
        payload = seal_request(
            request, signature, pair=self.pair, nonce=nonce, tag_number=tag_number
        )
        return Datagram(payload, nonce, now_us, None)


@dataclass(frozen=True, slots=True)
class NewKey:
    """The key that is to be enrolled. `is_ours` says that this invite has made it, `is_new` now."""

    public: PublicKey
    is_new: bool
    is_ours: bool
    passphrase: str | None = field(default=None, repr=False)


def ready_key(plan: Plan, ask: Ask | None) -> NewKey:
    """The key of an earlier try, or the one that was named, or a new one. Raises Trouble."""
    options = plan.options
    with contextlib.suppress(Missing):
        public, _ = identity.load_public(plan.key)
        return NewKey(public, is_new=False, is_ours=options.key is None)
    chosen = newkey.new_passphrase(options.wants_passphrase, options.passphrase_file, ask)
    made = identity.generate(newkey.usual_comment())
    identity.save(made, plan.key, chosen)
    return NewKey(made.public, is_new=True, is_ours=True, passphrase=chosen)


@dataclass(slots=True)
class Joining:
    """What has come of it so far: one result for each address, and of the first request.

    `problem` is why there was no first request, though the key is enrolled.
    """

    plan: Plan
    key: NewKey
    results: list[Result] = field(default_factory=list)
    proof: Story | None = None
    problem: Trouble | None = None

    @property
    def answer(self) -> Answer | None:
        """The best of the answers, if there was any to a join."""
        answers = [r for r in self.results if isinstance(r, Answer)]
        known = [a for a in answers if a.reply.status in _BEST_FIRST]
        return min(known, key=lambda a: _BEST_FIRST.index(a.reply.status), default=None)

    @property
    def status(self) -> Status | None:
        """The best answer's."""
        return self.answer.reply.status if self.answer else None

    @property
    def is_entered(self) -> bool:
        """Whether the host was written into the configuration."""
        return self.status in _ACCEPTED

    @property
    def was_sent(self) -> bool:
        """Whether a datagram has left this machine."""
        return any(isinstance(r, Answer) or r.datagrams for r in self.results)


def join(plan: Plan, ask: Ask | None) -> Joining:
    """Does all of it; `ask` is for passphrases. Raises Trouble where this side fails."""
    joining = Joining(plan, ready_key(plan, ask))
    _exchange(joining)
    _drop_useless_key(joining)
    if joining.status in _ACCEPTED:
        host = _enter_host(joining)
        if joining.status is Status.JOINED:
            try:
                joining.proof = _prove(host, joining, ask)
            except Trouble as trouble:
                joining.problem = trouble
    return joining


def _exchange(joining: Joining) -> None:
    """Asks every address until one says that it is done; the others would say the same."""
    plan = joining.plan
    composer = JoinComposer(plan.own, plan.server, plan.pair, Wish(()), brings=joining.key.public)
    timeout_s = plan.options.timeout_s
    for result in carriers.exchange(
        plan.targets, composer, timeout_s=timeout_s, carrier=plan.carrier
    ):
        joining.results.append(result)
        if joining.status in _ACCEPTED:
            return


def _drop_useless_key(joining: Joining) -> None:
    """Rule 4. Where nothing could be sent, nothing is enrolled either."""
    key, status = joining.key, joining.status
    is_useless = status in _NOT_ENROLLED or not joining.was_sent
    may_be_enrolled = not key.is_new and status is not Status.JOIN_REFUSED
    if key.is_ours and is_useless and not may_be_enrolled:
        joining.plan.key.unlink(missing_ok=True)


def _enter_host(joining: Joining) -> Host:
    plan, new = joining.plan, joining.plan.host
    try:
        config.enter(plan.config, new)
        return config.load(plan.config, plan.options.keys).hosts[new.name]
    except Trouble as trouble:
        line = f"spa-client add {new.name} '{new.server}' --key {new.key}"
        raise Trouble(f"joined, but {trouble.message}", f"write it there, like: {line}") from None


def _prove(host: Host, joining: Joining, ask: Ask | None) -> Story:
    """The first request by the new key, which opens nothing that nobody has asked for."""
    plan, key = joining.plan, joining.key
    wish = Wish(plan.accesses) if plan.accesses else Wish((HARMLESS,), closing=True)
    how = knocking.Options(
        passphrase_file=None if key.is_new else plan.options.passphrase_file,
        version=plan.options.version,
        carrier=plan.carrier,
        timeout_s=plan.options.timeout_s,
    )
    passphrase = key.passphrase
    known = None if passphrase is None else (lambda _: passphrase)
    return knocking.prepare(host, wish, how, known or ask).run()

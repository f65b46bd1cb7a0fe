"""From what the command line says to a host, its addresses, and what makes its datagrams."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from keys import identity, passphrase, places
from keys.console import note
from keys.identity import Identity
from keys.passphrase import Ask
from keys.trouble import ExitCode, Trouble
from spa_client import carriers, config
from spa_client.carriers import Answer, Result
from spa_client.compose import Composer, NamedTarget, Source, SourceRule, TargetRule, Wish
from spa_client.config import Host
from spa_client.outcome import Story
from spa_client.resolve import Target, resolve
from spa_protocol.carrier import UDP, Carrier
from spa_protocol.keytext import ServerLine
from spa_protocol.layout import Address
from spa_protocol.reason import Status
from spa_protocol.seal import WeakKey


@dataclass(frozen=True, slots=True)
class Options:
    """What the options say; None is the configuration's or the usual.

    `chosen` is the configuration file, `keys` the directory of the keys, `version` 4 or 6.
    """

    chosen: Path | None = None
    server: ServerLine | None = None
    key: str | None = None
    keys: Path | None = None
    passphrase_file: Path | None = None
    knock_port: int | None = None
    carrier: Carrier | None = None
    version: int | None = None
    source: Source | None = None
    target: NamedTarget | None = None
    timeout_s: float = carriers.DEFAULT_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Knocking:
    """A host to be knocked on: every address, the maker of its datagrams, and what carries them."""

    host: Host
    targets: tuple[Target, ...]
    composer: Composer
    timeout_s: float
    carrier: Carrier = UDP

    def results(self) -> Iterator[Result]:
        """Knocks on every address and waits for the replies.

        Where each knock takes a touch, one address after the other, until one has answered with
        more than a refusal.
        """
        if not self.composer.identity.needs_touch:
            yield from self._exchange(self.targets)
            return
        for target in self.targets:
            for result in self._exchange((target,)):
                yield result
                if isinstance(result, Answer) and result.reply.status is not Status.REFUSED:
                    return

    def _exchange(self, targets: tuple[Target, ...]) -> Iterator[Result]:
        return carriers.exchange(
            targets, self.composer, timeout_s=self.timeout_s, carrier=self.carrier
        )

    def run(self) -> Story:
        """The whole exchange; where no reply is wanted, only the sending."""
        if self.composer.wish.reply_wanted:
            return self.story(list(self.results()))
        sent = carriers.send_only(self.targets, self.composer, carrier=self.carrier)
        return self.story(list(sent))

    def story(self, results: list[Result]) -> Story:
        """What came of it, ready to be told."""
        return Story(
            name=self.host.name,
            port=self.targets[0].port,
            key_id=self.composer.identity.public.key_id,
            wish=self.composer.wish,
            results=results,
            carrier=self.carrier,
        )


def find_host(written: str, options: Options) -> Host:
    """The host that is meant, with what the options say of it. Raises Trouble."""
    known = config.load(options.chosen, options.keys)
    if options.server is None:
        host = known.find(written)
    elif written in known.hosts:
        host = replace(known.hosts[written], server=options.server)
    else:
        host = Host(written, options.server, address=written, key=known.key)
    if options.key is not None:
        keys = options.keys or places.keys_directory()
        host = replace(host, key=config.key_path(options.key, keys=keys, base=Path()))
    if options.source is not None:
        host = replace(host, source=options.source)
    if options.target is not None:
        host = replace(host, target=options.target)
    return host


def prepare(host: Host, wish: Wish, options: Options, ask: Ask | None) -> Knocking:
    """Opens the key and finds the addresses. Raises Trouble; `ask` is for the passphrase."""
    return aim(host, open_key(host, options, ask), wish, options)


def open_key(host: Host, options: Options, ask: Ask | None) -> Identity:
    """The key to knock with at this host. Raises KeyFileError; `ask` is for the passphrase."""
    file = options.passphrase_file
    return identity.load(host.key, _asking(file, ask), tell=_tell, use_keyring=file is None)


def aim(host: Host, opened: Identity, wish: Wish, options: Options) -> Knocking:
    """Finds the addresses as they are now, for a key that is open already. Raises Trouble."""
    carrier, port = _carrier_and_port(host, options)
    targets = resolve(host.address, port, version=options.version)
    if not isinstance(host.target, TargetRule):
        targets = _of_family(targets, host.target, f"--target {host.target}", host)
    if not isinstance(host.source, SourceRule):
        _of_family(targets, host.source, f"source {host.source}", host)
    try:
        composer = Composer.toward(
            host.server.public, opened, wish, host.source, target=host.target
        )
    except WeakKey:
        raise Trouble(f"the server line of {host.name} holds no usable key") from None
    if opened.is_in_agent:
        composer = patient(composer)
    return Knocking(host, targets, composer, options.timeout_s, carrier)


def _carrier_and_port(host: Host, options: Options) -> tuple[Carrier, int]:
    """What carries a knock, and the port it goes to; ICMP has no use for one. Raises Trouble."""
    carrier, port = options.carrier, options.knock_port
    if carrier is not None and carrier.port and port:
        raise Trouble(
            f"--port {port} and --carrier {carrier} both name a port",
            "give one of them",
            exit_code=ExitCode.USAGE,
        )
    used = carrier or host.carrier
    return used, port or used.port or host.knocks_on.port


def patient(composer: Composer) -> Composer:
    """The same, for a signature that a person may be needed for."""
    from spa_client.patience import PatientComposer  # noqa: PLC0415 - most keys never need it

    return PatientComposer(
        composer.identity,
        composer.server,
        composer.pair,
        composer.wish,
        composer.source,
        composer.target,
        tell=_tell,
    )


def _tell(line: str) -> None:
    """What a person has to know or do before the knock can leave, on stderr."""
    note(f"spa-client: {line}")


def _of_family(
    targets: tuple[Target, ...], wanted: Address | None, what: str, host: Host
) -> tuple[Target, ...]:
    """Those of the family of an address that was named. Raises Trouble when there are none."""
    if wanted is None:
        return targets
    chosen = tuple(t for t in targets if t.address.version == wanted.version)
    if not chosen:
        raise Trouble(f"{what} is IPv{wanted.version}, and {host.name} has no address of that kind")
    return chosen


def _asking(file: Path | None, ask: Ask | None) -> Ask | None:
    return ask if file is None else lambda _: passphrase.from_file(file)

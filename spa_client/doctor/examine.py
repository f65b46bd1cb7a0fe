"""The steps of an examination, in the order in which a knock needs them.

config, key, name, route, reply, clock, source, policy, port. The knock is a real one, for what was
asked; it is not closed behind, because another program may live by the same hole. What measures the
loss on the way are closes of a port that was never open: they open nothing and use nothing up. Each
goes from a socket of its own, so that a NAT that has several addresses shows them.
"""

import contextlib
import os
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from keys.identity import Identity
from keys.passphrase import Ask
from keys.trouble import ExitCode, Trouble
from spa_client import carriers, config, knocking
from spa_client.carriers import Answer, Result, describe, own_address
from spa_client.compose import Wish
from spa_client.config import Host
from spa_client.connect import dial, lifetime_of
from spa_client.doctor import words
from spa_client.doctor.findings import AddressFound, Examination, Finding, Mark, PortFound, Reach
from spa_client.knocking import Knocking, Options
from spa_client.services import BadAccess, together
from spa_protocol.access import HARMLESS, Access, Protocol
from spa_protocol.layout import EPOCH_S

PROBES: Final = 8
_PROBES_WITHIN_S: Final = 1.5
_DIAL_TRIES: Final = 3
_DIAL_WITHIN_S: Final = 4.0
_UNASKED_WITHIN_S: Final = 3.0
_CLOSES: Final = 3
_A_PERSON_TAKES_US: Final = 1_000_000
_CLOSED_WITHIN_S: Final = 0.3
_FOR_OTHERS: Final = 0o022
_FILES_MAY_DIFFER_S: Final = 60
# A server hears what is stamped within two epochs of its own, so each of these reaches five of
# them: one step less, and no time within three days is left out. The nearest are asked first.
_STEP_S: Final = 4 * EPOCH_S
_STEPS: Final = words.CLOCK_ASKED_DAYS * 86_400 // _STEP_S
OTHER_TIMES_S: Final = tuple(
    side * step * _STEP_S for step in range(1, _STEPS + 1) for side in (1, -1)
)


class Examiner:
    """Looks, and yields each finding as it comes; what was found is in `examination`.

    With `asks_clock`, where no knock is answered, the server is asked by other times (ADR 31).
    """

    def __init__(
        self,
        written: str,
        accesses: Sequence[Access],
        options: Options,
        *,
        asks_clock: bool = False,
    ) -> None:
        self.examination = Examination(written, Wish(tuple(accesses)))
        self._options = options
        self._asks_clock = asks_clock

    def run(self, ask: Ask | None) -> Iterator[Finding]:
        """All steps, up to one that leaves nothing for the next. `ask` is for the passphrase."""
        found = self.examination
        step = "config"
        try:
            host, findings = self._config()
            yield from findings
            step = "key"
            identity, finding = self._key(host, ask)
            yield finding
            step = "name"
            aimed = knocking.aim(host, identity, found.wish, self._options)
            yield words.of_name(host, aimed.targets)
        except Trouble as trouble:
            found.ended_at, found.trouble = step, trouble
            yield Finding(step, Mark.BAD, str(trouble))
            return
        yield from self._addresses(aimed)

    def _config(self) -> tuple[Host, list[Finding]]:
        """Raises Trouble."""
        found = self.examination
        host = knocking.find_host(found.written, self._options)
        found.host = host
        try:
            found.wish = Wish(together(found.wish.accesses or host.access))
        except BadAccess as bad:
            hint = f"say which access, like: spa-client doctor {found.written} tcp/22"
            hint = "" if found.wish.accesses else hint
            raise Trouble(str(bad), hint, exit_code=ExitCode.USAGE) from None
        path = self._options.chosen or config.default_path()
        findings = [words.of_config(path, host)]
        if _others_may_write(path):
            findings.append(words.of_open_config(path))
        return host, findings

    def _key(self, host: Host, ask: Ask | None) -> tuple[Identity, Finding]:
        """Raises Trouble."""
        opened = knocking.open_key(host, self._options, ask)
        self.examination.key_id = opened.public.key_id
        return opened, words.of_key(host.key, opened)

    def _addresses(self, aimed: Knocking) -> Iterator[Finding]:
        found = self.examination
        found.addresses = [_with_route(AddressFound(target)) for target in aimed.targets]
        yield from map(words.of_route, found.addresses)
        results = {result.target: result for result in aimed.results()}
        for address in found.addresses:
            address.result = results.get(address.target)
        found.story = aimed.story(list(results.values()))
        self._probe(aimed)
        yield words.of_reply(found)
        if not found.answered:
            yield self._clock(aimed)
            yield from self._ports_unasked(aimed)
            return
        for address in found.answered:
            if (answer := address.answer) is not None:
                yield words.of_clock(answer)
                yield words.of_source(address, answer)
                yield from words.of_policy(answer, found)
                yield from self._ports(aimed, address)

    def _probe(self, aimed: Knocking) -> None:
        """Asks each address that has answered several times at once, and never again."""
        if _asks_somebody(aimed.composer.identity, self.examination.answered):
            return
        composer = replace(aimed.composer, wish=Wish((HARMLESS,), closing=True))
        for address in self.examination.answered:
            targets = [address.target] * PROBES
            tries = [_PROBES_WITHIN_S]
            address.probes = list(
                carriers.exchange(targets, composer, tries=tries, carrier=aimed.carrier)
            )

    def _clock(self, aimed: Knocking) -> Finding:
        """Without a reply: what this clock says, and on wish whether another time is answered.

        By a close of what was never open, which is worth nothing whenever it arrives.
        """
        found, identity = self.examination, aimed.composer.identity
        found.clock_s = time.time()
        found.newer = next(filter(_is_from_the_future, self._files()), None)
        composer = replace(aimed.composer, wish=Wish((HARMLESS,), closing=True))
        is_asked = self._asks_clock and not (identity.needs_touch or identity.is_in_agent)
        for address in found.addresses if is_asked else ():
            if address.own is not None and found.lead_s is None:
                answer = carriers.answer_at_other_times(
                    address.target, composer, OTHER_TIMES_S, carrier=aimed.carrier
                )
                if answer is not None:
                    found.lead_s = answer.reply.server_time_us / 1e6 - time.time()
        return words.of_unheard_clock(found, asked=is_asked)

    def _files(self) -> Iterator[Path]:
        """Files that were surely not written in the future."""
        yield self._options.chosen or config.default_path()
        if self.examination.host is not None:
            yield self.examination.host.key
        yield Path(__file__)

    def _ports(self, aimed: Knocking, address: AddressFound) -> Iterator[Finding]:
        for access in self.examination.wish.accesses:
            if address.granted(access):
                port = _try_port(aimed, address, access)
                address.ports.append(port)
                yield words.of_port(address, port)

    def _ports_unasked(self, aimed: Knocking) -> Iterator[Finding]:
        """Without a reply: whether a port answers all the same, and whether a close ends that."""
        for address in self.examination.addresses:
            for access in self.examination.wish.accesses:
                if access.protocol is Protocol.TCP and address.own is not None:
                    port = _dial(address, access, _UNASKED_WITHIN_S)
                    address.ports.append(port)
                    yield words.of_unasked_port(address, port)
                    if port.reach in (Reach.OPEN, Reach.REFUSED) and not address.closed:
                        address.closed = _falls_silent(aimed, address, access)
                        yield words.of_close(address, access)
                        if not address.closed:
                            address.unopened = _dial(address, HARMLESS, _UNASKED_WITHIN_S).reach
                            yield words.of_unopened(address, HARMLESS)


def _asks_somebody(identity: Identity, answered: Sequence[AddressFound]) -> bool:
    """Whether a person has to touch or confirm each signature: once is enough for a diagnosis.

    An agent does not tell; it shows in the time that it took, which no network needs.
    """
    took_us = [a.answer.received_at_us - a.answer.datagram.sent_at_us for a in answered if a.answer]
    waited = max(took_us, default=0) > _A_PERSON_TAKES_US
    return identity.needs_touch or (identity.is_in_agent and waited)


def _is_from_the_future(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime > time.time() + _FILES_MAY_DIFFER_S
    return False


def _with_route(address: AddressFound) -> AddressFound:
    try:
        address.own = own_address(address.target)
    except OSError as error:
        address.problem = describe(error)
    return address


def _others_may_write(path: Path) -> bool:
    """Whether somebody else could put another server's line there."""
    if sys.platform == "win32":
        return False
    with contextlib.suppress(OSError):
        status = path.stat()
        strange = status.st_uid not in (os.geteuid(), 0)
        return strange or bool(stat.S_IMODE(status.st_mode) & _FOR_OTHERS)
    return False


def _try_port(aimed: Knocking, address: AddressFound, access: Access) -> PortFound:
    """Connects; where nothing comes back, again behind a fresh knock, since packets get lost."""
    if access.protocol is not Protocol.TCP:
        return PortFound(access, Reach.UNASKED)
    answer: Answer | None = address.answer
    port = PortFound(access, Reach.SILENT)
    some_are_lost = any(not isinstance(probe, Answer) for probe in address.probes)
    for _ in range(_DIAL_TRIES if some_are_lost else 2):
        if answer is None:
            break
        port = _dial(address, access, min(_DIAL_WITHIN_S, lifetime_of(answer, access) or 1))
        if port.reach is not Reach.SILENT:
            break
        answer = _knock_again(aimed, address)
    return port


def _knock_again(aimed: Knocking, address: AddressFound) -> Answer | None:
    results: list[Result] = list(replace(aimed, targets=(address.target,)).results())
    return next((r for r in results if isinstance(r, Answer)), None)


def _falls_silent(aimed: Knocking, address: AddressFound, access: Access) -> bool:
    """Whether it was the knock that opened a port, though no reply came: so a close shuts it."""
    wish = Wish((access,), closing=True, reply_wanted=False)
    composer = replace(aimed.composer, wish=wish)
    for _ in range(_CLOSES):
        carriers.send_only([address.target], composer, carrier=aimed.carrier)
    time.sleep(_CLOSED_WITHIN_S)
    return _dial(address, access, _UNASKED_WITHIN_S).reach is Reach.SILENT


def _dial(address: AddressFound, access: Access, within_s: float) -> PortFound:
    begun_s = time.monotonic()
    try:
        dial(address.target, access.first, within_s=within_s).close()
    except TimeoutError as error:
        return PortFound(access, Reach.SILENT, describe(error))
    except ConnectionRefusedError as error:
        return PortFound(access, Reach.REFUSED, describe(error))
    except OSError as error:
        return PortFound(access, Reach.ERROR, describe(error))
    return PortFound(access, Reach.OPEN, took_ms=(time.monotonic() - begun_s) * 1000)

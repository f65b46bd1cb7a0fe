"""A client of ssh-agent: which keys it holds, and signatures by one of them.

draft-miller-ssh-agent, sections 3.5 and 3.6, and openssh PROTOCOL.u2f for what a security key adds
to its signature. The agent is at the Unix socket that SSH_AUTH_SOCK names. What it answers is text
from a socket: lengths are bounded, nothing may be left over, and a signature counts only if it
holds.

A security key signs when it is touched, and `ssh-add -c` has somebody confirm each use. Both take
a person's time, so the caller is told once an answer takes longer than a moment.
"""

import contextlib
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from keys import sshkey
from keys.sshkey import Reader, SshKey, Torn, string
from keys.text import clean_comment
from keys.trouble import Trouble
from spa_protocol import sshsig
from spa_protocol.layout import SIGNATURE_SIZE
from spa_protocol.publickey import PublicKey
from spa_protocol.sshsig import KeyType, Signature

Tell = Callable[[str], None]

SOCKET_VARIABLE: Final = "SSH_AUTH_SOCK"
ANSWER_WITHIN_S: Final = 5.0
PERSON_WITHIN_S: Final = 60.0
PATIENCE_S: Final = 0.3
"""Whoever signs without being touched or asked has done so by then."""

_FAILURE: Final = 5
_REQUEST_IDENTITIES: Final = bytes([11])
_IDENTITIES_ANSWER: Final = 12
_SIGN_REQUEST: Final = bytes([13])
_SIGN_RESPONSE: Final = 14
_NO_FLAGS: Final = bytes(4)
_MAX_MESSAGE: Final = 256 * 1024
_MAX_KEYS: Final = 2048
_START: Final = 'start one: eval "$(ssh-agent)" && ssh-add'
_RESTART: Final = "start another agent"
_TOUCH: Final = "touch your security key"
_CONFIRM: Final = "ssh-agent asks you to confirm the use of your key"


class AgentTrouble(Trouble):
    """ssh-agent cannot be asked, or does not do what it is asked; and why."""


class NotThere(AgentTrouble):
    """There is no agent, or it does not hold the key: for now, which another moment may change."""


class _Refused(Exception):
    """The agent answered that it will not. It never says why."""


@dataclass(frozen=True, slots=True)
class Signer:
    """Has the agent sign for one key, over a connection of its own each time.

    `tell` is told what a person has to do, where the agent waits for one.
    """

    public: PublicKey
    tell: Tell | None = field(default=None, compare=False, repr=False)

    def sign(self, message: bytes) -> Signature:
        """The signature over the message in OpenSSH's structure (docs/protocol.md section 5.3).

        Raises AgentTrouble.
        """
        with reached() as agent:
            return agent.sign(self.public, message, self.tell)


@contextlib.contextmanager
def reached(environment: Mapping[str, str] = os.environ) -> Iterator["Agent"]:
    """The agent, for as long as the block lasts. Raises AgentTrouble where there is none."""
    if sys.platform == "win32":
        hint = "use a key that signs by itself: spa-keys generate"
        raise AgentTrouble("ssh-agent cannot be asked on Windows", hint)
    path = environment.get(SOCKET_VARIABLE, "")
    if not path:
        raise NotThere(f"there is no ssh-agent ({SOCKET_VARIABLE} is not set)", _START)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_WITHIN_S)
        try:
            connection.connect(path)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            what = f"no ssh-agent answers at {path} ({SOCKET_VARIABLE}): {reason}"
            raise NotThere(what, _START) from None
        yield Agent(connection)


class Agent:
    """One connection to the agent. Methods raise AgentTrouble."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def keys(self) -> list[SshKey]:
        """The keys that it holds, of every kind. A locked agent lists none."""
        with _explained():
            try:
                answer = self._ask(_REQUEST_IDENTITIES, _IDENTITIES_ANSWER, ANSWER_WITHIN_S)
            except _Refused:
                return []
            count = answer.number()
            if count > _MAX_KEYS:
                raise Torn(f"{count} keys")
            pairs = [(answer.string(), answer.string()) for _ in range(count)]
            answer.end()
        return [SshKey(blob, clean_comment(text.decode(errors="replace"))) for blob, text in pairs]

    def sign(self, public: PublicKey, message: bytes, tell: Tell | None = None) -> Signature:
        """As for `Signer`."""
        waiting = _Waiting(public.key_type, tell)
        request = _SIGN_REQUEST + string(sshkey.blob_of(public))
        request += string(sshsig.signed_message(message)) + _NO_FLAGS
        try:
            with _explained():
                answer = self._ask(request, _SIGN_RESPONSE, PERSON_WITHIN_S, waiting)
                signature = _signature(answer, public.key_type)
        except _Refused:
            raise self._why_refused(public, was_waiting=waiting.is_told) from None
        if not sshsig.verify(message, signature, public.key_type, public.signing):
            raise AgentTrouble("the signature that ssh-agent made does not hold", _RESTART)
        return signature

    def _ask(
        self, request: bytes, expected: int, within_s: float, waiting: "_Waiting | None" = None
    ) -> Reader:
        """What follows the answer's first byte. Raises _Refused, Torn and OSError."""
        self._connection.sendall(string(request))
        if waiting is not None:
            waiting.watch(self._connection)
        until_s = time.monotonic() + within_s
        size = int.from_bytes(self._receive(4, until_s))
        if not 1 <= size <= _MAX_MESSAGE:
            raise Torn(f"a message of {size} bytes")
        answer = Reader(self._receive(size, until_s))
        kind = answer.byte()
        if kind == _FAILURE:
            raise _Refused
        if kind != expected:
            raise Torn(f"a message of type {kind}")
        return answer

    def _receive(self, size: int, until_s: float) -> bytes:
        """Exactly so many bytes. Raises OSError, TimeoutError among them."""
        received = b""
        while len(received) < size:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._connection.settimeout(left_s)
            more = self._connection.recv(size - len(received))
            if not more:
                raise ConnectionResetError
            received += more
        return received

    def _why_refused(self, public: PublicKey, *, was_waiting: bool) -> AgentTrouble:
        """The agent says no more than that it did not sign; what it holds says more."""
        held = self.keys()
        blob = sshkey.blob_of(public)
        key = f"key {sshkey.fingerprint(blob)}"
        if not held:
            return lists_no_key()
        if blob not in {each.blob for each in held}:
            return NotThere(f"ssh-agent does not hold {key}", "add it with ssh-add")
        if public.key_type is KeyType.SK_ED25519 and was_waiting:
            return AgentTrouble(f"the security key was not touched in time ({key})", "try again")
        if public.key_type is KeyType.SK_ED25519:
            what = f"ssh-agent could not sign with {key}"
            hint = "is it plugged in? it may want a PIN, or be for certain hosts only (ssh-add -h)"
            return AgentTrouble(what, hint)
        what = f"ssh-agent refuses to sign with {key}"
        hint = "it is for certain hosts only (ssh-add -h), or its use was not confirmed (-c)"
        return AgentTrouble(what, hint)


def lists_no_key() -> NotThere:
    """A locked agent does not say that it is locked."""
    hint = "unlock it with 'ssh-add -X', or add your key with ssh-add"
    return NotThere("ssh-agent lists no key: it is locked, or empty", hint)


@dataclass(slots=True)
class _Waiting:
    """Whether the agent takes so long that it must be waiting for a person."""

    key_type: KeyType
    tell: Tell | None
    is_told: bool = False

    def watch(self, connection: socket.socket) -> None:
        ready, _, _ = select.select([connection], [], [], PATIENCE_S)
        if ready:
            return
        self.is_told = True
        if self.tell is not None:
            self.tell(_TOUCH if self.key_type is KeyType.SK_ED25519 else _CONFIRM)


def _signature(answer: Reader, key_type: KeyType) -> Signature:
    """Raises Torn."""
    inside = Reader(answer.string())
    answer.end()
    algorithm, value = inside.string(), inside.string()
    if algorithm != sshkey.ALGORITHMS[key_type]:
        raise Torn("a signature by another algorithm")
    if len(value) != SIGNATURE_SIZE:
        raise Torn(f"a signature of {len(value)} bytes")
    touch = (inside.byte(), inside.number()) if key_type is KeyType.SK_ED25519 else (0, 0)
    inside.end()
    return Signature(value, *touch)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """What a connection or an answer can suffer, in words. Passes _Refused on."""
    try:
        yield
    except Torn as torn:
        raise AgentTrouble(f"ssh-agent answers what makes no sense ({torn})", _RESTART) from None
    except TimeoutError:
        raise AgentTrouble("ssh-agent did not answer in time", _RESTART) from None
    except OSError as error:
        reason = (error.strerror or "it hung up").lower()
        raise AgentTrouble(f"the connection to ssh-agent broke: {reason}", _RESTART) from None

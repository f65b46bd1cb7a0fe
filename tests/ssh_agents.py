"""SSH agents for tests: OpenSSH's own, and one that says and does what a test wants of it."""

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from keys.sshkey import Reader, string
from spa_protocol import seal, sshsig
from spa_protocol.layout import KEY_SIZE

SK_NAME = b"sk-ssh-ed25519@openssh.com"
SK_PROVIDERS = (
    os.environ.get("SPA_TEST_SK_PROVIDER", ""),
    str(Path(__file__).parent.parent / "build" / "sk-dummy.so"),  # by scripts/prepare test
    "/usr/lib/openssh/regress/misc/sk-dummy/sk-dummy.so",  # Debian: openssh-tests
)


def sk_provider() -> str | None:
    """OpenSSH's own security key in software, where it is installed."""
    return next((path for path in SK_PROVIDERS if path and Path(path).exists()), None)


def ssh_keygen(path: Path, *options: str, kind: str = "ed25519") -> Path:
    """A new SSH key without a passphrase; the path of its private half."""
    argv = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", f"{path.name}@test", "-f", str(path)]
    subprocess.run([*argv, *options], check=True, capture_output=True)
    return path


def public_half(path: Path) -> Path:
    return Path(f"{path}.pub")


@dataclass(frozen=True)
class RealAgent:
    """An ssh-agent of OpenSSH's, and the environment in which programs find it."""

    socket: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"SSH_AUTH_SOCK": str(self.socket)}

    def ssh_add(self, *arguments: str | Path, text: str = "", **environment: str) -> None:
        subprocess.run(
            ["ssh-add", "-q", *map(str, arguments)],
            env={**os.environ, **self.environment, **environment},
            input=text,
            text=True,
            capture_output=True,
            check=True,
            start_new_session=True,
        )

    def lock(self, word: str = "word") -> None:
        """What `ssh-add -x` does, which wants a terminal."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.socket))
            connection.sendall(string(b"\x16" + string(word.encode())))
            assert connection.recv(5) == b"\0\0\0\1\6"


@contextmanager
def real_agent(
    directory: Path, environment: Mapping[str, str] | None = None, *, prefix: Sequence[str] = ()
) -> Iterator[RealAgent]:
    """Runs one; `environment` is its own, for a program that asks for confirmation."""
    path = directory / "ssh-agent"
    allowed = f"/usr/lib*/*,/usr/local/lib*/*,{sk_provider() or ''}"
    process = subprocess.Popen(
        [*prefix, "ssh-agent", "-D", "-a", str(path), "-P", allowed],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **(environment or {})},
    )
    try:
        deadline = time.monotonic() + 5
        while not path.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield RealAgent(path)
    finally:
        process.terminate()
        process.wait()


@dataclass(frozen=True)
class SecurityKey:
    """An Ed25519 security key by openssh's PROTOCOL.u2f, made of a seed."""

    seed: bytes = bytes(range(KEY_SIZE))
    application: bytes = b"ssh:"

    @property
    def public(self) -> bytes:
        return seal.signing_public(self.seed)

    @property
    def blob(self) -> bytes:
        return string(SK_NAME) + string(self.public) + string(self.application)

    def sign(self, data: bytes, *, flags: int = 1, counter: int = 7) -> bytes:
        """The signature as an agent hands it over."""
        message = sshsig.security_key_message(data, flags, counter)
        touch = bytes([flags]) + counter.to_bytes(4)
        return string(SK_NAME) + string(seal.sign(message, self.seed)) + touch


Respond = Callable[[bytes], bytes | None]


@dataclass
class FakeAgent:
    """Answers each request as it is told to; None hangs up. Remembers the requests.

    With `hangs_up` it does so after each answer.
    """

    path: Path
    respond: Respond
    hangs_up: bool = False
    heard: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._run)

    @property
    def environment(self) -> dict[str, str]:
        return {"SSH_AUTH_SOCK": str(self.path)}

    def __enter__(self) -> "FakeAgent":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_UNIX) as last, suppress(OSError):
            last.connect(str(self.path))
            last.sendall(b"end")
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection, suppress(OSError):
                if self._serve(connection):
                    return

    def _serve(self, connection: socket.socket) -> bool:
        """Whether it is to end."""
        while head := connection.recv(4):
            if head == b"end":
                return True
            request = connection.recv(int.from_bytes(head), socket.MSG_WAITALL)
            self.heard.append(request)
            answer = self.respond(request)
            if answer is None:
                return False
            connection.sendall(answer)
            if self.hangs_up:
                return False
        return False


def holding(key: SecurityKey, *, after_s: float = 0.0, flags: int = 1) -> Respond:
    """An agent that holds one security key, which is touched after so many seconds."""

    def respond(request: bytes) -> bytes:
        if request[0] == 11:
            return string(b"\x0c" + (1).to_bytes(4) + string(key.blob) + string(b"yubi"))
        reader = Reader(request[1:])
        assert reader.string() == key.blob
        data = reader.string()
        assert reader.number() == 0
        time.sleep(after_s)
        return string(b"\x0e" + string(key.sign(data, flags=flags)))

    return respond

"""An address to listen at, as a configuration has it: 127.0.0.1:9062, [::1]:9062."""

from dataclasses import dataclass
from ipaddress import ip_address

from spa_protocol.layout import Address


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """An IP address and a TCP port."""

    address: Address
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"

    @classmethod
    def parse(cls, text: str, *, beyond_loopback: bool = False) -> "ListenAddress":
        """From what `str` gives. Raises ValueError, whose message says what is wrong.

        Unless `beyond_loopback`, only this host can connect to it.
        """
        host, _, port = text.rpartition(":")
        is_bracketed = host.startswith("[") and host.endswith("]")
        try:
            address = ip_address(host[1:-1] if is_bracketed else host)
        except ValueError:
            raise ValueError(_expected(text)) from None
        if not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= 65535:
            raise ValueError(_expected(text))
        if is_bracketed != (address.version == 6):
            raise ValueError(_expected(text))
        if not address.is_loopback and not beyond_loopback:
            raise ValueError(
                f"{text} can be reached from other hosts; use 127.0.0.1 or ::1, or set"
                " `metrics_beyond_loopback = true`"
            )
        return cls(address, int(port))


def _expected(text: str) -> str:
    return f'{text!r} is no address and port; write it like "127.0.0.1:9062" or "[::1]:9062"'

"""How knocks reach the daemon: the kernel's copies (nflog), an interface, or a file of packets.

Nobody listens: `datagram.py` says what every capture yields, `headers.py` and `links.py` read the
bytes around a payload and are pure. Errors here are for an operator: one sentence, lower case.
"""


class CaptureError(Exception):
    """A capture that cannot be opened or read. The message says what went wrong and what to do."""

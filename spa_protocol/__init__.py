"""What the two sides of spa1 say to each other: bytes in, values out.

Nothing here opens a socket or a file, reads a clock or writes a log: whoever calls passes the bytes
and the time. The specification is docs/protocol.md, and tests/vectors/ holds its test vectors.
"""

__version__ = "0.1.0"

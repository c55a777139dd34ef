"""Keep TLS out of proxied connections, so that a trigger can see the statements that pass.

PostgreSQL clients ask for encryption with a packet of its own; MySQL and MariaDB servers offer it by a bit of their
greeting. Both sides fall back to plain text where the other does not have it.
"""

from __future__ import annotations

from typing import Final

__all__ = ["asks_for_encryption", "without_tls_offer"]

POSTGRESQL_REQUESTS: Final = (
    bytes.fromhex("00000008 04d2162f"),  # SSLRequest
    bytes.fromhex("00000008 04d21630"),  # GSSENCRequest
)
CLIENT_SSL: Final = 0x08
"""The bit of the second byte of the lower capability flags."""


def asks_for_encryption(first: bytes) -> bool:
    """Whether a client's first bytes are PostgreSQL's question, to be answered by a single `N`."""
    return first in POSTGRESQL_REQUESTS


def without_tls_offer(first: bytes) -> bytes:
    """A server's first bytes with the offer of TLS taken out, where they are MySQL's handshake packet, version 10.

    Packet: length (3 bytes), sequence number, version, server name up to NUL, connection id (4), salt (8), NUL,
    lower capability flags (2).
    """
    is_greeting = len(first) > 5 and int.from_bytes(first[:3], "little") <= len(first) - 4 and first[3:5] == b"\x00\x0a"
    if not is_greeting:
        return first
    flags = first.index(b"\x00", 5) + 1 + 4 + 8 + 1
    return first[: flags + 1] + bytes([first[flags + 1] & ~CLIENT_SSL]) + first[flags + 2 :]

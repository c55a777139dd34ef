"""How a process calls itself where it holds a lease."""

from __future__ import annotations

import os
import socket

__all__ = ["process_owner"]


def process_owner(role: str) -> str:
    """A name for leases that this process holds: for people who read the tables; no decision rests on it."""
    return f"{socket.gethostname()[:60]}:{os.getpid()}:{role}"

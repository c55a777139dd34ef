"""Databases of runs that died before they could drop them: recognised by name, dropped at the next run's start."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from bench import engines
from bench.servers import probe, server_url

__all__ = ["PREFIX", "alive", "drop_leftovers", "owner_pid", "unique_name"]

PREFIX: Final = "crosstie_test_"
SWEEP_LOCK: Final = "crosstie_test_sweep"


def unique_name() -> str:
    """A database name that says which process owns it (within PostgreSQL's 63 bytes)."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    return f"{PREFIX}{_machine()}_{os.getpid()}_{worker}_{secrets.token_hex(4)}"


def owner_pid(name: str) -> int | None:
    """The process that made the database; None for another machine's, or one that is no test's."""
    machine, _, rest = name.removeprefix(PREFIX).partition("_")
    pid = rest.partition("_")[0]
    return int(pid) if name.startswith(PREFIX) and machine == _machine() and pid.isdigit() else None


def drop_leftovers() -> list[str]:
    """Drop the databases of dead runs of this machine, and return their names.

    Safe beside other runs: databases of living processes stay, and one run at a time sweeps a server.
    """
    return [name for kind in ("postgresql", "mariadb") if probe(kind).failure is None for name in _sweep(kind)]


def _sweep(kind: engines.ServedKind) -> Iterator[str]:
    with closing(engines.connect(engines.server_config(kind, server_url(kind)))) as admin:
        with closing(admin.cursor()) as cursor:
            if not _locked(kind, cursor):
                return
            cursor.execute(
                "SELECT datname FROM pg_database" if kind == "postgresql" else "SHOW DATABASES",
            )
            names = [str(row[0]) for row in cursor.fetchall()]
        for name in names:
            pid = owner_pid(name)
            if pid is not None and not alive(pid):
                engines.drop(kind, admin, name)
                yield name


def _locked(kind: engines.ServedKind, cursor: Any) -> bool:
    """Whether this session now holds the sweep's lock; it is released with the connection."""
    if kind == "postgresql":
        cursor.execute("SELECT pg_try_advisory_lock(hashtext(%s))", [SWEEP_LOCK])
    else:
        cursor.execute("SELECT get_lock(%s, 0)", [SWEEP_LOCK])
    return bool(cursor.fetchone()[0])


def _machine() -> str:
    """One space of process numbers: a pid means nothing in another container or on another machine."""
    space = Path("/proc/self/ns/pid")
    place = f"{socket.gethostname()}:{space.readlink() if space.exists() else ''}"
    return hashlib.sha256(place.encode()).hexdigest()[:6]


def alive(pid: int) -> bool:
    """Whether there is a process of this number, whoever's it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process: alive
        return True
    return True

"""Audits take little from databases that serve others: few readers at once, and none while there is a press.

A reader's token is a row of `crosstie_tick`, held under a lease in each database that is read and has the table.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import sqlalchemy as sa

from crosstie.orm.configuration import AuditSettings
from crosstie.orm.database import Database
from crosstie.orm.errors import NoSuchTable
from crosstie.workers import tick
from crosstie.workers.tick import Tick

__all__ = ["press", "take_tokens"]


def take_tokens(databases: Iterable[Database], *, concurrency: int, owner: str, lease_s: float) -> list[Tick] | None:
    """A token of each of these databases; None where one of them has no reader's place left.

    Whoever takes them renews and releases them. Raises DatabaseUnavailable.
    """
    taken: list[Tick] = []
    for database in databases:
        if database.settings.read_only:
            continue
        try:
            places = (
                tick.claim(database, f"audit-reader-{number}", 0, owner=owner, lease_s=lease_s)
                for number in range(1, concurrency + 1)
            )
            token = next((one for one in places if one is not None), None)
        except NoSuchTable:
            continue  # nobody else could see a token there
        if token is None:
            for one in taken:
                tick.release(one)
            return None
        taken.append(token)
    return taken


def press(database: Database, settings: AuditSettings) -> str | None:
    """Why nothing should be read here just now; None where it may. Raises DatabaseUnavailable.

    A replica's lag is known to a PostgreSQL primary alone.
    """
    running, lag = _RUNNING.get(database.kind), _LAG.get(database.kind)
    if settings.max_running is not None and running is not None:
        found = int(database.rows(sa.text(running))[0][-1])
        if found > settings.max_running:
            return f"{found} statements are running in {database.name!r} (audit.max_running: {settings.max_running})"
    if settings.max_lag_s is not None and lag is not None:
        behind_s = float(database.rows(sa.text(lag))[0][0])
        if behind_s > settings.max_lag_s:
            return f"a replica of {database.name!r} lags {behind_s:.0f} s (audit.max_lag_s: {settings.max_lag_s:g})"
    return None


_THREADS: Final = "SHOW GLOBAL STATUS LIKE 'Threads_running'"
_RUNNING: Final = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND datname = current_database()"
    " AND pid <> pg_backend_pid()",
    "mysql": _THREADS,
    "mariadb": _THREADS,
}
_LAG: Final = {"postgresql": "SELECT COALESCE(MAX(EXTRACT(EPOCH FROM replay_lag)), 0) FROM pg_stat_replication"}

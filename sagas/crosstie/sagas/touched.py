"""Which rows unresolved sagas have in their hands: what an audit must not call an orphan yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import NoSuchTable
from crosstie.outbox.tables import saga as records
from crosstie.sagas.image import key_text, load

__all__ = ["touched_keys"]

_MARGIN_MS: Final = 10_000


def touched_keys(database_name: str, *, since_ms: int) -> set[tuple[str, tuple[str, ...]]]:
    """(table, primary key) of each row that a branch in this database writes whose saga is open or has ended since.

    `since_ms` is by this database's clock. Keys are spelt by `key_text`, alike for every database. A branch's record
    becomes visible in the same commit as its writes, so a row that can be seen has its record here; what is owed to a
    branch is in the records of its homes, so all writable databases are asked. Raises DatabaseUnavailable, and
    NoSuchTable where `crosstie init` has not run here.
    """
    database = ConnectionManager.get(database_name)
    query = sa.select(records.c.undo_log).where(
        records.c.role == "branch",
        sa.or_(
            records.c.state == "applied",
            sa.and_(records.c.state.in_(["done", "undone"]), records.c.updated_at_ms >= since_ms),
        ),
    )
    (now,) = database.rows(sa.select(now_ms()))[0]
    found = set(_keys_in((row.undo_log for row in database.rows(query)), database_name))
    for home in ConnectionManager.names(writable=True):
        # How long ago it was is the same by every clock.
        logs = _owed_logs(ConnectionManager.get(home), now - since_ms + _MARGIN_MS)
        found.update(_keys_in(logs, database_name))
    return found


def _owed_logs(home: Database, within_ms: int) -> list[str]:
    """The redo logs of sagas that owe something, or have settled within this time."""
    settled = sa.and_(records.c.state == "committed", records.c.updated_at_ms >= now_ms() - within_ms)
    query = sa.select(records.c.undo_log).where(
        records.c.mode == "forward", records.c.role == "home", sa.or_(records.c.state == "owed", settled)
    )
    try:
        return [row.undo_log for row in home.rows(query)]
    except NoSuchTable:
        return []  # it is the home of no saga


def _keys_in(logs: Iterable[str], database_name: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for log in logs:
        for entry in load(log):
            if "key" in entry and entry.get("in", database_name) == database_name:
                yield entry["table"], tuple(key_text(value) for value in entry["key"].values())

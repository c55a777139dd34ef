"""Which rows unresolved sagas have in their hands: what an audit must not call an orphan yet."""

from __future__ import annotations

import sqlalchemy as sa

from crosstie.orm.connection import ConnectionManager
from crosstie.outbox.tables import saga as records
from crosstie.sagas.image import key_text, load

__all__ = ["touched_keys"]


def touched_keys(database_name: str, *, since_ms: int) -> set[tuple[str, tuple[str, ...]]]:
    """(table, primary key) of each row that a branch in this database wrote and whose saga is open or has ended since.

    `since_ms` is by this database's clock. Keys are spelt by `key_text`, alike for every database. A branch's record
    becomes visible in the same commit as its writes, so a row that can be seen has its record here. Raises
    DatabaseUnavailable, and NoSuchTable where `crosstie init` has not run.
    """
    database = ConnectionManager.get(database_name)
    query = sa.select(records.c.undo_log).where(
        records.c.role == "branch",
        sa.or_(
            records.c.state == "applied",
            sa.and_(records.c.state.in_(["done", "undone"]), records.c.updated_at_ms >= since_ms),
        ),
    )
    with database.mapped_errors(), database.autocommit.connect() as connection:
        logs = connection.execute(query).scalars().all()
    return {
        (entry["table"], tuple(key_text(value) for value in entry["key"].values()))
        for log in logs
        for entry in load(log)
        if "key" in entry
    }

"""Which rows unresolved sagas have in their hands: what an audit must not judge yet."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.clock import database_now_ms, now_ms
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import NoSuchTable
from crosstie.orm.prepared import Prepared
from crosstie.outbox.tables import saga as records
from crosstie.sagas.image import key_text, load
from crosstie.sagas.preparable import prepared_branches

__all__ = ["outlast_prepared", "touched_keys", "touched_values"]

_MARGIN_MS: Final = 10_000
_PAUSE_S: Final = 0.02
_TOUCHING: Final = Prepared(
    sa.select(records.c.undo_log).where(
        records.c.role == "branch",
        sa.or_(
            records.c.state == "applied",
            sa.and_(
                sa.or_(records.c.state == "done", records.c.state == "undone"),
                records.c.updated_at_ms >= sa.bindparam("since_ms", type_=sa.BigInteger()),
            ),
        ),
    )
)
_OWED: Final = Prepared(
    sa.select(records.c.undo_log).where(
        records.c.mode == "forward",
        records.c.role == "home",
        sa.or_(
            records.c.state == "owed",
            sa.and_(
                records.c.state == "committed",
                records.c.updated_at_ms >= now_ms() - sa.bindparam("within_ms", type_=sa.BigInteger()),
            ),
        ),
    )
)


def touched_keys(database_name: str, *, since_ms: int) -> set[tuple[str, tuple[str, ...]]]:
    """(table, primary key) of each row that a branch in this database writes whose saga is open or has ended since.

    `since_ms` is by this database's clock. Keys are spelt by `key_text`, alike for every database. A branch's record
    becomes visible in the same commit as its writes, so a row that can be seen has its record here; what is owed to a
    branch is in the records of its homes, so all writable databases are asked. Raises DatabaseUnavailable, and
    NoSuchTable where `crosstie init` has not run here.
    """
    return {
        (entry["table"], tuple(key_text(value) for value in entry["key"].values()))
        for entry in _entries_since(database_name, since_ms)
    }


def touched_values(database_name: str, table: str, column: str, *, since_ms: int) -> set[str] | None:
    """The values, spelt alike, that such a saga has put into a column or taken from it; None where nobody can tell.

    Of a row that is inserted or deleted its value counts, of one that is updated both, where they differ. Rows of
    branches that commit in two phases are in no record. Raises as `touched_keys` does.
    """
    database = ConnectionManager.get(database_name)
    recent = sa.select(records.c.saga_id).where(
        records.c.mode == "two_phase", records.c.role == "branch", records.c.updated_at_ms >= since_ms
    )
    # In this order: what is not prepared any more has its record.
    if prepared_branches(database) or database.rows(recent.limit(1)):
        return None
    found: set[str] = set()
    for entry in _entries_since(database_name, since_ms):
        if entry["table"].lower() != table.lower():
            continue
        images = [image for image in (entry.get("before"), entry.get("after")) if image is not None]
        values = [image[column] for image in images if column in image]
        if not values and entry["op"] not in {"update", "increment"}:
            return None  # no image of a row that has come or gone
        found.update(key_text(value) for value in values if value is not None)
    return found


def outlast_prepared(database_name: str, *, within_s: float) -> bool:
    """Wait until the branches of sagas that are prepared in this database now have been ended; whether they have.

    Those that are prepared meanwhile are not waited for. Raises DatabaseUnavailable.
    """
    database = ConnectionManager.get(database_name)
    ends_at = time.monotonic() + within_s
    waited_for = set(prepared_branches(database) or ())
    while waited_for and time.monotonic() < ends_at:
        time.sleep(_PAUSE_S)
        waited_for &= set(prepared_branches(database) or ())
    return not waited_for


def _entries_since(database_name: str, since_ms: int) -> Iterator[dict[str, Any]]:
    database = ConnectionManager.get(database_name)
    now = database_now_ms(database)
    yield from _entries_in(_logs(database, _TOUCHING, since_ms=since_ms), database_name)
    for home in ConnectionManager.names(writable=True):
        # How long ago it was is the same by every clock.
        try:
            logs = _logs(ConnectionManager.get(home), _OWED, within_ms=now - since_ms + _MARGIN_MS)
        except NoSuchTable:
            continue  # it is the home of no saga
        yield from _entries_in(logs, database_name)


def _logs(database: Database, query: Prepared, **values: int) -> list[str]:
    return [log for (log,) in database.prepared(query, values).rows]


def _entries_in(logs: Iterable[str], database_name: str) -> Iterator[dict[str, Any]]:
    for log in logs:
        for entry in load(log):
            if "key" in entry and entry.get("in", database_name) == database_name:
                yield entry

"""What repairs took, as rows of `crosstie_quarantine`, each written in the transaction that took it.

A row has the child's whole image, for people, and the log by which its repair is undone, as a branch of a saga is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.outbox.tables import quarantine
from crosstie.sagas import image
from crosstie.sagas.capture import uncaptured_reasons, undo_log
from crosstie.sagas.image import Image

__all__ = ["Repair", "Taken", "claim", "insert", "repairs_in", "require_quarantine", "store_error", "taken_by"]


@dataclass(frozen=True)
class Taken:
    """One row of the quarantine; `notes` are what the undo cannot take back."""

    database: str
    repair_id: str
    number: int
    reference: str
    policy: str
    child_key: dict[str, Any]
    parent_key: str
    undo_log: list[dict[str, Any]]
    notes: list[str]
    restored: bool


@dataclass(frozen=True)
class Repair:
    """The rows that one repair took in one database; `at_ms` is when it took the first."""

    database: str
    repair_id: str
    reference: str
    policy: str
    at_ms: int
    rows: int
    restored: int


def require_quarantine(database: Database) -> str | None:
    """Why nothing can be taken here; None where it can. Raises DatabaseUnavailable."""
    if database.settings.read_only:
        return f"the connection {database.name!r} is configured read_only"
    if not _is_there(database):
        return f"{database.name!r} has no table {quarantine.name}: run `crosstie init`"
    return None


def _is_there(database: Database) -> bool:
    with database.mapped_errors(), database.autocommit.connect() as connection:
        return sa.inspect(connection).has_table(quarantine.name)


def insert(
    tx: LocalTransaction,
    repair_id: str,
    number: int,
    *,
    reference: str,
    policy: str,
    child_key: dict[str, Any],
    parent_key: object,
    row: Image | None,
) -> None:
    """Put into the quarantine what this transaction has written, from its undo log."""
    values = {
        "repair_id": repair_id,
        "number": number,
        "reference": reference,
        "policy": policy,
        "child_key": json.dumps(child_key, default=str, ensure_ascii=False),
        "parent_key": str(parent_key),
        "image": None if row is None else json.dumps(row, ensure_ascii=False),
        "undo_log": image.dump(undo_log(tx)),
        "notes": json.dumps(list(dict.fromkeys(uncaptured_reasons(tx))), ensure_ascii=False),
    }
    with tx.mapped_errors(), tx.internal():
        tx.connection.execute(sa.insert(quarantine).values(values))


def taken_by(repair_id: str) -> list[Taken]:
    """What a repair took, in whatever writable database, the latest first. Raises DatabaseUnavailable."""
    columns = quarantine.c
    query = sa.select(quarantine).where(columns.repair_id == repair_id).order_by(columns.number.desc())
    return [
        Taken(
            database=database.name,
            repair_id=row.repair_id,
            number=row.number,
            reference=row.reference,
            policy=row.policy,
            child_key=json.loads(row.child_key),
            parent_key=row.parent_key,
            undo_log=image.load(row.undo_log),
            notes=json.loads(row.notes),
            restored=row.state == "restored",
        )
        for database in _databases()
        for row in database.rows(query)
    ]


def _databases() -> Sequence[Database]:
    found = map(ConnectionManager.get, ConnectionManager.names(writable=True))
    return [database for database in found if _is_there(database)]


def repairs_in(database_name: str) -> list[Repair]:
    """The repairs that have taken something here, the latest first. Raises DatabaseUnavailable."""
    database = ConnectionManager.get(database_name)
    if not _is_there(database):
        return []
    columns = quarantine.c
    at_ms = sa.func.min(columns.repaired_at_ms).label("at_ms")
    query = (
        sa.select(
            columns.repair_id,
            columns.reference,
            columns.policy,
            at_ms,
            sa.func.count().label("rows"),
            sa.func.sum(sa.case((columns.state == "restored", 1), else_=0)).label("restored"),
        )
        .group_by(columns.repair_id, columns.reference, columns.policy)
        .order_by(at_ms.desc(), columns.repair_id)
    )
    return [
        Repair(database_name, row.repair_id, row.reference, row.policy, int(row.at_ms), int(row[4]), int(row.restored))
        for row in database.rows(query)
    ]


def claim(tx: LocalTransaction, taken: Taken) -> bool:
    """Mark it restored in this transaction, which restores it; False where somebody else has."""
    changed = tx.connection.execute(
        sa.update(quarantine)
        .where(_this(taken), quarantine.c.state == "repaired")
        .values(state="restored", restored_at_ms=now_ms(), error=None)
    )
    return changed.rowcount == 1


def store_error(tx: LocalTransaction, taken: Taken, error: str) -> None:
    """Keep why it could not be restored."""
    tx.connection.execute(sa.update(quarantine).where(_this(taken)).values(error=error))


def _this(taken: Taken) -> sa.ColumnElement[bool]:
    return sa.and_(quarantine.c.repair_id == taken.repair_id, quarantine.c.number == taken.number)

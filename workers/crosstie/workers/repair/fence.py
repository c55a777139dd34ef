"""A missing parent is kept missing while its children are repaired: whoever inserts it waits until the fence is gone.

No database can lock a row for another, and a row that is not there cannot be locked at all. InnoDB locks the gap in
which it would lie. PostgreSQL makes whoever inserts a key wait for an earlier insert of it that is undecided: a
placeholder, always rolled back. Where constraints refuse the placeholder, the table is closed to writers for so long.
SQLite has one writer, and the fence is it. All of it is one open transaction, so a crash leaves nothing. Where parents
are in several databases, each has such a fence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.database import Database
from crosstie.orm.errors import IntegrityViolation
from crosstie.orm.integrity import Key
from crosstie.orm.integrity.parent import ParentColumn
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.statement_limit import limit_transaction
from crosstie.sagas.lock_wait import limit_lock_waits
from crosstie.workers.repair.errors import ParentPresent

__all__ = ["Fence", "fenced", "one_file"]


class Fence:
    """One that stands, in each database; `require_standing` makes sure that the servers still hold it."""

    def __init__(self, transactions: Sequence[LocalTransaction]) -> None:
        self._transactions = transactions

    def require_standing(self) -> None:
        """Raise DatabaseUnavailable where a connection that holds the fence was lost."""
        for tx in self._transactions:
            with tx.mapped_errors():
                tx.connection.execute(sa.select(1))


def one_file(first: Database, second: Database) -> bool:
    """Whether both are one SQLite file, whose only writer cannot wait for itself."""
    return first.kind == "sqlite" == second.kind and first.settings.database == second.settings.database


@contextmanager
def fenced(parent: ParentColumn, key: Key, *, child: Database) -> Iterator[Fence]:
    """Let no parent of this key be committed, wherever it may be, until the block ends.

    It need not notice one that is there already: look once it stands. A child in the parent's own SQLite file is
    fenced by the transaction that writes it. Raises ParentPresent, LockTimeout where somebody is about to write such a
    parent or holds other locks in the way for longer than `saga.lock_timeout_s`, DatabaseUnavailable.
    """
    # Two connections may lead to one database, where the second fence would wait for the first.
    places = {(one.database.settings.address(), one.end.table.fullname): one for one in parent.parents}
    with ExitStack() as stack:
        outside = [one for one in places.values() if not one_file(one.database, child)]
        yield Fence([stack.enter_context(_fenced(one, key)) for one in outside])


@contextmanager
def _fenced(parent: ParentColumn, key: Key) -> Iterator[LocalTransaction]:
    tx = LocalTransaction(parent.database, visible=False, before_begin=_BEFORE.get(parent.database.kind))
    try:
        with tx.mapped_errors():
            limit_lock_waits(tx)
            limit_transaction(tx)
            _FENCES[parent.database.kind](tx, parent, key)
        yield tx
    finally:
        tx.rollback()


def _repeatable_read(connection: sa.Connection) -> None:
    """For the next transaction alone: under READ COMMITTED, InnoDB locks no gap."""
    driver: Any = connection.connection.dbapi_connection
    with driver.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")


def _lock_gap(tx: LocalTransaction, parent: ParentColumn, key: Key) -> None:
    typed = parent.storage.typed(parent.end.column)
    query: sa.Select[Any] = sa.select(sa.literal_column("1")).select_from(parent.end.table)
    for raw in parent.storage.spellings(key):
        tx.connection.execute(query.where(typed == raw).with_for_update()).all()


def _insert_placeholder(tx: LocalTransaction, parent: ParentColumn, key: Key) -> None:
    spellings = parent.storage.spellings(key)
    if not (spellings and _is_unique(tx, parent)):
        _close_table(tx, parent)
        return
    columns = _required(tx, parent)
    for raw in spellings:
        try:
            with tx.mapped_errors(), tx.connection.begin_nested():
                _insert(tx, parent, columns, raw)
        except IntegrityViolation:
            if not parent.absent([key]):
                raise ParentPresent from None
            _close_table(tx, parent)
            return


def _insert(tx: LocalTransaction, parent: ParentColumn, columns: dict[str, str], raw: Any) -> None:
    """One row with the key and what the table insists on. Names and types are the server's own, quoted by it."""
    names = tx.connection.dialect.identifier_preparer
    listed = ", ".join(names.quote(name) for name in columns)
    values = ", ".join(columns.values())
    into = f"{names.format_table(parent.end.table)} ({listed})"
    # SQLAlchemy cannot say OVERRIDING, without which an identity that is generated always takes no value.
    statement = f"INSERT INTO {into} OVERRIDING SYSTEM VALUE VALUES ({values})"  # noqa: S608 - quoted by the server
    tx.connection.exec_driver_sql(statement, (raw if isinstance(raw, bytes) else str(raw),))


def _required(tx: LocalTransaction, parent: ParentColumn) -> dict[str, str]:
    """The key's column, and those that take no NULL and have no default, with an expression for each."""
    rows = tx.connection.execute(
        sa.text(
            "SELECT att.attname, format_type(att.atttypid, att.atttypmod), typ.typcategory, typ.typname,"
            " att.attname = :key FROM pg_attribute att JOIN pg_type typ ON typ.oid = att.atttypid"
            " WHERE att.attrelid = to_regclass(:name) AND att.attnum > 0 AND NOT att.attisdropped"
            " AND (att.attname = :key OR (att.attnotnull AND NOT att.atthasdef AND att.attidentity = ''))"
        ),
        {
            "name": tx.connection.dialect.identifier_preparer.format_table(parent.end.table),
            "key": parent.end.column.name,
        },
    )
    return {
        name: f"CAST(%s AS {kind})"
        if is_key
        else _PLACEHOLDERS.get(base, _BY_CATEGORY.get(category, "NULL")).format(kind)
        for name, kind, category, base, is_key in rows
    }


_BY_CATEGORY: Final = {
    "N": "CAST('0' AS {})",
    "S": "CAST('' AS {})",
    "B": "CAST('false' AS {})",
    "D": "CAST(now() AS {})",
    "T": "CAST('0' AS {})",
    "A": "CAST('{{}}' AS {})",
    "E": "(enum_range(CAST(NULL AS {}))) [1]",
}
"""A value of a type, by the letter of its category in pg_type; one that is refused closes the table instead."""
_PLACEHOLDERS: Final = {
    "uuid": "CAST('00000000-0000-0000-0000-000000000000' AS {})",
    "json": "CAST('{{}}' AS {})",
    "jsonb": "CAST('{{}}' AS {})",
    "bytea": "CAST('' AS {})",
}


def _is_unique(tx: LocalTransaction, parent: ParentColumn) -> bool:
    """Whether two rows of one key exclude each other at once: by a unique index on the column alone."""
    found = tx.connection.execute(
        sa.text(
            "SELECT 1 FROM pg_index ind JOIN pg_attribute att"
            " ON att.attrelid = ind.indrelid AND att.attnum = ind.indkey[0]"
            " WHERE ind.indrelid = to_regclass(:name) AND att.attname = :key AND ind.indisunique AND ind.indimmediate"
            " AND ind.indisvalid AND ind.indnkeyatts = 1 AND ind.indpred IS NULL AND ind.indexprs IS NULL"
        ),
        {
            "name": tx.connection.dialect.identifier_preparer.format_table(parent.end.table),
            "key": parent.end.column.name,
        },
    )
    return found.first() is not None


def _close_table(tx: LocalTransaction, parent: ParentColumn) -> None:
    """Readers go on; writers wait, and this waits for those that are at it."""
    table = tx.connection.dialect.identifier_preparer.format_table(parent.end.table)
    tx.connection.exec_driver_sql(f"LOCK TABLE {table} IN SHARE MODE")


def _be_the_writer(tx: LocalTransaction, parent: ParentColumn, key: Key) -> None:
    """The transaction has begun as one that writes."""
    del tx, parent, key


_BEFORE: Final[dict[str, Callable[[sa.Connection], object]]] = {
    "mysql": _repeatable_read,
    "mariadb": _repeatable_read,
}
_FENCES: Final[dict[str, Callable[[LocalTransaction, ParentColumn, Key], None]]] = {
    "sqlite": _be_the_writer,
    "postgresql": _insert_placeholder,
    "mysql": _lock_gap,
    "mariadb": _lock_gap,
}

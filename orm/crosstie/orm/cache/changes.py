"""Changes of cached rows: told to Redis by the transaction that makes them, and once more, at once, after it.

The layer above writes the word into the database's own outbox and carries it to Redis, whatever fails; this layer knows
nothing of outboxes, and takes a carrier. What it does by itself after the commit is the short way, and may fail.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import sqlalchemy as sa

from crosstie.orm.cache import outage
from crosstie.orm.cache.policy import key_text
from crosstie.orm.cache.redis_rows import TableKeys
from crosstie.orm.cache.targets import cached_columns, may_be_cached
from crosstie.orm.errors import InvalidQuery, ModelDefinitionError
from crosstie.orm.faults import fault_point
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.mapping import TableMapping, mapping_of
from crosstie.orm.routing import router
from crosstie.orm.transaction import transaction
from crosstie.orm.watch import RowChange, watch_with

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord

__all__ = ["ChangeCarrier", "Changed", "carry_changes_with", "forget", "forget_at_once"]

Changed = Mapping[str, TableKeys]
"""Which rows have changed, by table."""

NAMED_KEYS: Final = 500
"""Where a transaction changes more rows of a table, all of the table's are forgotten, and the event stays small."""

_CHANGED: Final = "orm.cache.changed"


class ChangeCarrier(Protocol):
    """Takes word of changed rows to Redis."""

    def __call__(self, tx: LocalTransaction, changed: Changed) -> None:
        """These rows change in `tx`, which is about to commit; told if and only if it does."""


_carriers: list[ChangeCarrier] = []


def carry_changes_with(carrier: ChangeCarrier) -> None:
    """Have changes told by this carrier, in place of any other."""
    _carriers[:] = [carrier]


def forget(model: type[ActiveRecord], *keys: Any) -> None:
    """Say that rows of a cached model have changed, which the ORM has not written: those with these keys, or all.

    In the open transaction or saga, if there is one: call it where the rows are written. A key is a value of the field
    that cached relations refer to. Raises InvalidQuery for another one, and for a model that no such relation leads to.
    """
    mapping = mapping_of(model)
    name, table = mapping.connection, mapping.table.name
    columns = cached_columns(table, name)
    if not columns:
        raise InvalidQuery(f"forget() expected a model that a relation with cache leads to, and found {model!r}.")
    router.note_write(name)
    if not outage.is_configured():
        return
    named = _named_by(mapping, columns, keys) if keys else None
    with transaction(name) as tx:
        first = not tx.written
        tx.mark_written()
        if first and tx.depth:
            # As for an event: MySQL has no transaction to commit before a statement has touched a table, and this
            # savepoint may roll back.
            with tx.internal():
                tx.connection.execute(sa.select(mapping.key[0].column).limit(1))
        _note(tx, table, named)


def forget_at_once(database: str, changed: Changed) -> None:
    """The short way: ask Redis to forget, once; where that fails, the carrier's word does it later."""
    fault_point("cache.forgetting")
    breaker = outage.breaker()
    if breaker is not None:
        breaker.ask(lambda rows: rows.forget(database, changed))


class _Watcher:
    """Hears of every write to one cached model."""

    def __init__(self, mapping: TableMapping) -> None:
        self.fields: Collection[str] = mapping.fields.keys()

    def changed(self, tx: LocalTransaction, mapping: TableMapping, changes: Sequence[RowChange]) -> None:
        """Note the rows that were there before: that there is no row is never cached."""
        table = mapping.table.name
        before = [change.before for change in changes if change.before is not None]
        columns = cached_columns(table, tx.database.name)
        if not before or not columns:
            return
        fields = [mapping.field_of_column.get(column) for column in columns]
        if None in fields:  # another model of the table, without the column by which the rows are found
            _note(tx, table, None)
            return
        _note(
            tx,
            table,
            {
                field.column.name: [key_text(values[field.name]) for values in before]
                for field in fields
                if field is not None
            },
        )


def _named_by(mapping: TableMapping, columns: Sequence[str], keys: Sequence[Any]) -> TableKeys:
    """The keys as each of the columns has them; one that is no value of any is refused with InvalidQuery."""
    fields = [mapping.field_of_column.get(column) for column in columns]
    if None in fields:
        return None
    named: dict[str, list[str]] = {column: [] for column in columns}
    for key in keys:
        refusals: list[InvalidQuery] = []
        for field in fields:
            assert field is not None
            try:
                named[field.column.name].append(key_text(field.coerce(key)))
            except InvalidQuery as refusal:
                refusals.append(refusal)
        if len(refusals) == len(fields):
            raise refusals[0]
    return named


def _note(tx: LocalTransaction, table: str, keys: TableKeys) -> None:
    if not _carriers:
        raise ModelDefinitionError(
            f"rows of {table!r} are cached in Redis, and the outbox, which tells the other processes that they have "
            "changed, is not loaded: import crosstie.outbox where the models are defined."
        )
    tx.ledger(_CHANGED).append((table, keys))
    # Registered again after a rolled-back savepoint has cut it away.
    if _tell not in tx.ledger("before_commit"):
        tx.before_commit(_tell)


def _tell(tx: LocalTransaction) -> None:
    noted = tx.ledger(_CHANGED)
    changed = _merged(noted)
    noted.clear()
    _carriers[0](tx, changed)
    # Before the hooks of the application, which may look the row up.
    tx.ledger("after_commit").insert(0, partial(forget_at_once, tx.database.name, changed))


def _merged(noted: Sequence[tuple[str, TableKeys]]) -> Changed:
    merged: dict[str, dict[str, dict[str, None]] | None] = {}
    for table, keys in noted:
        known = merged.setdefault(table, {})
        if keys is None or known is None:
            merged[table] = None
            continue
        for column, texts in keys.items():
            known.setdefault(column, {}).update(dict.fromkeys(texts))
    return {table: _named(columns) for table, columns in merged.items()}


def _named(columns: Mapping[str, Collection[str]] | None) -> TableKeys:
    if columns is None or any(len(texts) > NAMED_KEYS for texts in columns.values()):
        return None
    return {column: list(texts) for column, texts in columns.items()}


def _watcher(mapping: TableMapping) -> _Watcher | None:
    return _Watcher(mapping) if outage.is_configured() and may_be_cached(mapping) else None


watch_with(_watcher)

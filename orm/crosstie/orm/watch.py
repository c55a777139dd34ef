"""Watchers of models: told inside the transaction which rows a write has changed, with values from before and after.

They are declared by the layers above: for change events, copies of columns, caches. A model that nobody watches pays
one comparison for each write. A watched one is always written in a transaction, and its rows are read under lock: what
a watcher hears is what the database holds, and not what an object in memory believes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import sqlalchemy as sa

from crosstie.orm.departure import Departure
from crosstie.orm.errors import ModelDefinitionError
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.mapping import TableMapping
from crosstie.orm.recorder import Rows, WriteRecorder, condition
from crosstie.orm.registry import registry

__all__ = ["RowChange", "Watcher", "observed", "watch_with", "watchers_of"]

PORTION: Final = 1000
"""Rows that one statement reads back."""


@dataclass(frozen=True, slots=True)
class RowChange:
    """One row: its key, and the watched fields by name; `before` is None for a new row, `after` for a deleted one."""

    key: tuple[Any, ...]
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


class Watcher(Protocol):
    """Wants to know of writes to one model."""

    @property
    def fields(self) -> Collection[str]:
        """The fields whose values it wants. An update that changes none of them in a row is not told."""

    def changed(self, tx: LocalTransaction, mapping: TableMapping, changes: Sequence[RowChange]) -> None:
        """These rows were inserted or updated, or are deleted next; an exception rolls the write back.

        A change may hold more fields than were asked for. It can still be taken back: keep what must follow the
        transaction in its ledgers.
        """


_finders: list[Callable[[TableMapping], Watcher | None]] = []
_served: set[str] = set()


def watch_with(find: Callable[[TableMapping], Watcher | None], *, declared_by: str | None = None) -> None:
    """Ask `find` for a watcher of each model, again whenever models have been defined.

    `declared_by` is the attribute by which models ask for it.
    """
    _finders.append(find)
    if declared_by is not None:
        _served.add(declared_by)
    registry.generation += 1


def watchers_of(mapping: TableMapping) -> tuple[Watcher, ...]:
    """Who watches the model. Raises ModelDefinitionError where it asks for a watcher that is not loaded."""
    generation, found = mapping.watchers
    if generation != registry.generation:
        if mapping.model.__publish__ and "__publish__" not in _served:
            raise ModelDefinitionError(
                f"{mapping.model.__qualname__} is declared with __publish__, and what publishes is not loaded: import "
                "crosstie.outbox where the models are defined."
            )
        generation = registry.generation
        found = tuple(watcher for find in _finders if (watcher := find(mapping)) is not None)
        mapping.watchers = generation, found
    return found


@contextmanager
def observed(tx: LocalTransaction | None, mapping: TableMapping) -> Iterator[None]:
    """Have the model's watchers told of the write in this block, beside the transaction's recorder."""
    assert tx is not None, "a watched model is written in a transaction"
    recorder = tx.recorder
    tx.recorder = _Observation(mapping, watchers_of(mapping), recorder)
    try:
        yield
    finally:
        tx.recorder = recorder


class _Pending(NamedTuple):
    token: object
    """The recorder's own."""
    rows: dict[tuple[Any, ...], dict[str, Any]]
    known: Mapping[str, Any] | None
    """What the statement sets in every row, by field; None where only the database knows."""


class _Observation:
    """Watches one write for the watchers, and passes it on to the transaction's recorder."""

    def __init__(self, mapping: TableMapping, watchers: Sequence[Watcher], recorder: WriteRecorder | None) -> None:
        self._mapping = mapping
        self._watchers = watchers
        self._recorder = recorder
        wanted = {name for watcher in watchers for name in watcher.fields}
        self._fields = [field for name, field in mapping.fields.items() if name in wanted]

    def inserted(
        self, tx: LocalTransaction, table: sa.Table, keys: Sequence[tuple[Any, ...]], *, numbered: bool = False
    ) -> None:
        """Tell of new rows."""
        if self._recorder is not None:
            self._recorder.inserted(tx, table, keys, numbered=numbered)
        self._tell(tx, [RowChange(key, None, after) for key, after in self._read_keys(tx, keys)])

    def updating(
        self, tx: LocalTransaction, table: sa.Table, rows: Rows, columns: Collection[str], *, upserting: bool = False
    ) -> object:
        """Read the rows before they change."""
        token = (
            None
            if self._recorder is None
            else self._recorder.updating(tx, table, rows, list(columns), upserting=upserting)
        )
        names = [self._mapping.field_of_column[column].name for column in columns]
        if not any(field.name in names for field in self._fields):
            return _Pending(token, {}, {})
        known = None
        if isinstance(columns, Mapping) and not any(isinstance(v, sa.ClauseElement) for v in columns.values()):
            known = dict(zip(names, columns.values(), strict=True))
        return _Pending(token, dict(self._read(tx, condition(table, rows), lock=True)), known)

    def updated(self, tx: LocalTransaction, token: object) -> None:
        """Tell of the rows that differ now."""
        assert isinstance(token, _Pending)
        if self._recorder is not None:
            self._recorder.updated(tx, token.token)
        self._tell_of_updates(tx, token)

    def deleting(self, tx: LocalTransaction, table: sa.Table, rows: Rows) -> None:
        """Tell of the rows that are deleted next."""
        if self._recorder is not None:
            self._recorder.deleting(tx, table, rows)
        self._tell(
            tx, [RowChange(key, before, None) for key, before in self._read(tx, condition(table, rows), lock=True)]
        )

    def incrementing(self, tx: LocalTransaction, table: sa.Table, rows: Rows, deltas: Mapping[str, Any]) -> object:
        """Read the rows before they change."""
        token = None if self._recorder is None else self._recorder.incrementing(tx, table, rows, deltas)
        names = [self._mapping.field_of_column[column].name for column in deltas]
        if not any(field.name in names for field in self._fields):
            return _Pending(token, {}, {})
        return _Pending(token, dict(self._read(tx, condition(table, rows), lock=True)), None)

    def incremented(self, tx: LocalTransaction, token: object) -> None:
        """Tell of the rows that differ now."""
        assert isinstance(token, _Pending)
        if self._recorder is not None:
            self._recorder.incremented(tx, token.token)
        self._tell_of_updates(tx, token)

    def uncaptured(self, tx: LocalTransaction, reason: str) -> None:
        """For the recorder alone."""
        if self._recorder is not None:
            self._recorder.uncaptured(tx, reason)

    def _tell_of_updates(self, tx: LocalTransaction, pending: _Pending) -> None:
        rows, known = pending.rows, pending.known
        if not rows:
            return
        if known is None:
            after = dict(self._read_keys(tx, list(rows)))
        else:
            after = {key: row | {name: known[name] for name in row if name in known} for key, row in rows.items()}
        self._tell(tx, [RowChange(key, row, after[key]) for key, row in rows.items()])

    def _tell(self, tx: LocalTransaction, changes: Sequence[RowChange]) -> None:
        tx.recorder = self._recorder  # what a watcher writes is another write
        try:
            for watcher in self._watchers:
                concerned = [change for change in changes if _differs(change, watcher.fields)]
                if concerned:
                    watcher.changed(tx, self._mapping, concerned)
        finally:
            tx.recorder = self

    def _read_keys(
        self, tx: LocalTransaction, keys: Sequence[tuple[Any, ...]]
    ) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        for start in range(0, len(keys), PORTION):
            for among in Departure(self._mapping, (), keys[start : start + PORTION]).conditions():
                yield from self._read(tx, among(tx.database), lock=False)

    def _read(
        self, tx: LocalTransaction, where: sa.ColumnElement[bool], *, lock: bool
    ) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        key, fields = self._mapping.key, self._fields
        columns = [field.column for field in (*key, *fields)]
        query = sa.select(*columns).select_from(self._mapping.table).where(where)
        converters = [field.convert for field in (*key, *fields)]
        for row in tx.connection.execute(query.with_for_update() if lock else query):
            values = [v if convert is None else convert(v) for v, convert in zip(row, converters, strict=True)]
            named = {field.name: value for field, value in zip(fields, values[len(key) :], strict=True)}
            yield tuple(values[: len(key)]), named


def _differs(change: RowChange, fields: Collection[str]) -> bool:
    before, after = change.before, change.after
    return before is None or after is None or any(before[name] != after[name] for name in fields)

"""What a branch needs to be undone, taken down while the block runs.

Before-images are read under lock in the transaction that writes, never from objects in memory. After-images are read
back, because a server may round, pad or default what it was given.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, NamedTuple, TypeVar

import sqlalchemy as sa

from crosstie.orm.database import Database
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.prepared import Prepared
from crosstie.orm.recorder import Key, Rows, condition
from crosstie.orm.row import key_matches, key_parameters
from crosstie.outbox import trigger
from crosstie.sagas.errors import SagaError, SagaNotUndoable
from crosstie.sagas.facts import TableFacts, table_facts
from crosstie.sagas.image import Image, decode, encode, plain_key, projection

__all__ = ["BranchRecorder", "HomeRecorder", "uncaptured_reasons", "undo_log", "without_copies"]

_LOG = "saga.undo"
_UNCAPTURED = "saga.uncaptured"
_PORTION: Final = 250
TRIGGER_COLUMNS: Final = "crosstie.trigger_columns"
"""In the `info` of a table: the columns that its triggers write, in the row that fires them, if that is all."""
_FIRES: Final[dict[str, frozenset[str]]] = {
    "insert": frozenset({"insert", "delete"}),
    "update": frozenset({"update"}),
    "upsert": frozenset({"insert", "update", "delete"}),
    "delete": frozenset({"delete", "insert"}),
}
"""What an operation and its undo do to the row."""
_K = TypeVar("_K")


def undo_log(tx: LocalTransaction) -> list[dict[str, Any]]:
    """The undo entries of this transaction so far, in the order of its writes."""
    return tx.ledger(_LOG)


def uncaptured_reasons(tx: LocalTransaction) -> list[str]:
    """What was written here that nobody can undo; a database with such writes must be home."""
    return tx.ledger(_UNCAPTURED)


def _refuse_untransactional(tx: LocalTransaction, table: sa.Table) -> TableFacts | None:
    if not tx.database.capabilities.storage_engines:
        return None
    facts = table_facts(tx.database, tx.bare, table.name, table.schema)
    if not facts.transactional:
        raise SagaNotUndoable(
            f"table {table.name!r} of database {tx.database.name!r} uses the storage engine {facts.engine}, which "
            "keeps what a transaction rolls back. Expected InnoDB: ALTER TABLE … ENGINE=InnoDB, or write it outside "
            "the saga."
        )
    return facts


class HomeRecorder:
    """Watches the database that is expected to be home: it is never undone, so no image is taken."""

    def inserted(
        self, tx: LocalTransaction, table: sa.Table, keys: Sequence[tuple[Any, ...]], *, numbered: bool = False
    ) -> None:
        """Refuse tables that cannot roll back; all other writes are home's own affair."""
        del keys, numbered
        self._note(tx, table)

    def updating(
        self, tx: LocalTransaction, table: sa.Table, rows: Rows, columns: Collection[str], *, upserting: bool = False
    ) -> object:
        """See `inserted`."""
        del rows, columns, upserting
        self._note(tx, table)
        return None

    def updated(self, tx: LocalTransaction, token: object) -> None:
        """Nothing to read back."""

    def deleting(self, tx: LocalTransaction, table: sa.Table, rows: Rows) -> None:
        """See `inserted`."""
        del rows
        self._note(tx, table)

    def incrementing(self, tx: LocalTransaction, table: sa.Table, rows: Rows, deltas: Mapping[str, Any]) -> object:
        """See `inserted`."""
        del rows, deltas
        self._note(tx, table)
        return None

    def incremented(self, tx: LocalTransaction, token: object) -> None:
        """Nothing to take down."""

    def uncaptured(self, tx: LocalTransaction, reason: str) -> None:
        """Remember why this database must be home."""
        uncaptured_reasons(tx).append(reason)

    def _note(self, tx: LocalTransaction, table: sa.Table) -> None:
        _refuse_untransactional(tx, table)
        # Kept so that a refusal can say what stands in the way if another database has to be home after all.
        if not uncaptured_reasons(tx):
            uncaptured_reasons(tx).append(_PRESUMED_HOME)


_PRESUMED_HOME = "it was the first database written, so no images of its rows were taken"


@dataclass(frozen=True)
class _Update:
    table: sa.Table
    columns: tuple[str, ...]
    key: Key | None
    """That of the only row, where it is known."""
    before: dict[tuple[Any, ...], tuple[Image, Image]] = field(default_factory=dict)
    """By the key's encoded values: the key, and the row's columns before."""


class _Increment(NamedTuple):
    table: sa.Table
    keys: list[Image]
    deltas: Image
    scales: dict[str, int | None]


class BranchRecorder:
    """Takes down how each write of a branch is undone.

    `row_limit` bounds the rows that one statement may touch. Raises SagaNotUndoable beyond it.
    """

    def __init__(self, row_limit: int) -> None:
        self._row_limit = row_limit

    def inserted(
        self, tx: LocalTransaction, table: sa.Table, keys: Sequence[tuple[Any, ...]], *, numbered: bool = False
    ) -> None:
        """Read the new rows back: an undo deletes them if they are still the same."""
        del numbered
        facts = self._facts(tx, table, "insert")
        self._require_few(tx, table, len(keys))
        for some in _portions(keys):
            rows = some[0] if len(some) == 1 else sa.or_(*(condition(table, key) for key in some))
            for key, row in self._read(tx, table, rows, facts, self._of_new_rows(table, facts)):
                self._log(tx, "insert", table, key, after=row)

    def updating(
        self, tx: LocalTransaction, table: sa.Table, rows: Rows, columns: Collection[str], *, upserting: bool = False
    ) -> object:
        """Read the columns before they change."""
        names = tuple(without_copies(table, {table.c[n].name if n in table.c else n: "" for n in columns}))
        names = tuple(dict.fromkeys((*names, *_stamped(table))))
        facts = self._facts(tx, table, "upsert" if upserting else "update", columns=names)
        if any(column.name in names for column in table.primary_key):
            self.uncaptured(tx, f"an update of the primary key of {table.name!r}")
        update = _Update(table, names, rows if isinstance(rows, tuple) else None)
        for key, row in self._read(tx, table, rows, facts, {name: facts.columns[name] for name in names}):
            update.before[_identity(key)] = (key, row)
        return update

    def updated(self, tx: LocalTransaction, token: object) -> None:
        """Read the columns after they changed, and take down what differs."""
        assert isinstance(token, _Update)
        if not token.before:
            return
        facts = self._facts(tx, token.table, "update")
        columns = {name: facts.columns[name] for name in token.columns}
        for some in _portions([key for key, _ in token.before.values()]):
            rows = _by_keys(some) if token.key is None else token.key
            for key, after in self._read(tx, token.table, rows, facts, columns):
                self._log_change(tx, token, key, after)

    def _log_change(self, tx: LocalTransaction, update: _Update, key: Image, after: Image) -> None:
        before = update.before[_identity(key)][1]
        changed = {name for name in update.columns if before[name] != after[name]}
        if changed:
            self._log(
                tx,
                "update",
                update.table,
                key,
                before={name: before[name] for name in changed},
                after={name: after[name] for name in changed},
            )

    def deleting(self, tx: LocalTransaction, table: sa.Table, rows: Rows) -> None:
        """Read the whole rows, columns that no model knows included."""
        facts = self._facts(tx, table, "delete", fresh=True)
        if facts.cascades_to:
            children = ", ".join(facts.cascades_to)
            self.uncaptured(tx, f"deleting rows of {table.name!r}, which the database cascades to {children}")
        for key, row in self._read(tx, table, rows, facts, facts.insertable):
            self._log(tx, "delete", table, key, before=row)

    def incrementing(self, tx: LocalTransaction, table: sa.Table, rows: Rows, deltas: Mapping[str, Any]) -> object:
        """Prepare the inverse, which needs no image and conflicts with nobody; only unknown keys are read."""
        facts = self._facts(tx, table, "update")
        encoded = {name: encode(delta) for name, delta in deltas.items()}
        # SQLite subtracts doubles, and what is left must again be the number that the decimal is stored as.
        decimals = [name for name, delta in deltas.items() if isinstance(delta, Decimal)]
        scales = {name: getattr(table.c[name].type, "scale", None) for name in decimals}
        image = plain_key(tx.database, table, rows) if isinstance(rows, tuple) else None
        # The condition may read what the increment changes, so the keys are read before it runs.
        keys = [found for found, _ in self._read(tx, table, rows, facts, {})] if image is None else [image]
        return _Increment(table, keys, encoded, scales)

    def incremented(self, tx: LocalTransaction, token: object) -> None:
        """Take the inverse down."""
        assert isinstance(token, _Increment)
        for key in token.keys:
            self._log(tx, "increment", token.table, key, deltas=token.deltas, scales=token.scales)

    def uncaptured(self, tx: LocalTransaction, reason: str) -> None:
        """Remember why this database would have to be home."""
        uncaptured_reasons(tx).append(reason)

    # -- reading -------------------------------------------------------------------------------------------

    def _facts(
        self,
        tx: LocalTransaction,
        table: sa.Table,
        operation: str,
        *,
        columns: Collection[str] = (),
        fresh: bool = False,
    ) -> TableFacts:
        _refuse_untransactional(tx, table)
        facts = table_facts(tx.database, tx.bare, table.name, table.schema, columns=columns, fresh=fresh)
        unknown = [name for name in _stamped(table) if name not in facts.insertable]
        if unknown:
            raise SagaError(
                f"database {tx.database.name!r}: expected __trigger_columns__ of {table.name!r} to name columns that a "
                f"trigger can write, and found {', '.join(unknown)}. The table has {', '.join(facts.insertable)}."
            )
        fired = facts.fired_by(_FIRES[operation])
        if fired:
            self._require_known(tx, table, operation, fired)
        return facts

    def _require_known(self, tx: LocalTransaction, table: sa.Table, operation: str, fired: Collection[str]) -> None:
        """Say that the operation cannot be captured, unless it is known what these triggers write."""
        theirs = [name for name in fired if not name.startswith((trigger.PREFIX, trigger.NOTING_PREFIX))]
        # Crosstie's own tell of deletes, and at once: an abort would come too late. But the delete by which an insert
        # is undone may be told: the row is gone for good, and so should be what refers to it.
        telling = [name for name in fired if name.startswith(trigger.PREFIX)] if self._must_not_tell(operation) else []
        if theirs and table.info.get(TRIGGER_COLUMNS) is None:
            self.uncaptured(
                tx,
                f"an {operation} on {table.name!r}, which has triggers ({', '.join([*theirs, *telling])}): if all that "
                "they write is columns of the row itself, let the model name these, __trigger_columns__ = (…)",
            )
        elif telling:
            self.uncaptured(tx, f"a {operation} on {table.name!r}, which has triggers ({', '.join(telling)})")

    def _must_not_tell(self, operation: str) -> bool:
        """Whether crosstie's own triggers must not tell of this operation before the saga is decided."""
        return operation == "delete"

    def _of_new_rows(self, table: sa.Table, facts: TableFacts) -> dict[str, str]:
        """The columns of a new row that its image has."""
        return without_copies(table, facts.insertable)

    def _read(
        self,
        tx: LocalTransaction,
        table: sa.Table,
        rows: Rows,
        facts: TableFacts,
        columns: Mapping[str, str],
    ) -> list[tuple[Image, Image]]:
        names = [column.name for column in table.primary_key]
        wanted = {name: facts.columns[name] for name in names} | dict(columns)
        if isinstance(rows, tuple):
            found = _image_of_one(tx.database, table, facts, wanted).fetch(tx.bare, key_parameters(rows)).rows
        else:
            query = _images(tx.database, table, wanted).where(rows).limit(self._row_limit + 1)
            found = tx.bare.execute(query).all()
        self._require_few(tx, table, len(found))
        try:
            encoded = [{name: encode(value) for name, value in zip(wanted, row, strict=True)} for row in found]
        except TypeError as error:
            self.uncaptured(tx, f"a column of {table.name!r} has a type without an exact image ({error})")
            return []
        return [({n: row[n] for n in names}, {n: row[n] for n in columns}) for row in encoded]

    def _require_few(self, tx: LocalTransaction, table: sa.Table, rows: int) -> None:
        if rows > self._row_limit:
            raise SagaNotUndoable(
                f"one statement would touch more than {self._row_limit} rows of {table.name!r} in database "
                f"{tx.database.name!r}, which the saga would have to keep images of. Work in smaller sagas, raise "
                f"saga.undo_row_limit, or make {tx.database.name!r} home: saga(…, home={tx.database.name!r})."
            )

    def _log(self, tx: LocalTransaction, operation: str, table: sa.Table, key: Image, **images: Image) -> None:
        entry: dict[str, Any] = {"op": operation, "table": table.name, "schema": table.schema, "key": key, **images}
        if stamped := _stamped(table):
            entry["stamped"] = stamped
        undo_log(tx).append(entry)


def _stamped(table: sa.Table) -> list[str]:
    """The columns that triggers write, as they are called in the database."""
    names = table.info.get(TRIGGER_COLUMNS) or ()
    return [table.c[name].name if name in table.c else name for name in names]


def _images(database: Database, table: sa.Table, wanted: Mapping[str, str]) -> sa.Select[Any]:
    return sa.select(*projection(database, wanted)).select_from(table).with_for_update()


def _image_of_one(database: Database, table: sa.Table, facts: TableFacts, wanted: Mapping[str, str]) -> Prepared:
    """The image of a row by its key, made once for each set of columns."""
    shape = tuple(wanted)
    prepared = facts.statements.get(shape)
    if prepared is None:
        prepared = facts.statements[shape] = Prepared(
            _images(database, table, wanted).where(key_matches(table.primary_key))
        )
    return prepared


def without_copies(table: sa.Table, columns: Mapping[str, str]) -> dict[str, str]:
    """The columns without denormalised ones, which workers align at any time; an undo has them aligned again."""
    copies = table.info.get("crosstie.copies", ())
    return {name: kind for name, kind in columns.items() if name not in copies}


def _identity(key: Image) -> tuple[Any, ...]:
    return tuple(repr(value) for value in key.values())


def _portions(keys: Sequence[_K]) -> Iterator[Sequence[_K]]:
    """SQLite parses no condition of more than a thousand terms."""
    return (keys[start : start + _PORTION] for start in range(0, len(keys), _PORTION))


def _by_keys(keys: Sequence[Image]) -> sa.ColumnElement[bool]:
    return sa.or_(
        *(
            sa.and_(
                *(
                    sa.column(name) == sa.bindparam(None, decode(value), type_=sa.types.NULLTYPE, unique=True)
                    for name, value in key.items()
                )
            )
            for key in keys
        )
    )

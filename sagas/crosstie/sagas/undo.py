"""Undoing a branch: the log of its writes, run backwards inside one local transaction.

Each entry is checked against the row as it is now. A row that somebody changed since is a conflict, and a conflict
undoes nothing: the caller rolls the whole transaction back and shows both images to the operator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from crosstie.orm.database import Database
from crosstie.orm.driver_errors import classify
from crosstie.orm.errors import IntegrityViolation
from crosstie.sagas.errors import UndoConflict
from crosstie.sagas.facts import TableFacts, table_facts
from crosstie.sagas.image import Image, decode, encode, projection

__all__ = ["apply_undo"]

Entry = Mapping[str, Any]
"""`op` (insert, update, delete, increment), `table`, `schema`, `key`, and by op: `before`, `after`, `deltas`."""


def apply_undo(
    database: Database, connection: sa.Connection, entries: Iterable[Entry], *, forced: bool = False
) -> None:
    """Undo the entries, last first, inside the connection's transaction.

    `forced` overwrites rows that somebody has changed since, and passes over those that somebody has deleted. Raises
    UndoConflict, naming table, key, and what was expected and found; the caller must roll back.
    """
    for entry in reversed(list(entries)):
        row = _Row(database, connection, entry, forced=forced)
        try:
            _UNDO[entry["op"]](row)
        except sa.exc.DBAPIError as error:
            failure = classify(error)
            if failure is None or not issubclass(failure.error, IntegrityViolation):
                raise
            raise row.conflict(f"a constraint refuses the undo: {failure.detail}") from error


class _Row:
    """The row of one entry in its table, built from the names that the record holds."""

    def __init__(self, database: Database, connection: sa.Connection, entry: Entry, *, forced: bool) -> None:
        self.forced = forced
        self.database = database
        self.connection = connection
        self.entry = entry
        self.key: Image = entry["key"]
        self.facts: TableFacts = table_facts(database, connection, entry["table"], entry.get("schema"), fresh=True)
        self.table = sa.table(
            entry["table"], *(sa.column(name) for name in self.facts.columns), schema=entry.get("schema")
        )

    @property
    def where(self) -> sa.ColumnElement[bool]:
        return sa.and_(*(self.table.c[name] == self.bind(value) for name, value in self.key.items()))

    def bind(self, value: Any) -> sa.BindParameter[Any]:
        decoded = decode(value)
        if self.database.kind == "sqlite" and isinstance(decoded, Decimal):
            decoded = str(decoded)  # sqlite3 takes no Decimal; the column's affinity turns the text into a number
        return sa.bindparam(None, decoded, type_=sa.types.NULLTYPE, unique=True)

    def read(self, columns: Iterable[str]) -> Image | None:
        """The row's columns now, under lock; None where the row is gone."""
        missing = sorted(set(columns) - set(self.facts.columns))
        if missing:
            raise self.conflict(f"the table no longer has the column(s) {', '.join(missing)}")
        kinds = {name: self.facts.columns[name] for name in columns}
        query = sa.select(*projection(self.database, kinds)).select_from(self.table).where(self.where).with_for_update()
        found = self.connection.execute(query).mappings().one_or_none()
        return None if found is None else {name: encode(value) for name, value in found.items()}

    def conflict(self, what: str, **images: Image) -> UndoConflict:
        shown = ", ".join(f"{name}={decode(value)!s}" for name, value in self.key.items())
        return UndoConflict(
            f"{self.database.name}.{self.entry['table']} ({shown}): the {self.entry['op']} cannot be undone: {what}. "
            "Nothing was overwritten.",
            table=self.entry["table"],
            key=self.key,
            images=images,
        )

    def require_there(self) -> None:
        """Raise UndoConflict for a row that is gone, unless that is to be passed over."""
        if not self.forced:
            raise self.conflict("somebody deleted the row since")

    def require_unchanged(self, now: Image, expected: Image) -> None:
        changed = sorted(name for name, value in expected.items() if now[name] != value)
        if changed and not self.forced:
            # Values stay out of the message, which is logged; the images are kept beside the record.
            raise self.conflict(
                f"somebody has changed {', '.join(changed)} since", expected=dict(expected), found=dict(now)
            )


def _undo_insert(row: _Row) -> None:
    after: Image = row.entry["after"]
    now = row.read(after)
    if now is None:
        return  # somebody deleted the row: nothing of this insert is left
    row.require_unchanged(now, after)
    row.connection.execute(sa.delete(row.table).where(row.where))


def _undo_update(row: _Row) -> None:
    before: Image = row.entry["before"]
    now = row.read(before)
    if now is None:
        row.require_there()
        return
    row.require_unchanged(now, row.entry["after"])
    values = {name: row.bind(value) for name, value in before.items()}
    row.connection.execute(sa.update(row.table).where(row.where).values(values))


def _undo_delete(row: _Row) -> None:
    values = {name: row.bind(value) for name, value in row.entry["before"].items()}
    if row.forced:
        row.connection.execute(sa.delete(row.table).where(row.where))  # one of the same key that was made since
    if row.database.kind != "postgresql":
        row.connection.execute(sa.insert(row.table).values(values))
        return
    # A column GENERATED ALWAYS AS IDENTITY takes its old value only when told so, which SQLAlchemy cannot say.
    names = row.connection.dialect.identifier_preparer
    columns = ", ".join(names.quote(name) for name in values)
    places = ", ".join(f":v{number}" for number in range(len(values)))
    insert = f"INSERT INTO {names.format_table(row.table)} ({columns}) OVERRIDING SYSTEM VALUE VALUES".replace(
        ":", "\\:"
    )
    bound = {f"v{number}": value.value for number, value in enumerate(values.values())}
    row.connection.execute(sa.text(f"{insert} ({places})"), bound)


def _undo_increment(row: _Row) -> None:
    values: dict[str, sa.ColumnElement[Any]] = {}
    for name, delta in row.entry["deltas"].items():
        rest = row.table.c[name] - row.bind(delta)
        scale = row.entry["scales"].get(name)
        values[name] = rest if scale is None or row.database.kind != "sqlite" else sa.func.round(rest, scale)
    result = row.connection.execute(sa.update(row.table).where(row.where).values(values))
    if result.rowcount != 1:
        row.require_there()


_UNDO: dict[str, Any] = {
    "insert": _undo_insert,
    "update": _undo_update,
    "delete": _undo_delete,
    "increment": _undo_increment,
}

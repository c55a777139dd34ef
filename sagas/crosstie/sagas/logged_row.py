"""The row that an entry of a saga's log tells of, read and written by its image: no model is needed.

A row that somebody changed since is a conflict, and a conflict changes nothing: the caller rolls the whole transaction
back and shows both images to the operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from crosstie.orm.driver_errors import classify
from crosstie.orm.errors import IntegrityViolation
from crosstie.sagas.errors import RowConflict, UndoConflict
from crosstie.sagas.facts import FreshFacts, TableFacts
from crosstie.sagas.image import Image, decode, encode, projection

__all__ = ["Entry", "LoggedRow"]

Entry = Mapping[str, Any]
"""`op` (insert, update, delete, increment), `table`, `schema`, `key`, and by op: `before`, `after`, `deltas`.

`stamped`, if it is there, are the columns of the row that triggers write."""


class LoggedRow:
    """The row of one entry in its table, built from the names that the log holds.

    `forced` overwrites a row that somebody has changed since. Conflicts are raised as `conflicts`.
    """

    def __init__(
        self,
        facts: FreshFacts,
        entry: Entry,
        *,
        forced: bool,
        conflicts: type[RowConflict] = UndoConflict,
    ) -> None:
        self.forced = forced
        self.database = facts.database
        self.connection = facts.connection
        self.entry = entry
        self.key: Image = entry["key"]
        self.facts: TableFacts = facts.of(entry["table"], entry.get("schema"))
        self.table = sa.table(
            entry["table"], *(sa.column(name) for name in self.facts.columns), schema=entry.get("schema")
        )
        self.stamped = frozenset(entry.get("stamped", ()))
        self._conflicts = conflicts

    @property
    def where(self) -> sa.ColumnElement[bool]:
        """The condition that only this row meets."""
        return sa.and_(*(self.table.c[name] == self.bind(value) for name, value in self.key.items()))

    def run(self, action: Callable[[LoggedRow], None]) -> None:
        """Do this with the row; what a constraint or the range of a column refuses is a conflict, too."""
        try:
            action(self)
        except sa.exc.DBAPIError as error:
            failure = classify(error)
            if failure is None or not (
                issubclass(failure.error, IntegrityViolation) or isinstance(error, sa.exc.DataError)
            ):
                raise
            raise self.conflict(f"a constraint refuses it: {failure.detail}") from error

    def bind(self, value: Any) -> sa.BindParameter[Any]:
        """A value of an image as the driver takes it."""
        decoded = decode(value)
        if self.database.kind == "sqlite" and isinstance(decoded, Decimal):
            decoded = str(decoded)  # sqlite3 takes no Decimal; the column's affinity turns the text into a number
        return sa.bindparam(None, decoded, type_=sa.types.NULLTYPE, unique=True)

    def read(self, columns: Iterable[str]) -> Image | None:
        """The row's columns now, under lock; None where the row is gone."""
        self.require_columns(columns)
        kinds = {name: self.facts.columns[name] for name in columns}
        query = sa.select(*projection(self.database, kinds)).select_from(self.table).where(self.where).with_for_update()
        found = self.connection.execute(query).mappings().one_or_none()
        return None if found is None else {name: encode(value) for name, value in found.items()}

    def insert(self, image: Image) -> None:
        """Insert a row that has these columns; `forced` replaces one of the same key."""
        self.require_columns(image)
        values = {name: self.bind(value) for name, value in image.items()}
        if self.forced:
            self.delete()  # one of the same key that was made since
        if self.database.kind != "postgresql":
            self.connection.execute(sa.insert(self.table).values(values))
            return
        # A column GENERATED ALWAYS AS IDENTITY takes a given value only when told so, which SQLAlchemy cannot say.
        names = self.connection.dialect.identifier_preparer
        columns = ", ".join(names.quote(name) for name in values)
        places = ", ".join(f":v{number}" for number in range(len(values)))
        insert = f"INSERT INTO {names.format_table(self.table)} ({columns}) OVERRIDING SYSTEM VALUE VALUES".replace(
            ":", "\\:"
        )
        bound = {f"v{number}": value.value for number, value in enumerate(values.values())}
        self.connection.execute(sa.text(f"{insert} ({places})"), bound)

    def update(self, image: Image) -> None:
        """Give the row these columns."""
        values = {name: self.bind(value) for name, value in image.items()}
        self.connection.execute(sa.update(self.table).where(self.where).values(values))

    def delete(self) -> None:
        """Delete the row."""
        self.connection.execute(sa.delete(self.table).where(self.where))

    def add(self, *, sign: int) -> None:
        """Add the entry's deltas, or take them away again (`sign` -1)."""
        values: dict[str, sa.ColumnElement[Any]] = {}
        self.require_columns(self.entry["deltas"])
        for name, delta in self.entry["deltas"].items():
            column, given = self.table.c[name], self.bind(delta)
            total = column + given if sign > 0 else column - given
            scale = self.entry["scales"].get(name)
            values[name] = total if scale is None or self.database.kind != "sqlite" else sa.func.round(total, scale)
        result = self.connection.execute(sa.update(self.table).where(self.where).values(values))
        if result.rowcount != 1:
            self.require_there()

    def require_columns(self, columns: Iterable[str]) -> None:
        """Raise a conflict where a migration has taken one of these columns away."""
        missing = sorted(set(columns) - set(self.facts.columns))
        if missing:
            raise self.conflict(f"the table no longer has the column(s) {', '.join(missing)}")

    def require_there(self) -> None:
        """Raise a conflict for a row that is gone, unless that is to be passed over."""
        if not self.forced:
            raise self.conflict("somebody deleted the row since")

    def require_unchanged(self, now: Image, expected: Image) -> None:
        """Raise a conflict where a column has another value than the log has, unless that is to be overwritten.

        Columns that the server or a trigger writes with an update tell nothing: the saga's own later writes, and their
        undo, have changed them.
        """
        told = expected.keys() - self.facts.self_written - self.stamped
        changed = sorted(name for name in told if now[name] != expected[name])
        if changed and not self.forced:
            # Values stay out of the message, which is logged; the images are kept beside the record.
            raise self.conflict(
                f"somebody has changed {', '.join(changed)} since", expected=dict(expected), found=dict(now)
            )

    def conflict(self, what: str, **images: Image) -> RowConflict:
        """The error to raise."""
        shown = ", ".join(f"{name}={decode(value)!s}" for name, value in self.key.items())
        done = "undone" if self._conflicts is UndoConflict else "redone"
        return self._conflicts(
            f"{self.database.name}.{self.entry['table']} ({shown}): the {self.entry['op']} cannot be {done}: {what}. "
            "Nothing was overwritten.",
            table=self.entry["table"],
            key=self.key,
            images=images,
        )

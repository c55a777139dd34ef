"""The parent's end: which keys it has, by its own idea of equality."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from crosstie.orm.integrity.batch import batches, values_per_statement
from crosstie.orm.integrity.catalog import Equality
from crosstie.orm.integrity.endpoint import Endpoint
from crosstie.orm.integrity.findings import Key
from crosstie.orm.integrity.packing import packs
from crosstie.orm.integrity.scope import within
from crosstie.orm.integrity.storage import KeyStorage, Raw, WholeNumber

__all__ = ["Alike", "ParentColumn"]

_QUESTIONS_PER_STATEMENT: Final = 200
_KEYS_PER_LIST: Final = 5_000
_SHOWN: Final = 3


class Alike:
    """Keys that were there in another spelling only: how many of those that were compared, and some of them."""

    def __init__(self) -> None:
        self.compared = 0
        self.number = 0
        self.some: tuple[Key, ...] = ()

    def add(self, keys: Collection[Key]) -> None:
        """Each key is to be added once."""
        self.number += len(keys)
        self.some = (*self.some, *keys)[:_SHOWN]


class ParentColumn:
    """A referenced column in the parent's database. Every method raises DatabaseUnavailable."""

    def __init__(self, end: Endpoint, storage: KeyStorage) -> None:
        self.end = end
        self.storage = storage
        self.database = end.database
        self.typed = storage.typed(end.column)
        self.alike = Alike()

    @property
    def parents(self) -> tuple[ParentColumn, ...]:
        """The columns that it stands for, one in each database: itself alone."""
        return (self,)

    @property
    def packs(self) -> bool:
        """Whether the server can send many of its keys as one value."""
        return packs(self.database.kind) and self.storage.is_native

    def keys_within(self, *, bounded: bool = True) -> sa.Select[Any]:
        """The query for the keys from its parameter `lo` on, in order; `bounded` up to `hi`, this included."""
        condition = within(self.typed) if bounded else self.typed >= sa.bindparam("lo", type_=self.typed.type)
        return sa.select(self.typed.label("key")).where(condition).order_by(self.typed)

    def first(self) -> Raw | None:
        """The smallest key by the column's order; None where there is none."""
        return self._first_by(self.typed)

    def _first_by(self, order: sa.ColumnElement[Any]) -> Raw | None:
        first = sa.select(self.typed).where(self.end.column.is_not(None)).order_by(order).limit(1)
        return next(iter(self._values(first)), None)

    def span(self) -> int:
        """How many integers lie between the smallest key and the greatest; 0 where there is none."""
        lowest, highest = self.first(), self._first_by(self.typed.desc())
        return 0 if lowest is None or highest is None else int(highest) - int(lowest) + 1

    @property
    def is_unique(self) -> bool:
        """Whether no two rows have one key, as far as the table is declared."""
        return self.end.primary_key == (self.end.column,) or bool(self.end.column.unique)

    def absent(self, keys: Sequence[Key]) -> list[Key]:
        """Those of the keys that no parent has at this moment, in their order.

        Keys that come back as they went are there; where the column's `=` is wider than that, it decides on the others.
        """
        spelt = {key: self.storage.spellings(key) for key in keys}
        identical = self.storage.equality is Equality.IDENTICAL
        if identical and self.database.kind in _ASKED and all(len(raws) <= 1 for raws in spelt.values()):
            asked = [raw for raws in spelt.values() for raw in raws]
            missing_raws = {raw for some in batches(asked, _KEYS_PER_LIST) for raw in self._unheld(some)}
            return [key for key, raws in spelt.items() if not raws or raws[0] in missing_raws]
        present = self._present([raw for raws in spelt.values() for raw in raws])
        missing = [key for key in keys if key not in present]
        if not missing or identical:
            return missing
        equalled = self._equalled([key for key in missing if spelt[key]])
        self.alike.add(equalled)
        return [key for key in missing if key not in equalled]

    def _unheld(self, values: Sequence[Raw]) -> list[Raw]:
        """Those of the values that no parent has: they travel as one parameter, and only what is missing comes back."""
        source, asked = _ASKED[self.database.kind](values, self.typed.type)
        held: sa.Select[Any] = sa.select(sa.literal_column("1")).select_from(self.end.table).where(self.typed == asked)
        return self._values(sa.select(asked).select_from(source).where(~held.exists()))

    def _present(self, spelt: Sequence[Raw]) -> set[Key]:
        distinct = self.storage.distinct(self.end.column)
        present: set[Key] = set()
        for values in batches(spelt, values_per_statement(self.database)):
            found = self._values(sa.select(distinct).where(self.typed.in_(values)))
            present.update(self.storage.key(raw) for raw in found)
        return present

    def _equalled(self, keys: Sequence[Key]) -> set[Key]:
        """Ask the server about each key by itself: an IN list does not tell which of its values it matched."""
        equalled: set[Key] = set()
        for group in batches(keys, _QUESTIONS_PER_STATEMENT):
            questions = [
                sa.exists(sa.select(sa.literal_column("1")).where(self._equals(key))).label(f"q{number}")
                for number, key in enumerate(group)
            ]
            with self.database.mapped_errors(), self.database.autocommit.connect() as connection:
                answers = connection.execute(sa.select(*questions)).one()
            equalled.update(key for key, answer in zip(group, answers, strict=True) if answer)
        return equalled

    def _equals(self, key: Key) -> sa.ColumnElement[bool]:
        return sa.or_(*(self.typed == raw for raw in self.storage.spellings(key)))

    def is_empty(self) -> bool:
        """Whether the table has no row at all."""
        return not self._values(sa.select(sa.literal_column("1")).select_from(self.end.table).limit(1))

    def _values(self, query: sa.Select[Any]) -> list[Any]:
        with self.database.mapped_errors(), self.database.autocommit.connect() as connection:
            return list(connection.execute(query).scalars().all())


_Asked = tuple[sa.FromClause | sa.TextClause, sa.ColumnElement[Any]]


def _unnested(values: Sequence[Raw], kind: sa.types.TypeEngine[Any]) -> _Asked:
    asked = (
        sa.func.unnest(sa.literal(list(values), postgresql.ARRAY(kind)))
        .table_valued("key")
        .render_derived(name="asked")
    )
    return asked, sa.type_coerce(asked.c.key, kind)


def _from_json(values: Sequence[Raw], kind: sa.types.TypeEngine[Any]) -> _Asked:
    # Values of an IN list cost the client more than the server; and a long one makes MariaDB read the whole index.
    column = "CHAR(36)"
    if isinstance(kind, sa.Integer):
        column = "BIGINT UNSIGNED" if getattr(kind, "unsigned", False) else "BIGINT"
    elif isinstance(kind, WholeNumber):
        column = "DECIMAL(38, 0)"
    source = sa.text(f"JSON_TABLE(:asked, '$[*]' COLUMNS (k {column} PATH '$')) AS asked")
    if isinstance(kind, sa.LargeBinary):
        asked = json.dumps([value.hex() for value in values])
        return source.bindparams(asked=asked), sa.literal_column("UNHEX(asked.k)", kind)
    return source.bindparams(asked=json.dumps(list(values))), sa.literal_column("asked.k", kind)


_ASKED: Final[Mapping[str, Callable[[Sequence[Raw], sa.types.TypeEngine[Any]], _Asked]]] = {
    "postgresql": _unnested,
    "mariadb": _from_json,
    "mysql": _from_json,
}
"""A list of values as a table; SQLite, which runs in this process, takes an IN list as well."""

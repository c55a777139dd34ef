"""Conditions of a query: keywords made into comparisons, expressions checked before they reach a database.

Keywords mean three things and nothing else: a value is compared, None is IS NULL, a list is IN; an unknown name is an
error. Values pass through the field's type on the way in, so that '1' finds the row with the integer 1 or is refused.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql import visitors

from crosstie.orm.database import Database
from crosstie.orm.errors import CrossDatabaseQuery, InvalidQuery
from crosstie.orm.keyset import MANY_VALUES, require_packet
from crosstie.orm.mapping import MappedField, TableMapping

__all__ = ["Condition", "Expression", "Membership", "keyword", "member", "require_one_database", "require_tables"]

_LISTS: Final = (list, tuple, set, frozenset)


class Condition:
    """One condition; how it reads may depend on the database that it is sent to."""

    is_given = False
    """Whether a user wrote it, so that it may name tables which the query does not read."""
    is_resolved = True
    """Whether nothing need be read of another database before it is sent."""

    def resolved(self) -> Condition:
        """The same condition, with what it needs of another database read now. Raises DatabaseUnavailable."""
        return self

    def clause(self, database: Database) -> sa.ColumnElement[bool]:
        """The SQL expression for this database."""
        raise NotImplementedError


class Expression(Condition):
    """A SQLAlchemy expression, the same for every database; raises CrossDatabaseQuery and InvalidQuery."""

    is_given = True

    def __init__(self, mapping: TableMapping, given: object) -> None:
        if isinstance(given, sa.TextClause):
            given = sa.type_coerce(given.self_group(), sa.Boolean())
        if not isinstance(given, sa.ColumnElement):
            raise InvalidQuery(
                f"where() of {mapping.model.__qualname__} expected keywords or an expression such as "
                f"{mapping.model.__qualname__}.c.{mapping.key[0].name} > 1, and found {given!r}."
            )
        require_one_database(mapping, given)
        self._element: sa.ColumnElement[bool] = given

    def clause(self, database: Database) -> sa.ColumnElement[bool]:
        """The expression as it was given."""
        return self._element


class Membership(Condition):
    """`field IN (values)`, for any number of values; with `or_null`, NULL counts as one of them."""

    def __init__(self, field: MappedField, values: Collection[Any], *, or_null: bool = False) -> None:
        self._field = field
        self._values = values
        self._or_null = or_null

    def clause(self, database: Database) -> sa.ColumnElement[bool]:
        """One parameter for all values where the dialect can, so that no parameter limit is met."""
        column = self._field.column
        found = member(column, self._values, database) if self._values else sa.false()
        return sa.or_(found, column.is_(None)) if self._or_null else found


def member(column: sa.ColumnElement[Any], values: Collection[Any], database: Database) -> sa.ColumnElement[bool]:
    """`column IN (values)`, with one parameter for all of them, one or more, where the dialect can.

    Raises InvalidQuery where there are too many.
    """
    if database.capabilities.array_parameters:
        array: sa.BindParameter[Any] = sa.bindparam("keys", list(values), postgresql.ARRAY(column.type), unique=True)
        equal: sa.ColumnElement[bool] = column == sa.any_(array)
        return equal
    if len(values) <= 500 or database.kind != "sqlite":
        # PyMySQL puts values into the text of the statement, so only max_allowed_packet limits their number.
        if len(values) > MANY_VALUES:
            require_packet(str(column), values)
        return column.in_(values)
    bind = column.type.dialect_impl(database.dialect).bind_processor(database.dialect)
    raw = list(values) if bind is None else [bind(value) for value in values]
    if isinstance(raw[0], bytes | memoryview):
        return column.in_(_pieces([bytes(value) for value in raw]))
    try:
        listed = json.dumps(raw)
    except TypeError:
        raise InvalidQuery(
            f"{column!s}: expected at most {database.capabilities.parameter_limit} values in one list for SQLite and "
            f"found {len(raw)}: divide the list."
        ) from None
    keys = sa.func.json_each(sa.bindparam("keys", listed, sa.String(), unique=True)).table_valued("value")
    among: sa.ColumnElement[bool] = column.in_(sa.select(keys.c.value))
    return among


def _pieces(values: list[bytes]) -> sa.Select[Any]:
    """Bytes of any number, which JSON does not hold, as one parameter that SQLite cuts into pieces."""
    ends = list(itertools.accumulate(map(len, values)))
    places = json.dumps([[end - len(value) + 1, len(value)] for value, end in zip(values, ends, strict=True)])
    place = sa.func.json_each(sa.bindparam("places", places, sa.String(), unique=True)).table_valued("value")
    whole = sa.bindparam("keys", b"".join(values), sa.LargeBinary(), unique=True)
    begin, length = (sa.func.json_extract(place.c.value, path) for path in ("$[0]", "$[1]"))
    return sa.select(sa.func.substr(whole, begin, length)).select_from(place)


class _Comparison(Condition):
    def __init__(self, field: MappedField, value: Any) -> None:
        self._field = field
        self._value = value

    def clause(self, database: Database) -> sa.ColumnElement[bool]:
        equal: sa.ColumnElement[bool] = self._field.column == self._value  # None compares as IS NULL
        return equal


def keyword(mapping: TableMapping, name: str, value: Any) -> Condition:
    """The condition that `name=value` means. Raises InvalidQuery."""
    field = mapping.field(name)
    if value is None:
        return _Comparison(field, None)
    if field.mutable:
        raise InvalidQuery(
            f"{field.column!s} holds JSON documents, which databases compare differently: write an expression, such as "
            f'{mapping.model.__qualname__}.c.{name}["key"].as_string() == "value".'
        )
    if isinstance(value, _LISTS):
        present = {field.sought(item): None for item in value if item is not None}  # ordered, each once
        return Membership(field, list(present), or_null=any(item is None for item in value))
    return _Comparison(field, field.sought(value))


def all_of(conditions: Iterable[Condition], database: Database) -> sa.ColumnElement[bool] | None:
    """The conditions joined by AND; None where there are none."""
    clauses = [condition.clause(database) for condition in conditions]
    return sa.and_(*clauses) if clauses else None


def require_one_database(mapping: TableMapping, element: sa.ClauseElement) -> None:
    """Raise CrossDatabaseQuery where an expression uses a table of a model in another database."""
    for part in visitors.iterate(element):
        table: Any = part if isinstance(part, sa.Table) else getattr(part, "table", None)
        while table is not None and not isinstance(table, sa.Table):
            table = getattr(table, "element", None)
        if table is None:
            continue
        info: Mapping[Any, Any] = table.info
        other = info.get("crosstie.connection", mapping.place)
        if other != mapping.place:
            raise CrossDatabaseQuery(
                f"{mapping.model.__qualname__} is in database {mapping.place!r} and the condition uses table "
                f"{table.name!r} of database {other!r}: no statement reaches both. Read the keys from one first and "
                "pass them to the other as a list."
            )


def require_tables(mapping: TableMapping, source: sa.FromClause, statement: sa.Select[Any]) -> None:
    """Raise InvalidQuery where a statement names a table outside of its source: every row would meet every row."""
    for table in statement.get_final_froms():
        if table is not source:
            raise InvalidQuery(
                f"a condition on {mapping.model.__qualname__} uses {table!s}, which it does not read: join() its "
                "relation, or put it into a subquery (column.in_(sqlalchemy.select(...)) or sqlalchemy.exists())."
            )

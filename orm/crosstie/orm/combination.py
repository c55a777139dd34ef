"""Conditions joined by OR, AND and NOT, and raw SQL with bound values: written before any model is known.

`where()` reads them for its model: names are checked there, as in any other condition.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, Final, Literal
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.sql import visitors

from crosstie.orm import sql_types
from crosstie.orm.condition import Condition, Expression, keyword
from crosstie.orm.database import Database
from crosstie.orm.errors import InvalidQuery
from crosstie.orm.mapping import TableMapping

__all__ = ["Combination", "Given", "all_of", "any_of", "conditions_of", "not_", "sql"]


@dataclass(frozen=True)
class Combination:
    """Conditions and the word that joins them; made by `any_of`, `all_of` and `not_`."""

    word: Literal["any_of", "all_of", "not_"]
    conditions: tuple[object, ...]
    equal: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.conditions and not self.equal:
            raise InvalidQuery(f"{self.word}() expected at least one condition.")


Given = sa.ColumnElement[bool] | sa.TextClause | Combination
"""What a condition may be: an expression over `Model.c`, `sql(...)`, or one of these joined."""


def any_of(*conditions: Given, **equal: Any) -> Combination:
    """Meets at least one of the conditions: `where(any_of(User.c.age > 60, name="Ada"))`."""
    return Combination("any_of", conditions, equal)


def all_of(*conditions: Given, **equal: Any) -> Combination:
    """Meets all of the conditions; of use inside `any_of` and `not_`."""
    return Combination("all_of", conditions, equal)


def not_(*conditions: Given, **equal: Any) -> Combination:
    """Does not meet all of the conditions: every row that `where()` with the same conditions leaves out.

    That includes rows for which NULL makes the condition neither true nor false.
    """
    return Combination("not_", conditions, equal)


def sql(text: str, parameters: Mapping[str, object]) -> sa.TextClause:
    r"""A condition in SQL, whose values are bound: `sql("price > :low", {"low": 3})`.

    Every `:name` in the text needs its value, and every value its name; a list is for `IN :names`. A colon that is
    none of these is written `\\:`. The text is sent as it is: never put a value into it. Raises InvalidQuery.
    """
    clause = sa.text(text)
    named = {part.key for part in visitors.iterate(clause) if isinstance(part, sa.BindParameter)}
    if named != set(parameters):
        wanted, given = sorted(named), sorted(map(str, parameters))
        raise InvalidQuery(f"the SQL names the values {wanted} and was given {given}: they must be the same.")
    return clause.bindparams(*(_bound(name, value) for name, value in parameters.items()))


_TYPES: Final[dict[type, Any]] = {datetime: sql_types.UtcDateTime(), UUID: sql_types.UUID, Decimal: sa.Numeric()}
_PLAIN: Final = (bool, int, float, str, bytes, date, time)


def _bound(name: str, value: object) -> sa.BindParameter[Any]:
    if isinstance(value, list | tuple | set | frozenset):
        values = [_plain(name, one) for one in value]
        kinds = {type(one) for one in values}
        if len(kinds) > 1 or type(None) in kinds:
            raise InvalidQuery(f"the value {name!r}: expected a list of values of one type and found {value!r}.")
        kind = _TYPES.get(kinds.pop()) if kinds else None
        return sa.bindparam(name, values, kind, expanding=True, unique=True)
    plain = _plain(name, value)
    return sa.bindparam(name, plain, _TYPES.get(type(plain)), unique=True)


def _plain(name: str, value: object) -> object:
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, datetime) and value.tzinfo is None:
        raise InvalidQuery(
            f"the value {name!r}: expected a datetime with a time zone and found the naive {value!r}: write "
            "datetime.now(UTC), or compare a column without zones in an expression over Model.c."
        )
    if value is None or type(value) in _TYPES or isinstance(value, _PLAIN):
        return value
    raise InvalidQuery(
        f"the value {name!r}: expected text, a number, a date or the like, and found {value!r} of type "
        f"{type(value).__name__}."
    )


class _Joined(Condition):
    def __init__(self, word: str, conditions: Sequence[Condition]) -> None:
        self._word = word
        self._conditions = conditions
        self.is_given = any(condition.is_given for condition in conditions)

    def clause(self, database: Database) -> sa.ColumnElement[bool]:
        clauses = [condition.clause(database) for condition in self._conditions]
        if self._word == "any_of":
            return sa.or_(*clauses)
        joined = sa.and_(*clauses)
        # NOT NULL would be NULL, and the row in neither half.
        return joined if self._word == "all_of" else sa.not_(sa.func.coalesce(joined, sa.false(), type_=sa.Boolean()))


def conditions_of(mapping: TableMapping, given: Sequence[object], equal: Mapping[str, Any]) -> tuple[Condition, ...]:
    """The conditions that the arguments of `where()` mean for a model. Raises InvalidQuery, CrossDatabaseQuery."""
    if len(given) == 2 and isinstance(given[0], str) and isinstance(given[1], Mapping):
        given = (sql(given[0], given[1]),)
    return (
        *(_condition(mapping, one) for one in given),
        *(keyword(mapping, name, value) for name, value in equal.items()),
    )


def _condition(mapping: TableMapping, given: object) -> Condition:
    if isinstance(given, Combination):
        return _Joined(given.word, conditions_of(mapping, given.conditions, given.equal))
    return Expression(mapping, given)

"""Pages of a query, and walks over all of its rows in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import sqlalchemy as sa

from crosstie.orm.condition import Condition
from crosstie.orm.database import Database
from crosstie.orm.errors import InvalidQuery
from crosstie.orm.mapping import MappedField

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord
    from crosstie.orm.query import Query

__all__ = ["Page", "batches", "positive"]

M = TypeVar("M", bound="ActiveRecord")
T = TypeVar("T")


@dataclass(frozen=True)
class Page(Generic[T]):
    """One page of a query's rows; pages are numbered from 1, and `total` counts the rows of all of them."""

    records: list[T]
    number: int
    per_page: int
    total: int

    @property
    def pages(self) -> int:
        """How many pages there are; an empty result has none."""
        return -(-self.total // self.per_page)

    @property
    def has_next(self) -> bool:
        """Whether a page follows."""
        return self.number < self.pages

    @property
    def has_previous(self) -> bool:
        """Whether a page goes before."""
        return self.number > 1

    def __iter__(self) -> Iterator[T]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)


class After(Condition):
    """Rows whose key comes after this one, in the order of the key."""

    def __init__(self, key: Sequence[MappedField], values: Sequence[Any]) -> None:
        self._pairs = [
            (field.column, sa.literal(value, field.column.type)) for field, value in zip(key, values, strict=True)
        ]

    def clause(self, database: Database) -> sa.ColumnElement[bool]:
        """Spelt out: a comparison of rows uses no index on some servers."""
        steps = []
        for place, (column, value) in enumerate(self._pairs):
            equal = [before == known for before, known in self._pairs[:place]]
            steps.append(sa.and_(*equal, column > value))
        first, least = self._pairs[0]
        return steps[0] if len(steps) == 1 else sa.and_(first >= least, sa.or_(*steps))


def batches(query: Query[M], size: int, limit: int | None) -> Iterator[list[M]]:
    """The query's records in lists of `size`, by primary key; each list is a statement of its own.

    What conditions need of other databases is read once, when the first list is asked for.
    """
    key, query = query.mapping.key, query.resolved()
    ordered = query.order_by(*(field.name for field in key))
    rest, position = limit, ordered
    while rest is None or rest > 0:
        wanted = size if rest is None else min(size, rest)
        found = position.limit(wanted).all()
        if found:
            # Taken before the caller sees the records, and may change them.
            position = ordered.meeting(After(key, [found[-1].__dict__[field.name] for field in key]))
            yield found
        if len(found) < wanted:
            return
        if rest is not None:
            rest -= len(found)


def positive(value: int, what: str) -> int:
    """The value, if it is a whole number from 1 on. Raises InvalidQuery."""
    if type(value) is not int or value < 1:
        raise InvalidQuery(f"{what} expected a whole number, one or more, and found {value!r}.")
    return value

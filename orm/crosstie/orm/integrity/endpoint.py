"""What an audit needs to know of a reference: two columns, each in a database. No model is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.reference import Reference, ReferenceUnion

__all__ = ["AuditedReference", "Endpoint", "OfType"]


@dataclass(frozen=True)
class OfType:
    """Of a polymorphic reference: only the rows whose `column` has this value, by the column's own `=`."""

    column: sa.Column[Any]
    value: str

    def condition(self) -> sa.ColumnElement[bool]:
        """That a row is one of these."""
        is_number = isinstance(self.column.type, sa.Integer)
        return self.column == (int(self.value) if is_number and self.value.lstrip("-").isdigit() else self.value)


@dataclass(frozen=True)
class Endpoint:
    """One end of a reference: a column of a table behind a connection name; of a child, maybe only rows of a type.

    `more` are the other columns of a key that has several.
    """

    connection: str
    table: sa.Table
    column: sa.Column[Any]
    of_type: OfType | None = None
    more: tuple[sa.Column[Any], ...] = ()

    def __str__(self) -> str:
        of_type = "" if self.of_type is None else f"[{self.of_type.column.name}={self.of_type.value}]"
        names = ", ".join(column.name for column in self.columns)
        return f"{self.connection}.{self.table.fullname}.{f'({names})' if self.more else names}{of_type}"

    @property
    def columns(self) -> tuple[sa.Column[Any], ...]:
        """All columns of the key."""
        return (self.column, *self.more)

    @property
    def is_composite(self) -> bool:
        """Whether a key has several columns."""
        return bool(self.more)

    def part(self, number: int) -> Endpoint:
        """One of the columns, by itself."""
        return Endpoint(self.connection, self.table, self.columns[number])

    @property
    def conditions(self) -> tuple[sa.ColumnElement[bool], ...]:
        """What a row meets to count at all."""
        return () if self.of_type is None else (self.of_type.condition(),)

    @property
    def database(self) -> Database:
        """The configured database. Raises UnknownConnection."""
        return ConnectionManager.get(self.connection)

    @property
    def primary_key(self) -> tuple[sa.Column[Any], ...]:
        """The columns of the table's primary key, in the table's order."""
        return tuple(self.table.primary_key.columns)


@dataclass(frozen=True)
class AuditedReference:
    """A foreign key from `child` to `parent`, maybe in another database; `name` names it in reports and runs.

    With `others`, the same table in further databases, a key refers to a row of any of them.
    """

    name: str
    child: Endpoint
    parent: Endpoint
    others: tuple[Endpoint, ...] = ()

    @classmethod
    def declared(cls, reference: Reference | ReferenceUnion) -> AuditedReference:
        """The reference of a `BelongsTo` relation, under its own name; its parents may be in several databases."""
        members = (reference,) if isinstance(reference, Reference) else reference.members
        first, *others = (Endpoint(one.parent_connection, one.parent_table, one.parent_column) for one in members)
        head = members[0]
        of_type = None if head.child_type is None else OfType(*head.child_type)
        child = Endpoint(head.child_connection, head.child_table, head.child_column, of_type)
        return cls(reference.name, child, first, tuple(others))

    @property
    def parents(self) -> tuple[Endpoint, ...]:
        """Where a key may refer to."""
        return (self.parent, *self.others)

    @property
    def databases(self) -> tuple[Database, ...]:
        """Those of the child and of all parents, each once. Raises UnknownConnection."""
        return tuple({end.database.name: end.database for end in (self.child, *self.parents)}.values())

    @classmethod
    def between(cls, child: Endpoint, parent: Endpoint) -> AuditedReference:
        """The reference between two columns, named after them: "secondary.posts.user_id -> default.users.id"."""
        return cls(f"{child} -> {parent}", child, parent)

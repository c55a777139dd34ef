"""What an audit needs to know of a reference: two columns, each in a database. No model is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.reference import Reference, ReferenceUnion

__all__ = ["AuditedReference", "Endpoint"]


@dataclass(frozen=True)
class Endpoint:
    """One end of a reference: a column of a table behind a connection name."""

    connection: str
    table: sa.Table
    column: sa.Column[Any]

    def __str__(self) -> str:
        return f"{self.connection}.{self.table.fullname}.{self.column.name}"

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
        child = Endpoint(members[0].child_connection, members[0].child_table, members[0].child_column)
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

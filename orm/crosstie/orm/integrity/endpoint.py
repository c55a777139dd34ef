"""What an audit needs to know of a reference: two columns, each in a database. No model is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.reference import Reference

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
    """A foreign key from `child` to `parent`, maybe in another database; `name` names it in reports and runs."""

    name: str
    child: Endpoint
    parent: Endpoint

    @classmethod
    def declared(cls, reference: Reference) -> AuditedReference:
        """The reference of a `BelongsTo` relation, under its own name."""
        return cls(
            reference.name,
            Endpoint(reference.child_connection, reference.child_table, reference.child_column),
            Endpoint(reference.parent_connection, reference.parent_table, reference.parent_column),
        )

    @classmethod
    def between(cls, child: Endpoint, parent: Endpoint) -> AuditedReference:
        """The reference between two columns, named after them: "secondary.posts.user_id -> default.users.id"."""
        return cls(f"{child} -> {parent}", child, parent)

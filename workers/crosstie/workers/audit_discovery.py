"""Columns that look like references nobody has declared: their name fits a table, and their values are keys of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CrosstieError
from crosstie.orm.integrity import AuditedReference, AuditError
from crosstie.orm.integrity.columns import columns_of
from crosstie.orm.reference import references
from crosstie.workers.audit_references import reflected_reference

__all__ = ["Column", "Discovery", "Suggestion", "candidates", "discover", "singular"]

SAMPLE: Final = 200
"""Different keys of the child that are looked up."""
OVERLAP: Final = 0.5
"""A column is suggested where so many of them are keys of the parent."""


@dataclass(frozen=True)
class Column:
    """A column of a table in a database; `is_key` where it is the table's whole primary key."""

    connection: str
    table: str
    name: str
    is_key: bool = False

    def __str__(self) -> str:
        return f"{self.connection}.{self.table}.{self.name}"


@dataclass(frozen=True)
class Suggestion:
    """A reference that nobody has declared: of `sampled` keys, `found` are there. None sampled: no row has a key."""

    reference: str
    sampled: int
    found: int


@dataclass(frozen=True)
class Discovery:
    """What was suggested, the best first, and the databases that could not be asked."""

    suggestions: tuple[Suggestion, ...]
    errors: dict[str, str]


def singular(table: str) -> str:
    """A table's name as a column would call one of its rows."""
    name = table.lower()
    for ending, instead in (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("ches", "ch"), ("shes", "sh"), ("s", "")):
        if name.endswith(ending) and not name.endswith("ss"):
            return name[: -len(ending)] + instead
    return name


def candidates(columns: Iterable[Column], *, include_local: bool = False) -> Iterator[tuple[Column, Column]]:
    """Pairs of a column and the key of a table that the column's name fits.

    `user_id` fits the key of `users`, and so does `author_user_id`; `app_users` is fitted by `user_id` too.
    """
    columns = list(columns)
    keys = [column for column in columns if column.is_key]
    for child in columns:
        stem = _stem(child.name)
        if child.is_key or stem is None:
            continue
        for parent in keys:
            same_table = (parent.connection, parent.table) == (child.connection, child.table)
            is_local = parent.connection == child.connection
            if not same_table and (include_local or not is_local) and _fits(stem, singular(parent.table)):
                yield child, parent


def _stem(column: str) -> str | None:
    found = re.fullmatch(r"(.+?)_?(?:id|uuid|key|no)", column.lower())
    return found[1] if found else None


def _fits(stem: str, table: str) -> bool:
    return stem == table or stem.endswith(f"_{table}") or table.endswith(f"_{stem}")


def discover(*, include_local: bool = False) -> Discovery:
    """Look through all tables of all configured databases for references that nobody has declared.

    A few hundred keys of each candidate are looked up. Raises what resolving the declared relations raises.
    """
    columns: list[Column] = []
    errors: dict[str, str] = {}
    for name in ConnectionManager.names():
        try:
            columns += _columns(name)
        except CrosstieError as error:
            errors[name] = str(error)
    known = {one.name for one in references()} | set(ConnectionManager.settings().audit.references)
    suggestions = []
    for child, parent in candidates(columns, include_local=include_local):
        name = f"{child} -> {parent}"
        if name in known:
            continue
        suggestion = _measured(name)
        if suggestion is not None and suggestion.found >= OVERLAP * suggestion.sampled:
            suggestions.append(suggestion)
    best_first = sorted(suggestions, key=lambda one: (-one.found / max(one.sampled, 1), -one.sampled, one.reference))
    return Discovery(tuple(best_first), errors)


def _columns(name: str) -> list[Column]:
    database = ConnectionManager.get(name)
    found: list[Column] = []
    with database.mapped_errors(), database.autocommit.connect() as connection:
        inspector = sa.inspect(connection)
        for table in inspector.get_table_names():
            if table.startswith("crosstie_"):
                continue
            key = inspector.get_pk_constraint(table)["constrained_columns"]
            # What the database itself checks needs no audit.
            checked = {one["constrained_columns"][0] for one in inspector.get_foreign_keys(table)}
            names = [column["name"] for column in inspector.get_columns(table)]
            found += [Column(name, table, one, key == [one]) for one in names if one not in checked or key == [one]]
    return found


def _measured(name: str) -> Suggestion | None:
    """How many of a few keys the parent has; None where the two cannot be compared."""
    reference: AuditedReference = reflected_reference(name)
    try:
        child, parent = columns_of(reference)
        column = reference.child.column
        distinct = child.storage.distinct(column)
        query = sa.select(distinct).where(column.is_not(None)).distinct().limit(SAMPLE)
        keys = [child.storage.key(row[0]) for row in child.database.rows(query)]
    except AuditError:
        return None
    return Suggestion(name, len(keys), len(keys) - len(parent.absent(keys)) if keys else 0)

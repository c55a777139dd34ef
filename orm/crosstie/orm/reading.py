"""Reads of one model: the connection that answers, and the way from a cursor's rows to records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.loader import make_loader, result_processors
from crosstie.orm.mapping import MappedField, TableMapping
from crosstie.orm.origin import mark_origin
from crosstie.orm.prepared import Prepared
from crosstie.orm.routing import router
from crosstie.orm.transaction import statement_connection

__all__ = ["fetch", "find_first", "reading"]


@contextmanager
def reading(mapping: TableMapping, *, primary: bool = False) -> Iterator[tuple[sa.Connection, Database]]:
    """A connection for one read of this model; `primary` asks the database that is written to."""
    name = mapping.connection if primary else router.read_connection(mapping)
    with statement_connection(name, write=False) as connection:
        yield connection, ConnectionManager.get(name)


def fetch(
    mapping: TableMapping,
    connection: sa.Connection,
    statement: sa.Select[Any],
    parameters: Mapping[str, Any] | None = None,
    *,
    fields: tuple[MappedField, ...] | None = None,
) -> list[Any]:
    """Run a statement that selects these columns of the model, or all, in their order, and load its rows."""
    result = connection.execute(statement, parameters)
    try:
        cursor: Any = result.cursor
        return _loaded(mapping, connection, cursor.fetchall(), cursor.description, fields)
    finally:
        result.close()


def _loaded(
    mapping: TableMapping,
    connection: sa.Connection,
    rows: Sequence[Any],
    description: Sequence[Sequence[Any]],
    fields: tuple[MappedField, ...] | None = None,
) -> list[Any]:
    if not rows:
        return []
    shape = connection.dialect if fields is None else (connection.dialect, fields)
    load = mapping.loaders.get(shape)
    if load is None:
        loaded = tuple(mapping.fields.values()) if fields is None else fields
        processors = result_processors(loaded, connection.dialect, description)
        load = mapping.loaders[shape] = make_loader(mapping.model, loaded, processors)
    records: list[Any] = load(rows)
    if mapping.is_placed:
        # A replica has no rows of its own: its records are saved to the primary of the same choice.
        origin = mapping.connection if mapping.read_places else connection.engine.logging_name
        mark_origin(records, origin or mapping.connection)
    return records


def find_first(
    mapping: TableMapping,
    fields: Sequence[MappedField],
    values: Sequence[Any],
    *,
    primary: bool = False,
    deleted: bool = False,
) -> Any | None:
    """Some record whose fields have these values, None being NULL; None where there is none.

    With `deleted`, one that SoftDeleteMixin hides may be found too. The statement is made once for each set of fields.
    """
    shape = (
        "first" if not deleted else "first of all",
        *(field.name if value is not None else (field.name,) for field, value in zip(fields, values, strict=True)),
    )
    prepared: Prepared | None = mapping.statements.get(shape)
    if prepared is None:
        statement = mapping.select.limit(sa.literal_column("1"))
        for position, (field, value) in enumerate(zip(fields, values, strict=True)):
            sought = None if value is None else sa.bindparam(f"value_{position}", type_=field.column.type)
            statement = statement.where(field.column == sought)
        if mapping.soft_delete is not None and not deleted:
            statement = statement.where(mapping.soft_delete.column.is_(None))
        prepared = mapping.statements[shape] = Prepared(statement)
    parameters = {f"value_{position}": value for position, value in enumerate(values) if value is not None}
    with reading(mapping, primary=primary) as (connection, _):
        answer = prepared.fetch(connection, parameters)
        found = _loaded(mapping, connection, answer.rows, answer.description)
    return found[0] if found else None

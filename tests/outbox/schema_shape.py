"""What a database says about crosstie's tables, in a form that two databases of one kind can be compared by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

__all__ = ["shape"]


def shape(engine: sa.Engine) -> dict[str, dict[str, Any]]:
    """Columns, keys, indexes, constraints and options of each of crosstie's tables, whatever the order of making."""
    inspector = sa.inspect(engine)
    return {
        name: {
            "columns": {column["name"]: _plain(column, engine.dialect) for column in inspector.get_columns(name)},
            "primary key": inspector.get_pk_constraint(name)["constrained_columns"],
            "indexes": _by_name(inspector.get_indexes(name)),
            "unique": _by_name(inspector.get_unique_constraints(name)),
            "checks": _by_name(inspector.get_check_constraints(name)),
            "options": _options(engine, name),
        }
        for name in inspector.get_table_names()
        if name.startswith("crosstie_")
    }


def _plain(column: Mapping[str, Any], dialect: sa.Dialect) -> dict[str, Any]:
    """Types by their DDL and their attributes, such as a collation, which `==` would not compare."""
    type_ = column["type"]
    return {key: value for key, value in column.items() if key not in {"type", "name"}} | {
        "type": type_.compile(dialect=dialect),
        "attributes": repr(sorted((key, repr(value)) for key, value in vars(type_).items() if not key.startswith("_"))),
    }


def _by_name(found: Any) -> dict[Any, Any]:
    return {one["name"]: {key: value for key, value in one.items() if key != "name"} for one in found}


def _options(engine: sa.Engine, table: str) -> Any:
    """AUTOINCREMENT, engine and collation, fill factor and autovacuum: what the reflection leaves out or calls so."""
    queries = {
        "sqlite": "SELECT sql LIKE '%AUTOINCREMENT%' FROM sqlite_master WHERE name = :table",
        "postgresql": "SELECT reloptions FROM pg_class WHERE relname = :table AND relkind = 'r'",
        "mariadb": "SELECT engine, table_collation FROM information_schema.tables"
        " WHERE table_name = :table AND table_schema = database()",
    }
    with engine.connect() as connection:
        row = connection.execute(sa.text(queries[engine.dialect.name]), {"table": table}).one()
    return [sorted(value) if isinstance(value, list) else value for value in row]

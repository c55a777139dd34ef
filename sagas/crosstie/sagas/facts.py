"""What the server knows about a table and an undo depends on: asked once a minute for each table and process.

Triggers and cascading foreign keys write rows that nobody captures; a MyISAM or Aria table keeps what is rolled back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any, Final
from weakref import WeakKeyDictionary

import sqlalchemy as sa

from crosstie.orm.database import Database
from crosstie.orm.prepared import Prepared

__all__ = ["FreshFacts", "TableFacts", "has_deferrable_constraints", "table_facts"]

_TRANSACTIONAL_ENGINES = frozenset({"innodb", "rocksdb", "myrocks", "ndbcluster", "ndb", "tokudb", "xtradb"})


@dataclass(frozen=True)
class TableFacts:
    """A table as its server describes it. `columns` maps each stored column to the server's name of its type."""

    columns: dict[str, str]
    generated: frozenset[str]
    triggers: dict[str, frozenset[str]]
    """By name, what fires each: `insert`, `update`, `delete`. Rules of PostgreSQL are among them."""
    cascades_to: tuple[str, ...]
    engine: str | None
    self_written: frozenset[str] = frozenset()
    """Columns that the server writes with any update of the row (ON UPDATE CURRENT_TIMESTAMP)."""
    statements: dict[tuple[str, ...], Prepared] = field(default_factory=dict, compare=False, repr=False)
    """Those that read an image of one row, by the columns in it."""

    @property
    def transactional(self) -> bool:
        """Whether a rollback takes back what was written here."""
        return self.engine is None or self.engine.lower() in _TRANSACTIONAL_ENGINES

    def fired_by(self, events: Collection[str]) -> list[str]:
        """The names of the triggers that one of these events fires."""
        return [name for name, fire in self.triggers.items() if not fire.isdisjoint(events)]

    @property
    def insertable(self) -> dict[str, str]:
        """The columns that an INSERT may name."""
        return {name: kind for name, kind in self.columns.items() if name not in self.generated}


FACTS_LAST_S: Final = 60.0

_known: WeakKeyDictionary[Database, dict[str, tuple[TableFacts, float]]] = WeakKeyDictionary()
_deferrable: WeakKeyDictionary[Database, bool] = WeakKeyDictionary()


def table_facts(
    database: Database,
    connection: sa.Connection,
    table: str,
    schema: str | None,
    *,
    columns: Collection[str] = (),
    fresh: bool = False,
) -> TableFacts:
    """The facts of this table, at most a minute old; asked again where they lack one of `columns`, or for `fresh`.

    So a process that runs through a migration notices the trigger or the column that it brought.
    """
    tables = _known.setdefault(database, {})
    name = f"{schema}.{table}" if schema else table
    known = tables.get(name)
    if known is not None and not fresh:
        facts, read_at = known
        if time.monotonic() - read_at < FACTS_LAST_S and facts.columns.keys() >= set(columns):
            return facts
    facts = _READERS[database.kind](connection, table, schema)
    if facts.columns:
        tables[name] = facts, time.monotonic()
    return facts


class FreshFacts:
    """The facts of tables as one transaction finds them, each asked once: for work that must not go by older ones."""

    def __init__(self, database: Database, connection: sa.Connection) -> None:
        self.database = database
        self.connection = connection
        self._read: dict[tuple[str, str | None], TableFacts] = {}

    def of(self, table: str, schema: str | None) -> TableFacts:
        """The facts of this table."""
        name = table, schema
        if name not in self._read:
            self._read[name] = table_facts(self.database, self.connection, table, schema, fresh=True)
        return self._read[name]


def has_deferrable_constraints(database: Database, connection: sa.Connection) -> bool:
    """Whether any constraint here may wait until COMMIT to be checked; asked once per process.

    A wrong answer, after a migration, costs an abort after the first commit instead of a refusal before it.
    """
    if database not in _deferrable:
        can_force = database.capabilities.force_constraints
        sql = "SELECT EXISTS (SELECT 1 FROM pg_constraint WHERE condeferrable)"
        _deferrable[database] = can_force and bool(_rows(connection, sql)[0][0])
    return _deferrable[database]


def _rows(connection: sa.Connection, sql: str, **values: Any) -> list[Any]:
    return list(connection.execute(sa.text(sql), values).all())


def _postgresql(connection: sa.Connection, table: str, schema: str | None) -> TableFacts:
    quote = connection.dialect.identifier_preparer.quote
    name = f"{quote(schema)}.{quote(table)}" if schema else quote(table)
    columns = _rows(
        connection,
        "SELECT attname, format_type(atttypid, atttypmod), attgenerated <> '' FROM pg_attribute"
        " WHERE attrelid = to_regclass(:name) AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        name=name,
    )
    triggers = _rows(
        connection,
        "SELECT tgname, CASE WHEN tgtype & 4 > 0 THEN 'insert ' ELSE '' END"
        " || CASE WHEN tgtype & 8 > 0 THEN 'delete ' ELSE '' END || CASE WHEN tgtype & 16 > 0 THEN 'update' ELSE '' END"
        " FROM pg_trigger WHERE tgrelid = to_regclass(:name) AND NOT tgisinternal AND tgenabled <> 'D'"
        " UNION ALL SELECT rulename, CASE ev_type WHEN '2' THEN 'update' WHEN '3' THEN 'insert' ELSE 'delete' END"
        " FROM pg_rewrite WHERE ev_class = to_regclass(:name) AND ev_type IN ('2', '3', '4') AND ev_enabled <> 'D'",
        name=name,
    )
    cascades = _rows(
        connection,
        "SELECT conrelid::regclass::text FROM pg_constraint WHERE confrelid = to_regclass(:name) AND contype = 'f'"
        " AND confdeltype IN ('c', 'n', 'd')",
        name=name,
    )
    return _facts(columns, triggers, cascades, engine=None)


def _mysql(connection: sa.Connection, table: str, schema: str | None) -> TableFacts:
    where = {"name": table, "schema": schema}
    columns = _rows(
        connection,
        "SELECT column_name, data_type, extra LIKE '%GENERATED%' AND extra NOT LIKE '%DEFAULT_GENERATED%',"
        " extra LIKE '%on update%'"
        " FROM information_schema.columns WHERE table_schema = COALESCE(:schema, DATABASE()) AND table_name = :name"
        " ORDER BY ordinal_position",
        **where,
    )
    triggers = _rows(
        connection,
        "SELECT trigger_name, lower(event_manipulation) FROM information_schema.triggers"
        " WHERE event_object_schema = COALESCE(:schema, DATABASE()) AND event_object_table = :name",
        **where,
    )
    cascades = _rows(
        connection,
        "SELECT table_name FROM information_schema.referential_constraints"
        " WHERE unique_constraint_schema = COALESCE(:schema, DATABASE()) AND referenced_table_name = :name"
        " AND delete_rule IN ('CASCADE', 'SET NULL', 'SET DEFAULT')",
        **where,
    )
    engine = _rows(
        connection,
        "SELECT engine FROM information_schema.tables"
        " WHERE table_schema = COALESCE(:schema, DATABASE()) AND table_name = :name",
        **where,
    )
    self_written = frozenset(name for name, _, _, with_any in columns if with_any)
    facts = _facts([row[:3] for row in columns], triggers, cascades, engine=engine[0][0] if engine else None)
    return replace(facts, self_written=self_written)


def _sqlite(connection: sa.Connection, table: str, schema: str | None) -> TableFacts:
    del schema
    columns = _rows(
        connection,
        "SELECT name, type, hidden IN (2, 3) FROM pragma_table_xinfo(:name) WHERE hidden <> 1",
        name=table,
    )
    triggers = _rows(
        connection,
        # Which event fires it stands in its text alone.
        "SELECT name, 'insert update delete' FROM sqlite_master"
        " WHERE type = 'trigger' AND tbl_name = :name COLLATE NOCASE",
        name=table,
    )
    cascades = _rows(
        connection,
        "SELECT m.name FROM sqlite_master AS m, pragma_foreign_key_list(m.name) AS f WHERE m.type = 'table'"
        " AND f.\"table\" = :name COLLATE NOCASE AND f.on_delete IN ('CASCADE', 'SET NULL', 'SET DEFAULT')",
        name=table,
    )
    return _facts(columns, triggers, cascades, engine=None)


def _facts(columns: list[Any], triggers: list[Any], cascades: list[Any], *, engine: str | None) -> TableFacts:
    return TableFacts(
        columns={name: kind for name, kind, _ in columns},
        generated=frozenset(name for name, _, generated in columns if generated),
        triggers={name: frozenset(str(events).split()) for name, events in triggers},
        cascades_to=tuple(name for (name,) in cascades),
        engine=engine,
    )


_READERS: Final[dict[str, Callable[[sa.Connection, str, str | None], TableFacts]]] = {
    "postgresql": _postgresql,
    "mysql": _mysql,
    "mariadb": _mysql,
    "sqlite": _sqlite,
}

"""Delete triggers: what the ORM tells of its own deletes, they tell of any, raw SQL and other programs included.

A trigger writes the event of `propagation` in the deleting transaction, for the subscription that is stored. Deletes of
the ORM are told twice then, and the second time finds nothing to do. PostgreSQL tells of a whole statement at once, the
others row by row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.database import Database
from crosstie.orm.errors import ModelDefinitionError
from crosstie.orm.mapping import mapping_of
from crosstie.orm.reference import Reference
from crosstie.orm.referrer import acting_references
from crosstie.outbox.migrations.lock import alone
from crosstie.outbox.propagation import KEYS_PER_EVENT, deleted_event
from crosstie.outbox.tables import outbox, route

__all__ = ["NOTING_PREFIX", "PREFIX", "Trigger", "create_triggers", "drop", "drop_triggers", "existing_triggers"]

PREFIX: Final = "crosstie_deleted_"
"""Sagas know a trigger of crosstie's by it."""
NOTING_PREFIX: Final = "crosstie_noted_"
"""Of triggers that note keys for audits: an undo may have them note once more, and nothing is acted upon."""


class Trigger(NamedTuple):
    """A trigger of crosstie's and its table."""

    name: str
    table: str


def create_triggers(database: Database) -> list[Trigger]:
    """Create the missing triggers on the parents of this database whose deletes a declared reference acts upon.

    Returns those made. Safe to repeat, and for several processes at once. Raises NoSuchTable for a parent's table or
    crosstie's own, ModelDefinitionError for a key that is neither an integer, text nor a UUID.
    """
    wanted = [one for one in acting_references() if one.parent_connection == database.name]
    with database.mapped_errors(), database.engine.begin() as connection, alone(connection):
        existing = {trigger.name for trigger in existing_triggers(database, connection)}
        made = []
        for reference in wanted:
            statements = _STATEMENTS[database.kind](reference, _Words(connection, reference))
            trigger = Trigger(_name(statements), reference.parent_table.name)
            if trigger.name not in existing:
                for statement in statements:
                    connection.exec_driver_sql(statement.replace(_NAME, trigger.name))
                made.append(trigger)
    return made


def drop_triggers(database: Database) -> list[Trigger]:
    """Drop every trigger of crosstie's in this database, whichever models made it; returns them."""
    with database.mapped_errors(), database.engine.begin() as connection, alone(connection):
        found = existing_triggers(database, connection, PREFIX, NOTING_PREFIX)
        drop(database, connection, found)
    return found


def drop(database: Database, connection: sa.Connection, triggers: Iterable[Trigger]) -> None:
    """Drop these triggers and what belongs to them; the caller commits."""
    quote = connection.dialect.identifier_preparer.quote
    for trigger in triggers:
        if database.kind == "postgresql":
            connection.exec_driver_sql(f"DROP TRIGGER {trigger.name} ON {quote(trigger.table)}")
            connection.exec_driver_sql(f"DROP FUNCTION {trigger.name}()")
        else:
            connection.exec_driver_sql(f"DROP TRIGGER {trigger.name}")


def existing_triggers(database: Database, connection: sa.Connection, *prefixes: str) -> list[Trigger]:
    """The triggers of crosstie's that there are, by name; those that tell of deletes, unless prefixes are given."""
    rows = connection.exec_driver_sql(_CATALOG[database.kind]).all()
    return sorted(Trigger(str(name), str(table)) for name, table in rows if str(name).startswith(prefixes or PREFIX))


_MYSQL_CATALOG: Final = (
    "SELECT trigger_name, event_object_table FROM information_schema.triggers WHERE trigger_schema = DATABASE()"
)
_CATALOG: Final = {
    "sqlite": "SELECT name, tbl_name FROM sqlite_master WHERE type = 'trigger'",
    "postgresql": "SELECT t.tgname, c.relname FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid"
    " WHERE NOT t.tgisinternal AND pg_table_is_visible(c.oid)",
    "mysql": _MYSQL_CATALOG,
    "mariadb": _MYSQL_CATALOG,
}
_NAME: Final = "{crosstie trigger}"
_COLUMNS: Final = ("route", "lane", "uid", "key", "operation", "type", "schema_version", "payload", "headers")


class _Words:
    """The parts that the statements are made of, quoted as this connection's dialect wants them."""

    def __init__(self, connection: sa.Connection, reference: Reference) -> None:
        self._dialect = connection.dialect
        quote = connection.dialect.identifier_preparer.quote
        kind = deleted_event(reference.parent_connection, reference.child_connection)
        self.table = quote(reference.parent_table.name)
        self.column = quote(reference.parent_column.name)
        self.reference = self.literal(reference.name)
        self.into = f"INSERT INTO {quote(outbox.name)} ({', '.join(map(quote, (*_COLUMNS, 'created_at_ms')))})"
        self.now = str(now_ms().compile(dialect=self._dialect))
        r_route, r_type, self.lanes = (f"r.{quote(name)}" for name in ("route", "event_type", "lanes"))
        self.routes = f"{quote(route.name)} AS r"
        self.subscribed = (
            f"{r_route} = {self.literal(reference.child_connection)} AND {r_type} = {self.literal(kind.__event_type__)}"
        )
        self._before, self._after = r_route, f"'event', {r_type}, {kind.__schema_version__}"

    def literal(self, value: str) -> str:
        return str(sa.literal(value).compile(dialect=self._dialect, compile_kwargs={"literal_binds": True}))

    def selected(self, *, lane: str, uid: str, payload: str) -> str:
        """The values of `into`; events of deletes are in no order: any lane will do, and each has a key of its own."""
        return f"{self._before}, {lane}, {uid}, {uid}, {self._after}, {payload}, '{{}}', {self.now}"


def _sqlite(reference: Reference, words: _Words) -> list[str]:
    _require_plain_key(reference)
    digits = "lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-' || hex(randomblob(2)) || '-'"
    values = words.selected(
        lane=f"abs(random() % {words.lanes})",
        uid=f"{digits} || hex(randomblob(2)) || '-' || hex(randomblob(6)))",
        payload=f"json_object('reference', {words.reference}, 'keys', json_array(OLD.{words.column}))",
    )
    told = f"{words.into} SELECT {values} FROM {words.routes} WHERE {words.subscribed}"  # noqa: S608 - quoted by the dialect
    when = f"AFTER DELETE ON {words.table} FOR EACH ROW WHEN OLD.{words.column} IS NOT NULL"
    return [f"CREATE TRIGGER {_NAME} {when} BEGIN {told}; END"]


def _mysql(reference: Reference, words: _Words) -> list[str]:
    _require_plain_key(reference)
    values = words.selected(
        lane=f"FLOOR(RAND() * {words.lanes})",
        uid="UUID()",
        payload=f"JSON_OBJECT('reference', {words.reference}, 'keys', JSON_ARRAY(OLD.{words.column}))",
    )
    told = f"{words.into} SELECT {values} FROM {words.routes} WHERE {words.subscribed}"  # noqa: S608 - quoted by the dialect
    return [
        f"CREATE TRIGGER {_NAME} AFTER DELETE ON {words.table} FOR EACH ROW {told} AND OLD.{words.column} IS NOT NULL"
    ]


def _postgresql(reference: Reference, words: _Words) -> list[str]:
    _require_plain_key(reference)
    values = words.selected(
        lane=f"floor(random() * {words.lanes})::int",
        uid="md5(random()::text || clock_timestamp()::text || chunks.number)::uuid::text",
        payload=f"json_build_object('reference', {words.reference}::text, 'keys', chunks.keys)::text",
    )
    present = f"FROM gone WHERE {words.column} IS NOT NULL"
    numbered = f"SELECT {words.column} AS one, (row_number() OVER () - 1) / {KEYS_PER_EVENT} AS number {present}"
    chunks = f"SELECT number, json_agg(one) AS keys FROM ({numbered}) AS numbered GROUP BY number"  # noqa: S608 - quoted by the dialect
    told = f"{words.into} SELECT {values} FROM {words.routes}, ({chunks}) AS chunks WHERE {words.subscribed}"  # noqa: S608 - quoted by the dialect
    # The tables are those of the schema in which the trigger is made, whatever path the deleting session has.
    function = f"{_NAME}() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT"
    when = f"AFTER DELETE ON {words.table} REFERENCING OLD TABLE AS gone FOR EACH STATEMENT"
    return [
        f"CREATE OR REPLACE FUNCTION {function} AS $crosstie$ BEGIN {told}; RETURN NULL; END $crosstie$",
        f"CREATE TRIGGER {_NAME} {when} EXECUTE FUNCTION {_NAME}()",
    ]


_STATEMENTS: Final[dict[str, Callable[[Reference, _Words], list[str]]]] = {
    "sqlite": _sqlite,
    "mysql": _mysql,
    "mariadb": _mysql,
    "postgresql": _postgresql,
}


def _name(statements: list[str]) -> str:
    """A name for what the trigger does: a changed one is another trigger, made beside the old one."""
    return PREFIX + hashlib.sha256("\n".join(statements).encode()).hexdigest()[:16]


def _require_plain_key(reference: Reference) -> None:
    field = mapping_of(reference.parent_model).field_of_column[reference.parent_column.name]
    if field.family not in {int, str, UUID}:
        raise ModelDefinitionError(
            f"{reference.name}: a trigger can tell of keys that are integers, text or UUIDs, and this one is of type "
            f"{reference.parent_column.type!r}. Delete such parents through the ORM."
        )

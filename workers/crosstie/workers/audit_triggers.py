"""Triggers that note keys for audits of changes: those that children take on, and those that parents give up.

A note is a row of `crosstie_audit_key`, written by the transaction that makes the change. So it can be read as soon as
the change can be seen, however late that transaction commits, and whoever made it: the ORM, raw SQL, another program.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import sqlalchemy as sa

from crosstie.orm.errors import NoSuchTable
from crosstie.orm.integrity import AuditedReference, Endpoint, tells_of_deletes
from crosstie.orm.integrity.catalog import column_facts
from crosstie.orm.integrity.uuid_storage import BINARY_TYPES
from crosstie.outbox.migrations.lock import alone
from crosstie.outbox.noting import reference_digest
from crosstie.outbox.tables import audit_key
from crosstie.outbox.trigger import NOTING_PREFIX, Trigger, drop, existing_triggers
from crosstie.workers.errors import ChangesNotNoted

__all__ = ["Noting", "create_noting", "drop_noting", "noting_of"]

Side = Literal["child", "parent"]
_NAME: Final = "{crosstie trigger}"
_MADE: Final = "{made}"
"""SQLite keeps no other mark by which a trigger is told from the one that was dropped."""


@dataclass(frozen=True)
class Noting:
    """Whether every change of one reference is noted. `identity` is another one once the triggers were made anew.

    Without `identity`, `reason` says what is missing.
    """

    identity: str | None
    reason: str | None = None


def create_noting(reference: AuditedReference) -> list[Trigger]:
    """Create the triggers of both ends that are missing; returns those made. Safe to repeat, and for several at once.

    Raises ChangesNotNoted where they would not note every change, NoSuchTable without crosstie's tables,
    KeysNotComparable, DatabaseUnavailable.
    """
    why = _why_not(reference)
    if why is not None:
        raise ChangesNotNoted(
            f"{reference.name}: expected triggers to note every change, and they cannot: {why}. Audit it in parts "
            "(--parts) or as a whole."
        )
    return [made for side, end in _ends(reference) for made in _create(reference, side, end)]


def drop_noting(reference: AuditedReference) -> list[Trigger]:
    """Drop the triggers of both ends; returns them. Raises DatabaseUnavailable."""
    return [gone for side, end in _ends(reference) for gone in _drop(reference, side, end)]


def noting_of(reference: AuditedReference) -> Noting:
    """Whether triggers note every change at both ends, now. Raises DatabaseUnavailable, KeysNotComparable."""
    why = _why_not(reference)
    if why is not None:
        return Noting(None, why)
    parts: list[str] = []
    for side, end in _ends(reference):
        database = end.database
        with database.mapped_errors(), database.autocommit.connect() as connection:
            found = _CATALOGS[database.kind](connection, end)
            names = [name for name, _ in _wanted(connection, reference, side, end)]
        if not found.keys() >= set(names):
            return Noting(None, f"no triggers note the changes of {end}: crosstie audit triggers makes them")
        parts += [f"{name}={found[name]}" for name in ("", *names)]
    return Noting(hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32])


def _why_not(reference: AuditedReference) -> str | None:
    """Why triggers cannot note every change, if so."""
    if reference.child.is_composite:
        return f"the keys of {reference.child} have several columns, and a note has one"
    if reference.child.of_type is not None:
        return f"{reference.child} has rows of one type, and a trigger on the key is not told that a type has changed"
    if not tells_of_deletes(reference):
        return (
            f"{reference.parent} takes texts for equal that are spelt otherwise, so the key of a deleted parent does "
            "not tell which children referred to it"
        )
    for side, end in _ends(reference):
        if column_facts(end).type_name in BINARY_TYPES:
            return f"{end} stores bytes, and a note of a key is text"
        database = end.database
        with database.mapped_errors(), database.autocommit.connect() as connection:
            why = _UNFIT[database.kind](connection, side, end)
        if why is not None:
            return why
    return None


def _ends(reference: AuditedReference) -> list[tuple[Side, Endpoint]]:
    return [("child", reference.child), *(("parent", end) for end in reference.parents)]


def _create(reference: AuditedReference, side: Side, end: Endpoint) -> Iterator[Trigger]:
    database = end.database
    with database.mapped_errors(), database.engine.begin() as connection, alone(connection):
        if not sa.inspect(connection).has_table(audit_key.name):
            raise NoSuchTable(f"{database.name!r} has no table {audit_key.name}: run `crosstie init`")
        existing = {one.name for one in existing_triggers(database, connection, NOTING_PREFIX)}
        for name, statements in _wanted(connection, reference, side, end):
            if name not in existing:
                for statement in statements:
                    connection.exec_driver_sql(statement.replace(_NAME, name).replace(_MADE, uuid.uuid4().hex))
                yield Trigger(name, end.table.name)


def _drop(reference: AuditedReference, side: Side, end: Endpoint) -> list[Trigger]:
    database = end.database
    with database.mapped_errors(), database.engine.begin() as connection, alone(connection):
        wanted = {name for name, _ in _wanted(connection, reference, side, end)}
        found = [one for one in existing_triggers(database, connection, NOTING_PREFIX) if one.name in wanted]
        drop(database, connection, found)
    return found


def _wanted(
    connection: sa.Connection, reference: AuditedReference, side: Side, end: Endpoint
) -> Iterator[tuple[str, Sequence[str]]]:
    """The name of each trigger, which tells what it does, and the statements that make it."""
    for statements in _STATEMENTS[connection.dialect.name](_Words(connection, reference, end), side):
        yield NOTING_PREFIX + hashlib.sha256("\n".join(statements).encode()).hexdigest()[:16], statements


class _Words:
    """The parts that the statements are made of, quoted as this connection's dialect wants them."""

    def __init__(self, connection: sa.Connection, reference: AuditedReference, end: Endpoint) -> None:
        preparer = connection.dialect.identifier_preparer
        self.table = preparer.format_table(end.table)
        self.column = preparer.quote(end.column.name)
        self.reference = f"'{reference_digest(reference.name)}'"
        columns = ", ".join(map(preparer.quote, ("reference", "key")))
        self.into = f"INSERT INTO {preparer.quote(audit_key.name)} ({columns})"


def _sqlite(words: _Words, side: Side) -> Iterator[Sequence[str]]:
    old, new = f"OLD.{words.column}", f"NEW.{words.column}"
    key, event = (new, "INSERT") if side == "child" else (old, "DELETE")
    for when, condition in (
        (event, f"{key} IS NOT NULL"),
        ("UPDATE", f"{key} IS NOT NULL AND {old} COLLATE BINARY IS NOT {new} COLLATE BINARY"),
    ):
        head = f"CREATE TRIGGER {_NAME} AFTER {when} ON {words.table} FOR EACH ROW WHEN {condition}"
        yield (f"{head} BEGIN /* {_MADE} */ {words.into} VALUES ({words.reference}, CAST({key} AS TEXT)); END",)


def _mysql(words: _Words, side: Side) -> Iterator[Sequence[str]]:
    old, new = f"OLD.{words.column}", f"NEW.{words.column}"
    key, event = (new, "INSERT") if side == "child" else (old, "DELETE")
    for when, condition in (
        (event, f"{key} IS NOT NULL"),
        ("UPDATE", f"{key} IS NOT NULL AND NOT (CAST({old} AS BINARY) <=> CAST({new} AS BINARY))"),
    ):
        # Not INSERT … SELECT, for which InnoDB would number rows of one writer at a time.
        noted = f"{words.into} VALUES ({words.reference}, CAST({key} AS CHAR))"
        head = f"CREATE TRIGGER {_NAME} AFTER {when} ON {words.table} FOR EACH ROW"
        yield (f"{head} IF {condition} THEN {noted}; END IF",)


def _postgresql(words: _Words, side: Side) -> Iterator[Sequence[str]]:
    old, new = f"OLD.{words.column}", f"NEW.{words.column}"
    key, event, rows = (new, "INSERT", "NEW") if side == "child" else (old, "DELETE", "OLD")
    noted = f"{words.into} SELECT DISTINCT {words.reference}, {words.column}::text FROM noted"  # noqa: S608 - quoted by the dialect
    yield _function(
        f"{noted} WHERE {words.column} IS NOT NULL",
        f"AFTER {event} ON {words.table} REFERENCING {rows} TABLE AS noted FOR EACH STATEMENT",
        words,
    )
    changed = f'{old}::text COLLATE "C" IS DISTINCT FROM {new}::text COLLATE "C"'
    yield _function(
        f"{words.into} VALUES ({words.reference}, {key}::text)",
        f"AFTER UPDATE ON {words.table} FOR EACH ROW WHEN ({key} IS NOT NULL AND {changed})",
        words,
    )
    if side == "parent":
        yield _function(
            f"{words.into} VALUES ({words.reference}, NULL)",
            f"AFTER TRUNCATE ON {words.table} FOR EACH STATEMENT",
            words,
        )


def _function(noted: str, when: str, words: _Words) -> Sequence[str]:
    # The table of notes is that of the schema in which the trigger is made, whatever path the writing session has.
    head = f"CREATE OR REPLACE FUNCTION {_NAME}() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT"
    return (
        f"{head} AS $crosstie$ BEGIN {noted}; RETURN NULL; END $crosstie$",
        f"CREATE TRIGGER {_NAME} {when} EXECUTE FUNCTION {_NAME}()",
        # Rows that replication brings are changes too.
        f"ALTER TABLE {words.table} ENABLE ALWAYS TRIGGER {_NAME}",
    )


_STATEMENTS: Final = {"sqlite": _sqlite, "mysql": _mysql, "mariadb": _mysql, "postgresql": _postgresql}


# -- what there is ------------------------------------------------------------------------------------------


def _unfit_postgresql(connection: sa.Connection, side: Side, end: Endpoint) -> str | None:
    del side
    alone_standing = connection.execute(
        sa.text(
            "SELECT relkind = 'r' AND NOT relispartition AND NOT relhassubclass"
            " AND NOT EXISTS (SELECT 1 FROM pg_inherits WHERE inhrelid = pg_class.oid)"
            " FROM pg_class WHERE oid = to_regclass(:name)"
        ),
        {"name": connection.dialect.identifier_preparer.format_table(end.table)},
    ).scalar_one_or_none()
    if alone_standing is not False:
        return None
    return f"{end} is in a table with partitions or heirs, which come and go with their rows"


def _unfit_mysql(connection: sa.Connection, side: Side, end: Endpoint) -> str | None:
    # InnoDB fires no trigger for what its foreign keys do.
    own = "k.column_name = :column"
    silent = f"(c.update_rule = 'CASCADE' AND {own})"
    if side == "parent":
        silent += f" OR c.delete_rule = 'CASCADE' OR (c.delete_rule = 'SET NULL' AND {own})"
    found = connection.execute(
        sa.text(
            "SELECT c.constraint_name FROM information_schema.referential_constraints AS c"  # noqa: S608 - no input
            " JOIN information_schema.key_column_usage AS k ON k.constraint_schema = c.constraint_schema"
            " AND k.constraint_name = c.constraint_name AND k.table_name = c.table_name"
            " WHERE c.constraint_schema = COALESCE(:schema, DATABASE()) AND c.table_name = :table"
            f" AND ({silent}) LIMIT 1"
        ),
        {"schema": end.table.schema, "table": end.table.name, "column": end.column.name},
    ).scalar_one_or_none()
    if found is None:
        return None
    return f"the foreign key {found!r} of {end.table.fullname!r} cascades, and InnoDB fires no trigger for that"


def _unfit_sqlite(connection: sa.Connection, side: Side, end: Endpoint) -> str | None:
    del connection, side, end  # its foreign keys fire triggers, and it has no partitions
    return None


_UNFIT: Final = {
    "sqlite": _unfit_sqlite,
    "mysql": _unfit_mysql,
    "mariadb": _unfit_mysql,
    "postgresql": _unfit_postgresql,
}


def _identities_postgresql(connection: sa.Connection, end: Endpoint) -> Mapping[str, str]:
    name = connection.dialect.identifier_preparer.format_table(end.table)
    rows = connection.execute(
        sa.text(
            "SELECT tgname, oid::text FROM pg_trigger"
            " WHERE tgrelid = to_regclass(:name) AND NOT tgisinternal AND tgenabled = 'A'"
        ),
        {"name": name},
    ).all()
    notes = connection.execute(
        sa.text("SELECT to_regclass(:notes)::oid::text"), {"notes": audit_key.name}
    ).scalar_one_or_none()
    return {str(row[0]): str(row[1]) for row in rows} | {"": str(notes)}


def _identities_mysql(connection: sa.Connection, end: Endpoint) -> Mapping[str, str]:
    rows = connection.execute(
        sa.text(
            "SELECT trigger_name, created FROM information_schema.triggers"
            " WHERE event_object_schema = COALESCE(:schema, DATABASE()) AND event_object_table = :table"
        ),
        {"schema": end.table.schema, "table": end.table.name},
    ).all()
    return {str(row[0]): str(row[1]) for row in rows} | {"": _numbers_mysql(connection, end)}


def _numbers_mysql(connection: sa.Connection, end: Endpoint) -> str:
    """The numbers of the table and of the notes' own, which TRUNCATE changes; it fires no trigger."""
    view = "innodb_sys_tables" if connection.dialect.name == "mariadb" else "innodb_tables"
    query = sa.text(
        f"SELECT table_id FROM information_schema.{view}"  # noqa: S608 - a name of ours
        " WHERE name IN (CONCAT(COALESCE(:schema, DATABASE()), '/', :table), CONCAT(DATABASE(), '/', :notes))"
        " ORDER BY table_id"
    )
    where = {"schema": end.table.schema, "table": end.table.name, "notes": audit_key.name}
    try:
        return ",".join(str(number) for number in connection.execute(query, where).scalars())
    except sa.exc.OperationalError as error:
        if getattr(error.orig, "args", (None,))[0] != _NO_PROCESS_RIGHT:
            raise
        return ""


_NO_PROCESS_RIGHT: Final = 1227


def _identities_sqlite(connection: sa.Connection, end: Endpoint) -> Mapping[str, str]:
    rows = connection.execute(
        sa.text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = :table COLLATE NOCASE"),
        {"table": end.table.name},
    ).all()
    return {str(row[0]): hashlib.sha256(row[1].encode()).hexdigest()[:16] for row in rows} | {"": ""}


_CATALOGS: Final = {
    "sqlite": _identities_sqlite,
    "mysql": _identities_mysql,
    "mariadb": _identities_mysql,
    "postgresql": _identities_postgresql,
}

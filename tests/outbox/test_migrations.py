"""crosstie's tables by numbered versions: up, down, up again, and what a version that nobody knows leads to."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from bench.databases import Solo, TestDatabase
from bench.guard import configured_databases
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.outbox.errors import SchemaChangeOffline, SchemaInUse, SchemaTooNew, UnknownSchemaVersion
from crosstie.outbox.migrations import (
    change,
    current_version,
    downgrade,
    downgrade_to,
    newest_version,
    upgrade,
    upgrade_to,
)
from crosstie.outbox.migrations.ddl import create_missing, drop_existing
from crosstie.outbox.migrations.version import Version
from crosstie.outbox.tables import create_tables, drop_tables, tables_for
from outbox.schema_shape import shape


@pytest.fixture
def empty(database: TestDatabase) -> Iterator[Database]:
    """A configured database without crosstie's tables."""
    with configured_databases(Solo(database), tables=False):
        yield ConnectionManager.get("default")


def fresh_shape(database: Database) -> dict[str, Any]:
    """The tables as their description has them, made without any migration; dropped again."""
    with database.engine.begin() as connection:
        tables = tables_for(database.kind)
        tables[0].metadata.create_all(connection, tables=[one for one in tables if one.metadata is tables[0].metadata])
        create_missing(connection, tables)
    found = shape(database.engine)
    drop_tables(database)
    return found


@pytest.fixture
def next_version(monkeypatch: pytest.MonkeyPatch) -> int:
    """A version after the newest: a table more, and an index on one that is there."""
    number = newest_version() + 1
    metadata = sa.MetaData()
    extra = sa.Table("crosstie_extra", metadata, sa.Column("n", sa.Integer), sa.Index("crosstie_extra_n", "n"))

    def up(connection: sa.Connection) -> None:
        create_missing(connection, [extra])

    def down(connection: sa.Connection) -> None:
        drop_existing(connection, [extra])

    monkeypatch.setattr(change, "VERSIONS", (*change.VERSIONS, Version(number, up, down)))
    return number


def test_versions_are_numbered_without_a_gap() -> None:
    """From 1 on, so that each leads to the next."""
    assert [version.number for version in change.VERSIONS] == list(range(1, newest_version() + 1))


def test_replayed_migrations_make_what_the_description_says(empty: Database) -> None:
    """A change of the tables without a version, or a version that does something else, is found here."""
    wanted = fresh_shape(empty)
    assert upgrade(empty) == list(range(1, newest_version() + 1))
    assert shape(empty.engine) == wanted
    assert "crosstie_saga_due" in wanted["crosstie_saga"]["indexes"]
    assert "crosstie_saga_state" in wanted["crosstie_saga"]["checks"]


@pytest.mark.parametrize(
    "difference",
    [
        "ALTER TABLE crosstie_tick ADD COLUMN extra INTEGER",
        "CREATE INDEX extra ON crosstie_tick (slot)",
        "CREATE UNIQUE INDEX extra ON crosstie_tick (slot)",
        "DROP TABLE crosstie_tick",
    ],
)
def test_a_difference_between_schema_and_description_shows(empty: Database, difference: str) -> None:
    """The comparison can fail."""
    wanted = fresh_shape(empty)
    upgrade(empty)
    with empty.engine.begin() as connection:
        connection.exec_driver_sql(difference)
    assert shape(empty.engine) != wanted


def test_up_down_and_up_again_makes_the_same_tables(empty: Database) -> None:
    """And down leaves nothing, not even the note of the version."""
    upgrade(empty)
    first = shape(empty.engine)
    assert downgrade(empty, 0) == list(range(newest_version(), 0, -1))
    assert sa.inspect(empty.engine).get_table_names() == []
    assert current_version(empty) == 0
    upgrade(empty)
    assert shape(empty.engine) == first


def test_a_database_goes_from_version_to_version_and_back(empty: Database, next_version: int) -> None:
    """Data stays where it is; a second call changes nothing."""
    newest = next_version - 1
    upgrade(empty, newest)
    before = shape(empty.engine)
    with empty.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO crosstie_route (route, event_type, lanes) VALUES ('r', 't', 1)")
    assert (upgrade(empty), upgrade(empty), current_version(empty)) == ([next_version], [], next_version)
    assert set(shape(empty.engine)) - set(before) == {"crosstie_extra"}
    assert (downgrade(empty, newest), downgrade(empty, newest), current_version(empty)) == ([next_version], [], newest)
    assert shape(empty.engine) == before
    with empty.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM crosstie_route").scalar_one() == 1


def test_a_database_that_is_further_is_left_as_it_is(empty: Database, next_version: int) -> None:
    """An old Alembic revision that asks for version 1 does not take back what `crosstie init` has done."""
    create_tables(empty)
    assert current_version(empty) == next_version
    assert upgrade(empty, 1) == []
    assert current_version(empty) == next_version


def test_tables_from_before_there_were_versions_are_taken_over(empty: Database) -> None:
    """With their rows: what is there already is left alone, and counts as version 1 from now on."""
    with empty.engine.begin() as connection:
        create_missing(connection, [table for table in tables_for(empty.kind) if table.name != "crosstie_schema"])
        connection.exec_driver_sql("INSERT INTO crosstie_route (route, event_type, lanes) VALUES ('r', 't', 1)")
    assert current_version(empty) == 0
    assert create_tables(empty) == ["crosstie_schema"]
    assert current_version(empty) == newest_version()
    with empty.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM crosstie_route").scalar_one() == 1


def test_tables_of_a_newer_crosstie_are_refused_and_not_touched(empty: Database) -> None:
    """By every way that would change them; the message names both versions."""
    upgrade(empty)
    newer = newest_version() + 41
    with empty.engine.begin() as connection:
        connection.exec_driver_sql(f"INSERT INTO crosstie_schema (version, applied_at_ms) VALUES ({newer}, 0)")
    before = shape(empty.engine)
    for attempt in (upgrade, create_tables, lambda database: downgrade(database, 0)):
        with pytest.raises(SchemaTooNew, match=rf"version {newest_version()} .* version {newer},") as caught:
            attempt(empty)
        assert (caught.value.code, caught.value.retryable) == ("outbox.schema-too-new", False)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301 - our own
    assert shape(empty.engine) == before
    assert current_version(empty) == newer


@pytest.mark.parametrize("version", [-1, 10_000])
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_version_that_does_not_exist_is_refused(empty: Database, version: int) -> None:
    """The message says which there are."""
    for change_to in (upgrade, downgrade):
        with pytest.raises(UnknownSchemaVersion, match=f"from 0 to {newest_version()} and found {version}"):
            change_to(empty, version)
    assert current_version(empty) == 0


def test_tables_with_unfinished_work_are_not_dropped(empty: Database) -> None:
    """An event that nobody has read and a saga that may have to be undone would be lost without a word."""
    create_tables(empty)
    quote = empty.dialect.identifier_preparer.quote
    work = {
        "crosstie_outbox": f"(route, lane, uid, {quote('key')}, operation, type, schema_version, payload, headers,"
        " created_at_ms) VALUES ('r', 0, 'u', 'k', 'event', 't', 1, '', '', 0)",
        "crosstie_parked": f"(route, lane, id, uid, {quote('key')}, operation, type, schema_version, payload, headers,"
        " created_at_ms, state, attempts, next_at_ms, parked_at_ms, error, deaths)"
        " VALUES ('r', 0, 1, 'u', 'k', 'event', 't', 1, '', '', 0, 'dead', 20, 0, 0, '', 0)",
        "crosstie_saga": "(saga_id, step, participant, role, state, name, home, participants, undo_log, created_at_ms,"
        " updated_at_ms, expires_at_ms, next_at_ms, attempts)"
        " VALUES ('s', 0, 'p', 'branch', 'applied', 'n', 'h', '[]', '[]', 0, 0, 0, 0, 0)",
        "crosstie_effect": "(saga_id, step, home, saga_name, compensation, arguments, state, epoch, attempts,"
        " created_at_ms, updated_at_ms, expires_at_ms, next_at_ms, lease_until_ms)"
        " VALUES ('s', 1, 'h', 'n', 'c', '{}', 'quarantined', 1, 1, 0, 0, 0, 0, 0)",
    }
    for table, values in work.items():
        with empty.engine.begin() as connection:
            connection.exec_driver_sql(f"INSERT INTO {table} {values}")
        with pytest.raises(SchemaInUse, match=r"crosstie status"):
            downgrade(empty, 0)
        assert current_version(empty) == newest_version()
        with empty.engine.begin() as connection:
            assert connection.exec_driver_sql(f"DELETE FROM {table}").rowcount == 1
    assert downgrade(empty, 0)[-1] == 1


@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
def test_the_callers_transaction_decides(empty: Database) -> None:
    """Where DDL is transactional, a rollback takes the tables back with it."""
    with empty.engine.connect() as connection:
        assert upgrade_to(connection, 1) == [1]
        assert current_version(connection) == 1
        connection.rollback()
        assert current_version(connection) == 0
        connection.rollback()
        upgrade_to(connection, 1)
        connection.commit()
        downgrade_to(connection, 0)
        connection.rollback()
    assert current_version(empty) == 1


def test_a_script_of_sql_is_refused() -> None:
    """Alembic's offline mode has no connection that could be asked anything."""
    for change_to in (upgrade_to, downgrade_to):
        with pytest.raises(SchemaChangeOffline, match="online"):
            change_to(SimpleNamespace(dialect=None), 1)  # type: ignore[arg-type]

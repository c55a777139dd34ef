"""A database that is used again is like a new one, whatever the test before has done to it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import psycopg
import pymysql
import pytest
import sqlalchemy as sa

from bench import engines, recycling, recycling_mariadb, servers
from bench.databases import Pair, TestDatabase, fresh_database
from bench.processes import Spawner

SERVED: list[engines.ServedKind] = ["postgresql", "mariadb"]
CLEARED: dict[engines.ServedKind, str] = {
    "postgresql": """
        CREATE TABLE item (id INTEGER PRIMARY KEY);
        CREATE VIEW due AS SELECT saga_id FROM crosstie_saga;
        CREATE FUNCTION one() RETURNS INTEGER LANGUAGE sql AS 'SELECT 1';
        INSERT INTO crosstie_flush VALUES (1, 1), (2, 1);
        INSERT INTO crosstie_audit_key (reference) VALUES ('counted');
        DELETE FROM crosstie_audit_key
    """,
    "mariadb": """
        CREATE TABLE item (id INTEGER PRIMARY KEY);
        CREATE VIEW due AS SELECT saga_id FROM crosstie_saga;
        CREATE FUNCTION one() RETURNS INTEGER RETURN 1;
        INSERT INTO crosstie_flush VALUES (1, 1), (2, 1);
        INSERT INTO crosstie_audit_key (reference) VALUES ('counted');
        DELETE FROM crosstie_audit_key
    """,
}
CHANGED: dict[str, dict[engines.ServedKind, str]] = {
    "a column": {
        "postgresql": "ALTER TABLE crosstie_tick ALTER COLUMN owner SET DEFAULT 'me'",
        "mariadb": "ALTER TABLE crosstie_tick ALTER COLUMN owner SET DEFAULT 'me'",
    },
    "an index": {
        "postgresql": "DROP INDEX crosstie_saga_due",
        "mariadb": "DROP INDEX crosstie_saga_due ON crosstie_saga",
    },
    "a trigger": {
        "postgresql": """
            CREATE TRIGGER same BEFORE UPDATE ON crosstie_flush
               FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()
        """,
        "mariadb": "CREATE TRIGGER same BEFORE UPDATE ON crosstie_flush FOR EACH ROW SET NEW.turn = 1",
    },
    "a row that a new one has": {
        "postgresql": "UPDATE crosstie_schema SET version = 99",
        "mariadb": "UPDATE crosstie_schema SET version = 99",
    },
}


@pytest.fixture(params=SERVED)
def served(request: pytest.FixtureRequest) -> engines.ServedKind:
    """Each kind of database that is used again, with none kept at the start."""
    kind: engines.ServedKind = request.param
    servers.require(kind)
    recycling.drop_idle()
    return kind


def described(database: TestDatabase) -> dict[str, object]:
    """What a test could find in the database, asked in another way than by the recycler."""
    engine = sa.create_engine(database.url)
    schema = "current_schema()" if database.kind == "postgresql" else "database()"
    with engine.connect() as connection:
        inspector = sa.inspect(connection)

        def rows(query: str) -> list[tuple[object, ...]]:
            return sorted(tuple(row) for row in connection.exec_driver_sql(query))

        described = {
            "columns": {name: str(column) for name, column in inspector.get_multi_columns().items()},
            "keys": inspector.get_multi_pk_constraint(),
            "indexes": {name: sorted(map(str, found)) for name, found in inspector.get_multi_indexes().items()},
            "checks": {
                name: sorted(map(str, found)) for name, found in inspector.get_multi_check_constraints().items()
            },
            "views": inspector.get_view_names(),
            "triggers": rows(f"SELECT trigger_name FROM information_schema.triggers WHERE trigger_schema = {schema}"),
            "routines": rows(f"SELECT routine_name FROM information_schema.routines WHERE routine_schema = {schema}"),
            "rows": {  # of the versions without the time
                name: rows(f"SELECT {'version' if name == 'crosstie_schema' else '*'} FROM {name}")
                for name in inspector.get_table_names()
            },
        }
    engine.dispose()
    return described


def next_number(database: TestDatabase) -> int:
    """Which key a table with a counter gives next; the counter moves."""
    database.execute("INSERT INTO crosstie_audit_key (reference) VALUES ('next')")
    return int(database.scalar("SELECT max(id) FROM crosstie_audit_key"))


def identity(database: TestDatabase) -> object:
    """The same where the same tables are used again."""
    return database.scalar("SELECT 'crosstie_saga'::regclass::oid") if database.kind == "postgresql" else database.name


def test_what_can_be_cleared_away_is_not_there_in_the_next_test(served: engines.ServedKind, tmp_path: Path) -> None:
    """The same tables are used again: without rows, with counters set back, with nothing beside them."""
    with fresh_database(served, tmp_path, furnished=True) as first:
        new, made = described(first), identity(first)
        for statement in CLEARED[served].split(";"):
            first.execute(statement)
    with fresh_database(served, tmp_path, furnished=True) as second:
        assert described(second) == new
        assert next_number(second) == 1
        assert identity(second) == made


@pytest.mark.parametrize("what", CHANGED)
def test_tables_that_were_changed_are_not_used_again(what: str, served: engines.ServedKind, tmp_path: Path) -> None:
    """They are dropped, and the next test has new ones."""
    with fresh_database(served, tmp_path, furnished=True) as first:
        new, made = described(first), identity(first)
        first.execute(CHANGED[what][served])
        assert described(first) != new
    with fresh_database(served, tmp_path, furnished=True) as second:
        assert described(second) == new
        assert identity(second) != made


def test_whoever_is_still_connected_is_so_no_longer(served: engines.ServedKind, tmp_path: Path) -> None:
    """An open transaction is neither waited for nor found again."""
    with fresh_database(served, tmp_path, furnished=True) as first:
        new = described(first)
        lingering = engines.connect(first.config)
        with closing(lingering.cursor()) as cursor:
            cursor.execute("BEGIN")
            cursor.execute("INSERT INTO crosstie_flush VALUES (1, 1)")
    with fresh_database(served, tmp_path, furnished=True) as second:
        with pytest.raises((psycopg.OperationalError, pymysql.err.OperationalError)):
            lingering.cursor().execute("COMMIT")
        assert described(second) == new
    lingering.close()


def test_a_prepared_transaction_without_a_connection_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are not there yet, and nobody is connected, but its locks would hold up the next test."""
    server = engines.server_config("mariadb", servers.require("mariadb"))
    monkeypatch.setattr(engines, "LOCK_TIMEOUT_S", 0)
    with fresh_database("mariadb", tmp_path, furnished=True) as database:
        xid = f"'{database.name}'"
        with database.connect() as connection, closing(connection.cursor()) as cursor:
            for statement in (f"XA START {xid}", "INSERT INTO crosstie_flush VALUES (1, 1)", f"XA END {xid}"):
                cursor.execute(statement)
            cursor.execute(f"XA PREPARE {xid}")
        try:
            with pytest.raises(pymysql.err.OperationalError, match="Lock wait timeout"):
                recycling_mariadb.restored(engines.admin_of(server), database.name, recycling._looks[database.name])
        finally:
            engines.hang_up(server)
            database.execute(f"XA ROLLBACK {xid}")


def test_only_a_test_that_asks_for_tables_has_them_from_the_start(configured: Pair) -> None:
    """A configuration of the test's own finds the tables made, and has nothing to make."""
    for database in configured.databases:
        assert database.tables.furnished


def test_without_that_databases_are_empty(pair: Pair) -> None:
    """Also after tests whose databases were not."""
    for database in pair.databases:
        engine = sa.create_engine(database.url)
        assert sa.inspect(engine).get_table_names() == []
        engine.dispose()


def test_what_is_kept_goes_with_the_process(served: engines.ServedKind, spawn: Spawner) -> None:
    """Nothing is left on the server."""
    child = spawn.code(
        """
        import pathlib, sys
        from bench.databases import fresh_database
        for furnished in (False, True):
            with fresh_database(sys.argv[1], pathlib.Path(), furnished=furnished) as database:
                print("made", database.name)
        """,
        served,
    )
    names = {line.split()[1] for line in child.wait_ok().splitlines()}
    listing = "SELECT datname FROM pg_database" if served == "postgresql" else "SHOW DATABASES"
    with closing(engines.connect(engines.server_config(served, servers.server_url(served)))) as admin:
        cursor = admin.cursor()
        cursor.execute(listing)
        assert not names & {row[0] for row in cursor.fetchall()}

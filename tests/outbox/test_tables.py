"""crosstie's tables: made once, by however many processes at once, and the same on every kind of database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import CreateTable

from bench.databases import Solo, TestDatabase
from bench.guard import configured_databases
from crosstie.orm.connection import ConnectionManager
from crosstie.outbox import batch, insertion, upsert
from crosstie.outbox.tables import METADATA, create_tables, drop_tables, has_tables, inbox

NAMES: Final = {table.name for table in METADATA.sorted_tables}


def test_tables_are_made_once_and_dropped_at_once(database: TestDatabase) -> None:
    """Creating says what was missing, and what is there already is left alone."""
    with configured_databases(Solo(database), tables=False):
        default = ConnectionManager.get("default")
        assert not has_tables(default)
        assert set(create_tables(default)) == NAMES
        assert has_tables(default)
        database.execute("INSERT INTO crosstie_route (route, event_type, lanes) VALUES ('r', 't', 1)")
        assert create_tables(default) == []
        assert database.scalar("SELECT count(*) FROM crosstie_route") == 1
        drop_tables(default)
        assert not has_tables(default)


def test_a_missing_table_is_added_to_those_that_are_there(database: TestDatabase) -> None:
    """A later version may bring a table of its own."""
    with configured_databases(Solo(database)):
        database.execute("DROP TABLE crosstie_tick")
        assert create_tables(ConnectionManager.get("default")) == ["crosstie_tick"]


def test_several_processes_may_make_the_tables_at_once(database: TestDatabase) -> None:
    """Every worker of a deployment may run `crosstie init` at its start."""
    with configured_databases(Solo(database), tables=False):
        default = ConnectionManager.get("default")
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(lambda _: create_tables(default), range(4)))
        assert {name for names in made for name in names} == NAMES
        indexes = sa.inspect(default.engine).get_indexes("crosstie_saga")
        assert [one["name"] for one in indexes] == ["crosstie_saga_due"]


def test_events_are_numbered_by_the_database_without_a_cache(configured_database: TestDatabase) -> None:
    """Ids in the order of the inserts, whichever connection they come from."""
    first, second = (ConnectionManager.get("default").engine.connect() for _ in range(2))
    insert = (
        "INSERT INTO crosstie_outbox (route, lane, uid, {key}, operation, type, schema_version, payload, headers,"
        " created_at_ms) VALUES ('r', 0, :uid, 'k', 'event', 't', 1, '', '', 0)"
    ).format(key=first.dialect.identifier_preparer.quote("key"))
    with first, second:
        for number, connection in enumerate([first, second, first, second]):
            connection.execute(sa.text(insert), {"uid": str(number)})
            connection.commit()
    rows = configured_database.rows("SELECT uid, id FROM crosstie_outbox ORDER BY id")
    assert [uid for uid, _ in rows] == ["0", "1", "2", "3"]
    assert [number for _, number in rows] == [1, 2, 3, 4]


def test_everything_has_a_form_for_mysql() -> None:
    """No MySQL server runs these tests; at least SQLAlchemy can say every statement in its dialect."""
    dialect = mysql.dialect()
    tables = [str(CreateTable(table).compile(dialect=dialect)) for table in METADATA.sorted_tables]
    assert all("ENGINE=InnoDB" in text for text in tables)
    assert any("AUTO_INCREMENT" in text and "UNIQUE (id)" in text for text in tables)
    for single in (False, True):
        prepared: Any = insertion._statement("mysql", returning=False, single=single)
        inserted = str(prepared.statement.compile(dialect=dialect))
        assert ("JSON_TABLE" in inserted) is not single
        assert "RETURNING" not in inserted
    first: Any = batch._BATCH
    assert "LIMIT" in str(first.statement.compile(dialect=dialect))
    absent = upsert._statement("mysql", inbox, {"origin": "o", "route": "r", "lane": 0, "ids": "[]"})
    assert "ON DUPLICATE KEY UPDATE" in str(absent.compile(dialect=dialect))


@pytest.mark.parametrize("state", ["'home', 'applied'", "'branch', 'committed'", "'other', 'done'"])
def test_a_record_in_a_state_that_its_role_does_not_have_is_refused(
    configured_database: TestDatabase, state: str
) -> None:
    """CHECK constraints hold whatever writes."""
    with pytest.raises(Exception, match=r"(?i)constraint"):
        configured_database.execute(
            "INSERT INTO crosstie_saga (saga_id, step, participant, role, state, name, home, participants, undo_log,"
            " created_at_ms, updated_at_ms, expires_at_ms, next_at_ms, attempts)"
            f" VALUES ('s', 0, 'p', {state}, 'n', 'h', '[]', '[]', 0, 0, 0, 0, 0)"
        )

"""The bench itself keeps its promises: without that, a green test of anything else proves nothing."""

from __future__ import annotations

from bench.databases import Pair, TestDatabase, Trio


def test_a_database_is_empty_and_writable(database: TestDatabase) -> None:
    """Each kind starts empty and keeps what is written through the raw connection."""
    database.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, name VARCHAR(20))")
    assert database.execute("INSERT INTO item VALUES (%s, %s)", (1, "één")) == 1
    database.execute_many("INSERT INTO item VALUES (%s, %s)", [(n, None) for n in range(2, 5)])
    assert database.rows("SELECT id, name FROM item WHERE id < %s ORDER BY id", (3,)) == [
        (1, "één"),
        (2, None),
    ]
    assert database.scalar("SELECT count(*) FROM item") == 4


def test_pairs(pair: Pair) -> None:
    assert pair.first.name != pair.second.name
    assert list(pair.configuration) == ["default", "secondary"]


def test_trios(trio: Trio) -> None:
    assert len({d.kind for d in trio.databases}) == 3

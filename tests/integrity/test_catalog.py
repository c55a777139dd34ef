"""What a server says of a column."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from bench.databases import Pair, TestDatabase
from crosstie.orm.integrity import Endpoint
from crosstie.orm.integrity.catalog import Equality, column_facts, is_indexed
from integrity.tables import linked

TABLE = sa.Table(
    "things",
    sa.MetaData(),
    *(sa.Column(name, sa.String, primary_key=name == "id") for name in ("id", "a", "b", "c")),
)


def end(column: str) -> Endpoint:
    """A column of the table, in `default`."""
    return Endpoint("default", TABLE, TABLE.c[column])


def test_indexes_are_found_where_the_column_comes_first(configured_database: TestDatabase) -> None:
    """The primary key, an index, a unique constraint; second in an index is not first."""
    configured_database.execute(
        "CREATE TABLE things (id INTEGER PRIMARY KEY, a VARCHAR(9) UNIQUE, b INTEGER, c INTEGER)"
    )
    configured_database.execute("CREATE INDEX things_b ON things (b, c)")
    assert {name: is_indexed(end(name)) for name in "abc"} == {"a": True, "b": True, "c": False}
    assert is_indexed(end("id"))


def test_how_wide_equality_is(configured_database: TestDatabase) -> None:
    """The width decides whether a key alone tells which parent a saga has touched."""
    kind = configured_database.kind
    wide = {"sqlite": "COLLATE NOCASE", "postgresql": "", "mariadb": "COLLATE utf8mb4_general_ci"}[kind]
    binary = {"sqlite": "", "postgresql": "", "mariadb": "COLLATE utf8mb4_bin"}[kind]
    configured_database.execute(
        f"CREATE TABLE things (id INTEGER PRIMARY KEY, a VARCHAR(9) {binary} UNIQUE, b VARCHAR(9) {wide} UNIQUE,"
        " c CHAR(32))"
    )
    narrow = Equality.PADDED if kind == "mariadb" else Equality.IDENTICAL
    assert column_facts(end("a")).equality is narrow
    assert column_facts(end("b")).equality is (Equality.IDENTICAL if kind == "postgresql" else Equality.WIDE)
    assert column_facts(end("c")).length == 32


@pytest.mark.parametrize("pair", [("sqlite", "postgresql")], indirect=True, ids="-".join)
def test_a_big_child_without_index_gets_a_note(configured: Pair) -> None:
    """The audit is right without it, and slow."""
    world = linked(configured)
    world.register(range(10))
    world.post([(n, n) for n in range(10)])
    assert not world.audit(chunk_size=3).notes
    configured.first.execute("DROP INDEX posts_user")
    assert any("no index" in note for note in world.audit(chunk_size=3).notes)
    assert not world.audit(chunk_size=10).notes

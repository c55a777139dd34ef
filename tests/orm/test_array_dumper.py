"""Lists that go to PostgreSQL as arrays: what arrives is what psycopg's own dumper sends, whatever is in them."""

from __future__ import annotations

import math
import random
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, Final

import psycopg
import pytest
from psycopg.types.array import ListDumper
from psycopg.types.json import Jsonb

from bench.databases import TestDatabase
from crosstie.orm import ConnectionManager
from crosstie.orm.array_dumper import ArrayDumper

AWKWARD: Final = [
    "",
    " ",
    "null",
    "NULL",
    "{}",
    "a,b",
    'a"b',
    "\\",
    '\\"',
    "\\N",
    "'",
    "\n",
    "ü",
    "\u2003",
    "🚂",
    '","',
]
COLUMNS: Final[dict[str, list[Any]]] = {
    "bigint": [0, -1, 2**63 - 1, -(2**63), 32_768, None],
    "numeric": [Decimal("1.10"), Decimal("-0"), Decimal("NaN"), Decimal("1E+30"), None],
    "double precision": [0.1, -0.0, math.inf, -math.inf, 1e300, 5e-324, None],
    "boolean": [True, False, None],
    "text": [*AWKWARD, None],
    "bytea": [b"", b"\0\\x\xff", b'"', None],
    "uuid": [uuid.UUID(int=0), uuid.uuid4(), None],
    "timestamptz": [datetime(2024, 2, 29, 23, 59, 59, 999_999, UTC), datetime(1, 1, 1, tzinfo=UTC), None],
    "timestamp": [datetime(2024, 2, 29, 1, 2, 3), None],  # noqa: DTZ001 - a column without a zone
    "date": [date(2024, 2, 29), date.max, None],
    "timetz": [time(1, 2, 3, tzinfo=timezone(timedelta(hours=-3))), None],
    "interval": [timedelta(days=-1, microseconds=1), None],
    "jsonb": [Jsonb({"a": ['"', "\\", None]}), Jsonb("x"), None],
}
POSTGRESQL = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


@pytest.fixture
def both(database: TestDatabase) -> Iterator[tuple[psycopg.Connection[Any], psycopg.Connection[Any]]]:
    """Two connections: one dumps lists here, one as psycopg does."""
    with database.connect() as ours, database.connect() as theirs:
        ours.adapters.register_dumper(list, ArrayDumper)
        theirs.adapters.register_dumper(list, ListDumper)
        yield ours, theirs


@POSTGRESQL
@pytest.mark.parametrize("kind", COLUMNS)
def test_what_arrives_is_what_psycopg_sends(
    kind: str, both: tuple[psycopg.Connection[Any], psycopg.Connection[Any]]
) -> None:
    """Of each type: every value alone, nothing, NULL alone, and at random many of them."""
    choose = random.Random(kind)
    values = COLUMNS[kind]
    lists = [[one] for one in values] + [[], [None, None], [[values[0]], [values[0]]]]
    lists += [choose.choices(values, k=choose.randint(2, 40)) for _ in range(20)]
    for one in lists:
        ours, theirs = (connection.execute(f"SELECT %s::{kind}[]::text", [one]).fetchone() for connection in both)
        assert ours == theirs


@POSTGRESQL
def test_texts_arrive_as_they_went(both: tuple[psycopg.Connection[Any], psycopg.Connection[Any]]) -> None:
    """Read back by psycopg."""
    assert both[0].execute("SELECT %s::text[]", [COLUMNS["text"]]).fetchone() == (COLUMNS["text"],)


@POSTGRESQL
@pytest.mark.parametrize("wrong", [["a\0b", "c"], [1, "a"]], ids=["zero byte", "mixed"])
def test_what_psycopg_refuses_is_refused(
    wrong: list[Any], both: tuple[psycopg.Connection[Any], psycopg.Connection[Any]]
) -> None:
    """With the same exception and words."""
    refusals = []
    for connection in both:
        with pytest.raises(psycopg.DataError) as caught:
            connection.execute("SELECT %s::text[]", [wrong])
        refusals.append(str(caught.value))
    assert refusals[0] == refusals[1]


@POSTGRESQL
def test_our_connections_dump_lists_so(configured_database: TestDatabase) -> None:
    """Those of both engines, and nobody else's."""
    database = ConnectionManager.get("default")
    for engine in (database.engine, database.autocommit):
        with engine.connect() as connection:
            raw: Any = connection.connection.dbapi_connection
            assert ArrayDumper in {raw.adapters.get_dumper(list, form) for form in psycopg.adapt.PyFormat}
    with configured_database.connect() as stranger:
        assert ArrayDumper not in {stranger.adapters.get_dumper(list, form) for form in psycopg.adapt.PyFormat}

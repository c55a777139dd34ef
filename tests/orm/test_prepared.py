"""Statements that the driver runs without SQLAlchemy in between: nobody who listens, and no error, is passed over."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from bench.databases import Pair, Solo, TestDatabase
from bench.guard import configured_databases
from bench.proxy import Proxy
from crosstie.orm import ActiveRecord, ConnectionManager, transaction
from crosstie.orm.column import Column
from crosstie.orm.errors import DatabaseUnavailable, DuplicateKey, NoSuchTable, RecordInvalid, TransactionPoisoned
from crosstie.orm.field import IntegerPKMixin
from crosstie.sagas import saga


class Knob(IntegerPKMixin, ActiveRecord):
    __table_name__ = "knobs"
    __connection__ = "default"

    name: Annotated[str, Column(unique=True)]
    odd: Annotated[int, Column(name="odd name (%)")] = 0


@pytest.fixture
def knobs(configured_database: TestDatabase) -> TestDatabase:
    """A database with the table."""
    Knob.create_table()
    return configured_database


def all_of_it() -> list[Any]:
    """Each kind of statement once, and what it gave."""
    one = Knob(name="one").save()
    found = Knob.find(one.id)
    found.update(odd=3)
    many = Knob.bulk_create(Knob(name=f"many {number}") for number in range(3))
    changed = Knob.find_by(name="one")
    one.delete()
    numbers = [knob.id or 0 for knob in many]
    return [found.odd, changed, numbers == sorted(numbers), Knob.find_by(name="one"), Knob.find_all().count()]


def outcome(values: list[Any]) -> list[Any]:
    """The values, of a record its only number."""
    return [value.odd if isinstance(value, Knob) else value for value in values]


EXPECTED = [3, 3, True, None, 3]


def test_statements_that_nobody_listens_to_do_what_they_say(knobs: TestDatabase) -> None:
    """Also with a column whose name looks like placeholders."""
    assert outcome(all_of_it()) == EXPECTED


@pytest.fixture
def heard(knobs: TestDatabase) -> Iterator[list[str]]:
    """The statements that a listener on the engine is told of: a tracer, say."""
    statements: list[str] = []

    def told(_connection: sa.Connection, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement.partition(" ")[0])

    database = ConnectionManager.get("default")
    engines = [database.engine, database.autocommit]
    for engine in engines:
        event.listen(engine, "before_cursor_execute", told)
    yield statements
    for engine in engines:
        event.remove(engine, "before_cursor_execute", told)


def test_a_listener_hears_every_statement(heard: list[str]) -> None:
    """As if SQLAlchemy had run them, and the outcome is the same."""
    assert outcome(all_of_it()) == EXPECTED
    kinds = [kind for kind in heard if kind in {"INSERT", "SELECT", "UPDATE", "DELETE"}]
    assert kinds == ["INSERT", "SELECT", "UPDATE", "INSERT", "SELECT", "DELETE", "SELECT", "SELECT"]


def test_the_log_of_statements_has_them(knobs: TestDatabase, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever turns SQLAlchemy's log on sees each of them."""
    with caplog.at_level(logging.INFO, logger="sqlalchemy.engine"):
        knob = Knob(name="logged").save()
        Knob.find(knob.id)
    logged = [record.getMessage().partition(" ")[0] for record in caplog.records]
    assert "INSERT" in logged
    assert "SELECT" in logged
    assert "logged" not in caplog.text.replace("sqlalchemy", "")


def test_an_error_is_told_as_ever(knobs: TestDatabase) -> None:
    """With our class, the database's name, and SQLAlchemy's error as its cause."""
    Knob(name="same").save()
    with pytest.raises(DuplicateKey, match="'default'") as caught:
        Knob(name="same").save()
    assert isinstance(caught.value.__cause__, sa.exc.IntegrityError)
    assert "[parameters:" not in str(caught.value.__cause__)
    Knob.drop_table()
    with pytest.raises(NoSuchTable):
        Knob.find(1)


def test_an_error_poisons_its_transaction(knobs: TestDatabase) -> None:
    """A swallowed error lets nothing commit; the connection goes on to serve others."""
    with transaction("default"):
        Knob(name="same").save()
    with pytest.raises(TransactionPoisoned), transaction("default"):
        Knob(name="other").save()
        with pytest.raises(DuplicateKey):
            Knob(name="same").save()
    assert Knob.find_all().pluck("name") == ["same"]


def test_a_value_that_no_column_takes_is_refused_before_anything_is_sent(knobs: TestDatabase) -> None:
    """And the transaction is as whole as before."""
    with transaction("default"):
        Knob(name="kept").save()
        with pytest.raises(RecordInvalid, match=r"knobs\.name"):
            Knob(name="nul \0").save()
        with pytest.raises(RecordInvalid, match=r"knobs\.name"):
            Knob.bulk_create([Knob(name="fine"), Knob(name="nul \0")])
    assert Knob.find_all().pluck("name") == ["kept"]


def test_a_lost_connection_is_noticed_and_not_used_again(knobs: TestDatabase, proxy_to: Any) -> None:
    """The statement fails with the database's name; the next one, on a new connection, succeeds."""
    if knobs.kind == "sqlite":
        pytest.skip("a file has no connection to lose")
    proxy: Proxy = proxy_to(knobs)
    with configured_databases(Solo(knobs.proxied(proxy)), tables=False):
        Knob(name="before").save()
        with pytest.raises(DatabaseUnavailable, match="'default'"), transaction("default"):
            Knob(name="lost").save()
            proxy.cut()
            Knob(name="lost too").save()
        proxy.heal()
        assert Knob.find_all().pluck("name") == ["before"]


def test_inside_a_saga_they_are_undone(configured: Pair) -> None:
    """What runs past SQLAlchemy's events is captured all the same."""
    Knob.create_table()
    kept = Knob(name="kept", odd=1).save()
    with pytest.raises(RuntimeError, match="abort"), saga("turn"):
        kept.update(odd=2)
        Knob(name="new").save()
        Knob.bulk_create(Knob(name=f"many {number}") for number in range(3))
        raise RuntimeError("abort")
    assert Knob.find_all().pluck("name", "odd") == [("kept", 1)]

"""NOTIFY is an option, comes with the commit, and comes seldom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy.orm import Session

from bench.databases import Solo, TestDatabase
from bench.guard import configured_databases
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.transaction import transaction
from crosstie.outbox import notification, publish
from crosstie.outbox.notification import CHANNEL
from outbox import bank
from outbox.bank import Moved


@pytest.fixture
def now_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be changed."""
    now = [1000.0]
    monkeypatch.setattr("crosstie.outbox.notification.time.monotonic", lambda: now[0])
    monkeypatch.setattr(notification, "_next_s", {})
    return now


@pytest.fixture
def ear(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[psycopg.Connection[Any]]:
    """A connection that listens to the bank's database, where notifications are switched on."""
    if getattr(request, "param", True):
        monkeypatch.setenv("CROSSTIE_OUTBOX__NOTIFY_EVERY_MS", "500")
    with configured_databases(Solo(database)):
        bank.create_accounts("default")
        bank.subscribe(lambda event: None, database="default")
        url = ConnectionManager.get("default").settings.url().set(drivername="postgresql")
        with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
            connection.execute(f"LISTEN {CHANNEL}")
            yield connection


def heard(ear: psycopg.Connection[Any]) -> int:
    """How many notifications had come when a statement was answered, which comes after all of them."""
    ear.execute("SELECT 1")
    return len(list(ear.notifies(timeout=0)))


only_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


@only_postgresql
def test_a_process_notifies_once_in_a_while(ear: psycopg.Connection[Any], now_s: list[float]) -> None:
    """However many transactions it commits."""
    for _ in range(5):
        bank.transfer("a")
    assert heard(ear) == 1
    now_s[0] += 0.499
    bank.transfer("a")
    assert heard(ear) == 0
    now_s[0] += 0.002
    bank.transfer("a")
    assert heard(ear) == 1


@only_postgresql
def test_it_comes_with_the_commit(ear: psycopg.Connection[Any], now_s: list[float]) -> None:
    """Not before it, and not without it."""
    with pytest.raises(ZeroDivisionError), transaction("default"):
        bank.transfer("a")
        raise ZeroDivisionError
    assert heard(ear) == 0
    now_s[0] += 1
    with Session(ConnectionManager.get("default").engine) as session:
        publish(Moved(account="a", number=1), session)
        assert heard(ear) == 0
        session.commit()
    assert heard(ear) == 1


@only_postgresql
@pytest.mark.parametrize("ear", [False], indirect=True)
def test_it_is_off_unless_it_is_switched_on(ear: psycopg.Connection[Any]) -> None:
    """It makes commits wait for each other."""
    bank.transfer("a")
    assert heard(ear) == 0


@pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
def test_other_databases_have_none(configured_database: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting is for sources in PostgreSQL; others are swept as ever."""
    monkeypatch.setenv("CROSSTIE_OUTBOX__NOTIFY_EVERY_MS", "1")
    ConnectionManager.configure(Solo(configured_database).configuration)
    bank.create_accounts("default")
    bank.subscribe(lambda event: None, database="default")
    bank.transfer("a")

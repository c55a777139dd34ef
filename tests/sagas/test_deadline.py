"""A block with a timeout: late statements are refused, the one in progress is ended, and nothing was committed."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa

from bench import guard
from bench.databases import DatabaseKind, Pair, TestDatabase, fresh_database
from crosstie.orm import ConnectionManager
from crosstie.orm.errors import LockTimeout, StatementTimeout
from crosstie.orm.faults import armed
from crosstie.sagas import SagaAborted, SagaBlock, SagaTimedOut, deadline, saga
from crosstie.sagas.deadline import Deadline
from sagas.shop import Order, Stock, contents, create_shop, saga_states


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of deadlines."""
    clock = Clock()
    monkeypatch.setattr(deadline, "monotonic", clock)
    return clock


@pytest.fixture(params=["postgresql", "mariadb"])
def server_branch(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    """`default` in SQLite, which looks at the clock itself, and `secondary` in a server that has a limit to set."""
    kind: DatabaseKind = request.param
    with (
        fresh_database("sqlite", tmp_path, furnished=True) as first,
        fresh_database(kind, tmp_path, furnished=True) as second,
    ):
        pair = Pair(first, second)
        with guard.configured_databases(pair):
            yield pair


def _write_both() -> None:
    Order(sku="new", amount=Decimal(1)).save()
    Stock(sku="new").save()


def test_a_block_that_ends_in_time_commits(configured_crash_pair: Pair) -> None:
    """Its connections go back with the limits that they had."""
    create_shop(configured_crash_pair.by_name)

    with saga("order", timeout_s=60) as s:
        _write_both()
        assert s.connection("secondary").execute(sa.text("SELECT 1")).scalar_one() == 1

    assert saga_states(configured_crash_pair.by_name) == {"default": ["committed"], "secondary": ["applied"]}
    for name in configured_crash_pair.by_name:
        with ConnectionManager.get(name).engine.connect() as connection:
            assert _limit_of(connection) in {0, "0", 10_000}


def _limit_of(connection: sa.Connection) -> object:
    questions = {
        "postgresql": "SELECT current_setting('statement_timeout')",
        "sqlite": "PRAGMA busy_timeout",
    }
    return connection.exec_driver_sql(
        questions.get(connection.dialect.name, "SELECT @@SESSION.max_statement_time")
    ).scalar_one()


def _nested(s: SagaBlock) -> None:
    with saga("inner"):
        pytest.fail("the block must not run")


def _savepoint(s: SagaBlock) -> None:
    with Stock.transaction():
        pytest.fail("the block must not run")


_LATE: dict[str, Callable[[SagaBlock], object]] = {
    "a write of the ORM": lambda _: Stock(sku="late").save(),
    "a query of the ORM": lambda _: Stock.find_by(sku="keep"),
    "Core": lambda s: s.connection("secondary").execute(sa.select(sa.literal(1))),
    "a session": lambda s: s.session("secondary").execute(sa.select(sa.literal(1))),
    "a savepoint": _savepoint,
    "a nested saga": _nested,
    "the end": lambda _: None,
}


def test_what_comes_after_the_deadline_is_refused(configured_crash_pair: Pair, clock: Clock) -> None:
    """Each way to a statement, and the end of the block; nothing was committed."""
    create_shop(configured_crash_pair.by_name)
    before = contents(configured_crash_pair.by_name)

    def be_late(name: str) -> None:
        with saga("order", timeout_s=5) as s:
            _write_both()
            clock.now_s += 5
            _LATE[name](s)
            assert name == "the end", f"{name} was not refused"

    for name in _LATE:
        with pytest.raises(SagaTimedOut, match=r"saga 'order' had not ended after its timeout of 5 s") as late:
            be_late(name)
        assert late.value.retryable

    assert contents(configured_crash_pair.by_name) == before
    assert saga_states(configured_crash_pair.by_name) == {"default": [], "secondary": []}


def test_connections_got_before_the_deadline_are_refused_too(configured_crash_pair: Pair, clock: Clock) -> None:
    """Core, textual and raw SQL on a connection that the block holds in its hands."""
    create_shop(configured_crash_pair.by_name)

    with pytest.raises(SagaTimedOut), saga("order", timeout_s=5) as s:
        connection = s.connection("secondary")
        clock.now_s += 5
        with pytest.raises(SagaTimedOut):
            connection.execute(sa.select(sa.literal(1)))
        with pytest.raises(SagaTimedOut):
            connection.execute(sa.text("SELECT 1"))
        with pytest.raises(SagaTimedOut):
            connection.exec_driver_sql("SELECT 1")

    with ConnectionManager.get("secondary").engine.connect() as connection:
        assert _limit_of(connection) in {0, "0", 10_000}, "it has kept the limit of the saga"


def test_a_database_is_not_opened_after_the_deadline(configured_crash_pair: Pair, clock: Clock) -> None:
    """Not even to read in it."""
    create_shop(configured_crash_pair.by_name)

    with pytest.raises(SagaTimedOut), saga("order", timeout_s=5):
        clock.now_s += 6
        Stock.find_by(sku="keep")


def test_a_refusal_that_is_swallowed_still_fails_the_block(configured_crash_pair: Pair, clock: Clock) -> None:
    """The deadline does not pass by being looked away from."""
    create_shop(configured_crash_pair.by_name)
    before = contents(configured_crash_pair.by_name)

    with pytest.raises(SagaTimedOut), saga("order", timeout_s=5):
        _write_both()
        clock.now_s += 6
        with suppress(SagaTimedOut):
            Stock(sku="late").save()

    assert contents(configured_crash_pair.by_name) == before


def test_commits_that_have_begun_are_not_cut_off(configured_crash_pair: Pair, clock: Clock) -> None:
    """The deadline is that of the block; between two commits it would undo what is nearly done."""
    create_shop(configured_crash_pair.by_name)

    def pass_by() -> None:
        clock.now_s += 60

    with armed("saga.before-first-commit", pass_by), saga("order", timeout_s=5):
        _write_both()

    assert saga_states(configured_crash_pair.by_name) == {"default": ["committed"], "secondary": ["applied"]}


def test_an_inner_saga_has_a_deadline_of_its_own(configured_crash_pair: Pair, clock: Clock) -> None:
    """Where it is refused, the outer saga may go on; but it cannot outlive the outer one's."""
    create_shop(configured_crash_pair.by_name)

    with saga("outer"):
        _write_both()
        with pytest.raises(SagaTimedOut, match="saga 'inner'"), saga("inner", timeout_s=5):
            Stock(sku="lost").save()
            clock.now_s += 5
            Stock(sku="late").save()
        Stock(sku="after").save()
    assert [row[1] for row in contents(configured_crash_pair.by_name)["secondary"][4:]] == ["new", "after"]

    with pytest.raises(SagaTimedOut, match="saga 'outer'"), saga("outer", timeout_s=5):
        with saga("inner", timeout_s=60):
            Stock(sku="lost").save()
        clock.now_s += 5


@contextmanager
def _locked(database: TestDatabase) -> Iterator[None]:
    """Somebody else holds the row of `keep` in `stock`; SQLite's lock is the whole file's."""
    with database.connect() as connection:
        cursor = connection.cursor()
        cursor.execute("BEGIN IMMEDIATE" if database.kind == "sqlite" else "BEGIN")
        cursor.execute("UPDATE stock SET note = 'mine' WHERE sku = 'keep' AND id = 1")
        yield
        cursor.execute("ROLLBACK")


def test_a_statement_that_waits_for_a_lock_is_ended_at_the_deadline(
    configured_crash_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is another session's; PostgreSQL would wait for ever, MariaDB 50 s, SQLite 10 s."""
    create_shop(configured_crash_pair.by_name)
    before = contents(configured_crash_pair.by_name)
    stock = Stock.find(1)

    passed_s = 0.0
    monkeypatch.setattr(deadline, "monotonic", lambda: time.monotonic() + passed_s)
    with _locked(configured_crash_pair.second), pytest.raises(SagaTimedOut) as late, saga("order", timeout_s=60):
        Order(sku="new", amount=Decimal(1)).save()
        begun = time.monotonic()
        passed_s = 58.5  # only now, so that this is left for the statement, whatever the others took
        stock.increment(reserved=1)

    assert isinstance(late.value.__cause__, LockTimeout)
    assert time.monotonic() - begun < 8
    assert contents(configured_crash_pair.by_name) == before
    with saga("order"):  # the connections that were cut short serve the next one
        Order(sku="new", amount=Decimal(1)).save()
        stock.increment(reserved=1)


_SLOW = {
    "postgresql": "SELECT pg_sleep(30)",
    "mariadb": "SELECT SLEEP(30)",
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n LIMIT 1",
}


def test_a_statement_that_runs_is_ended_at_the_deadline(configured_database: TestDatabase) -> None:
    """Its error reaches the block as SQLAlchemy's own."""
    begun = time.monotonic()
    with pytest.raises(SagaTimedOut), saga("report", timeout_s=0.3) as s:
        s.connection("default").execute(sa.text(_SLOW[configured_database.kind])).all()

    assert 0.2 < time.monotonic() - begun < 8


def test_the_limit_follows_the_time_that_is_left(server_branch: Pair, clock: Clock) -> None:
    """It is set anew when it is a quarter too long, after a savepoint took it back, and after an inner saga's."""
    create_shop(server_branch.by_name)
    kind = server_branch.second.kind

    def limit_s() -> float:
        text = str(_limit_of(s.connection("secondary")))
        return (
            float(text)
            if kind == "mariadb"
            else float(text.removesuffix("ms").removesuffix("s")) / (1000 if text.endswith("ms") else 1)
        )

    with saga("outer", timeout_s=40.0) as s:
        assert limit_s() == pytest.approx(40, abs=0.01)
        clock.now_s += 4
        assert limit_s() == pytest.approx(40, abs=0.01)
        clock.now_s += 6
        assert limit_s() == pytest.approx(30, abs=0.01)
        with suppress(ZeroDivisionError), Stock.transaction():
            clock.now_s += 10
            assert limit_s() == pytest.approx(20, abs=0.01)
            raise ZeroDivisionError
        assert limit_s() == pytest.approx(20, abs=0.01)
        with saga("inner", timeout_s=2):
            assert limit_s() == pytest.approx(2, abs=0.01)
        assert limit_s() == pytest.approx(20, abs=0.01)


def test_a_stricter_limit_of_the_users_own_is_kept(server_branch: Pair) -> None:
    """And what it ends is no timeout of the saga."""
    kind = server_branch.second.kind
    options = {
        "postgresql": {"options": "-c statement_timeout=500"},
        "mariadb": {"init_command": "SET max_statement_time = 0.5"},
    }[kind]
    create_shop(server_branch.by_name)
    ConnectionManager.configure(
        server_branch.configuration
        | {"secondary": server_branch.second.config | {"options": options, "pool_size": 1, "max_overflow": 0}}
    )
    stock = Stock.find(1)

    with _locked(server_branch.second), pytest.raises(StatementTimeout), saga("order", timeout_s=60):
        stock.increment(reserved=1)

    with ConnectionManager.get("secondary").engine.connect() as connection:
        assert str(_limit_of(connection)).startswith("500ms" if kind == "postgresql" else "0.5")


@pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), float("nan")])
def test_a_timeout_that_means_nothing_is_refused(timeout_s: float) -> None:
    """Before the block runs."""
    with pytest.raises(ValueError, match="timeout_s: expected a positive number of seconds"):
        Deadline.after("order", timeout_s)


def test_the_error_survives_pickling() -> None:
    """Celery's prefork pool sends exceptions between processes."""
    error = pickle.loads(pickle.dumps(SagaTimedOut("why", saga_id="1")))  # noqa: S301 - our own bytes

    assert isinstance(error, SagaAborted)
    assert (str(error), error.saga_id, error.code) == ("why", "1", "saga.timed-out")


def test_threads_have_deadlines_of_their_own(configured_database: TestDatabase, clock: Clock) -> None:
    """A saga without one, in another thread, is not hurried."""
    ended: list[str] = []

    def other() -> None:
        with saga("patient") as s:
            s.connection("default").execute(sa.text("SELECT 1"))
        ended.append("patient")

    with pytest.raises(SagaTimedOut), saga("hurried", timeout_s=5) as s:
        s.connection("default")
        clock.now_s += 9
        if configured_database.kind != "sqlite":
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            assert ended == ["patient"]

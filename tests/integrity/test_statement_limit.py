"""No statement of an audit runs for ever: the server cancels it, less is asked for, and at last it is said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from bench.databases import Pair, TestDatabase
from crosstie.orm import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import StatementTimeout
from crosstie.orm.faults import armed
from crosstie.orm.integrity import AuditPhase, AuditProgress, AuditState, Strategy, audit_chunk, plan_audit
from crosstie.orm.integrity.scan import Ends, KeyScan, Page
from crosstie.orm.integrity.strategies import choose_scan
from crosstie.orm.local_transaction import current
from crosstie.orm.prepared import Prepared
from crosstie.orm.statement_limit import limited_statements
from crosstie.orm.transaction import transaction
from crosstie.workers.audit import run_audit
from crosstie.workers.repair import Cap, Outcome, RepairReport, repair_reference, undo_repair
from integrity.blog import USERS, Blog
from integrity.tables import Linked, orphans

SERVED = pytest.mark.parametrize(
    "pair", [("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join
)
ONE = pytest.mark.parametrize("pair", [("sqlite", "sqlite")], indirect=True, ids="-".join)
LIMIT_S = 0.3
READ = {
    "postgresql": "SELECT CAST(setting AS INTEGER) / 1000.0 FROM pg_settings WHERE name = 'statement_timeout'",
    "mariadb": "SELECT @@SESSION.max_statement_time",
}


def limit_of(database: Database) -> float:
    """Seconds that a statement may take now; 0: no limit."""
    return float(database.rows(sa.text(READ[database.kind]))[0][0])


def limit_in_transaction(name: str) -> float:
    """The same of the thread's open transaction."""
    tx = current(name)
    assert tx is not None
    return float(tx.connection.execute(sa.text(READ[tx.database.kind])).scalar_one())


@SERVED
def test_a_connection_that_rests_has_the_limit_of_who_takes_it_next(configured: Pair) -> None:
    """Prepared statements take connections that have just been used, past the pool's queue."""
    for name, one in configured.by_name.items():
        database = ConnectionManager.get(name)
        limit = Prepared(sa.text(READ[one.kind]).columns(sa.column("seconds")))

        def read(database: Database = database, limit: Prepared = limit) -> float:
            return float(database.prepared(limit, {}).rows[0][0])

        assert read() == 0
        with limited_statements(7.5):
            assert [read(), read()] == [7.5, 7.5]
        assert [read(), read()] == [0, 0]


@SERVED
def test_a_connection_has_the_limit_that_its_block_wants(configured: Pair) -> None:
    """And none, once somebody else takes it; a shorter one of the connection's own configuration stays."""
    for name, one in configured.by_name.items():
        database = ConnectionManager.get(name)
        assert limit_of(database) == 0
        with limited_statements(7.5):
            assert limit_of(database) == 7.5
            with limited_statements(None):
                assert limit_of(database) == 0
            assert limit_of(database) == 7.5
        assert limit_of(database) == 0
        options = (
            {"options": "-c timezone=UTC -c statement_timeout=3000"}
            if one.kind == "postgresql"
            else {"init_command": "SET SESSION max_statement_time = 3"}
        )
        ConnectionManager.configure(configured.configuration | {"own": one.config | {"options": options}})
        own = ConnectionManager.get("own")
        for wanted, expected in ((7.5, 3), (2.0, 2), (None, 3)):
            with limited_statements(wanted):
                assert limit_of(own) == expected
        ConnectionManager.configure(configured.configuration)


@contextmanager
def locked(database: TestDatabase) -> Iterator[None]:
    """Nobody can read the users meanwhile."""
    statement = (
        "LOCK TABLE users IN ACCESS EXCLUSIVE MODE" if database.kind == "postgresql" else "LOCK TABLES users WRITE"
    )
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN") if database.kind == "postgresql" else None
        cursor.execute(statement)
        try:
            yield
        finally:
            connection.rollback()
            if database.kind == "mariadb":
                cursor.execute("UNLOCK TABLES")


@SERVED
def test_a_statement_that_takes_too_long_makes_the_audit_incomplete(world: Linked) -> None:
    """Here it waits for a lock that nobody gives back; never OK, and tried again by whoever comes later."""
    world.register([1])
    world.post([(1, 1), (2, 2)])
    plan = plan_audit(world.reference)
    (chunk,) = plan.chunks
    with locked(world.parent), limited_statements(LIMIT_S):
        result = audit_chunk(world.reference, plan, chunk)
    assert (result.covered.is_empty, result.retryable, result.orphan_keys) == (True, True, 0)
    assert "Raise audit.statement_timeout_s" in (result.reason or "")
    assert (result.reason or "").endswith("Pages had 500 keys by then.")
    assert orphans(world.audit()) == {2: 2}


@SERVED
def test_the_setting_holds_for_an_audit(configured: Pair, blog: Blog, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every database, and not after it."""
    monkeypatch.setenv("CROSSTIE_AUDIT__STATEMENT_TIMEOUT_S", "77")
    ConnectionManager.configure(configured.configuration)
    user = blog.user().save()
    blog.post(user_id=user.id).save()
    seen: set[float] = set()

    def look(step: AuditProgress) -> None:
        if step.phase is AuditPhase.SCANNING:
            seen.update(limit_of(ConnectionManager.get(name)) for name in configured.by_name)

    assert run_audit(progress=look).results[0].state is AuditState.OK
    assert seen == {77.0}
    assert [limit_of(ConnectionManager.get(name)) for name in configured.by_name] == [0, 0]


@contextmanager
def held(database: TestDatabase, statement: str) -> Iterator[None]:
    """The locks of this statement are somebody's meanwhile."""
    with database.connect() as connection, closing(connection.cursor()) as cursor:
        cursor.execute("BEGIN")
        cursor.execute(statement)
        yield
        cursor.execute("ROLLBACK")


@SERVED
def test_a_repair_and_its_undo_are_held_to_the_setting(
    configured: Pair, blog: Blog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes too long is rolled back, and says what to do: the fence of a parent, the write, and its undo."""
    for user_id in (blog.user(id=1).save().id, 900):
        blog.post(user_id=user_id).save()

    def patient(seconds: float) -> None:
        monkeypatch.setenv("CROSSTIE_AUDIT__STATEMENT_TIMEOUT_S", str(seconds))
        single = {"pool_size": 1, "max_overflow": 0}
        ConnectionManager.configure({name: one.config | single for name, one in configured.by_name.items()})

    def repair() -> RepairReport:
        return repair_reference(USERS, "set_null", apply=True, cap=Cap(percent=100))

    def left() -> list[tuple[Any, ...]]:
        return configured.second.rows("SELECT user_id FROM posts WHERE user_id = 900")

    patient(0.5)
    with held(configured.first, "INSERT INTO users (id, name) VALUES (900, 'x')"):
        (unfenced,) = repair().rows
    with held(configured.second, "UPDATE posts SET user_id = 1 WHERE user_id = 900"):
        (unwritten,) = repair().rows
    for row in (unfenced, unwritten):
        assert row.outcome is Outcome.SPARED
        assert "Raise audit.statement_timeout_s (0.5 s)" in (row.reason or "")
    assert left() == [(900,)]
    assert configured.second.scalar("SELECT count(*) FROM crosstie_quarantine") == 0

    patient(77)
    limits: list[float] = []
    with armed("repair.recorded", lambda: limits.append(limit_in_transaction("secondary"))):
        done = repair()
    assert (done.count(Outcome.REPAIRED), left(), limits) == (1, [], [77])
    patient(0.5)
    with held(configured.second, "UPDATE posts SET user_id = 1 WHERE user_id IS NULL"):
        (kept,) = undo_repair(done.repair_id or "").rows
    assert not kept.restored
    assert "Raise audit.statement_timeout_s (0.5 s)" in (kept.reason or "")
    assert left() == []

    patient(77)
    assert undo_repair(done.repair_id or "").exit_status == 0
    assert left() == [(900,)]
    for name in configured.by_name:
        with transaction(name):
            assert limit_in_transaction(name) == 0


@ONE
def test_pages_that_take_too_long_are_read_in_smaller_ones(world: Linked) -> None:
    """From where the last one ended; nothing is left out, and nothing is counted twice."""
    world.register(range(0, 3000, 3))
    world.post((key, key) for key in range(3000))
    sizes: list[int] = []

    class Slow:
        """A scan whose second page is too much, unless it is small."""

        def __init__(self, ends: Ends, strategy: Strategy) -> None:
            self.scan: KeyScan = choose_scan(ends, strategy)
            self.pages = 0
            self.size = ends.page_size
            sizes.append(ends.page_size)

        def read(self, after: Any) -> Page:
            self.pages += 1
            if self.size > 125 * 8 and self.pages > 1:
                raise StatementTimeout("the statement took too long")
            return self.scan.read(after)

        def missing(self, page: Page) -> Any:
            return self.scan.missing(page)

    plan = plan_audit(world.reference, page_size=1001)
    (chunk,) = plan.chunks
    result = audit_chunk(world.reference, plan, chunk, scan=Slow)
    assert (sizes, result.reason, result.keys, result.rows) == ([1001, 500], None, 3000, 3000)
    assert result.orphan_keys == 2000
    assert result.covered == chunk

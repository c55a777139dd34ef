"""A two-phase saga: prepared branches obey home, whatever dies in between, and a sweep alone finishes them.

The servers are the tests' own: they keep prepared transactions, and they are killed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, nullcontext, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest
import sqlalchemy as sa

from bench.databases import DatabaseKind, Pair, TestDatabase, Trio, fresh_database
from bench.engines import ServedKind
from bench.faults import crash_at, crash_env
from bench.guard import configured_databases
from bench.processes import Spawner
from bench.proxy import Proxy
from bench.waiting import eventually
from crosstie.orm import ConnectionManager
from crosstie.orm.errors import TransactionPoisoned
from crosstie.orm.faults import FAULT_POINTS, armed
from crosstie.orm.integrity import AuditState
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.outbox import Event
from crosstie.sagas import (
    SagaAborted,
    SagaError,
    SweepReport,
    TwoPhaseUnavailable,
    prune,
    saga,
    sweep_sagas,
)
from crosstie.sagas.inspection import find_leftovers, find_saga, find_unfinished
from crosstie.sagas.operation import end_now
from crosstie.workers import audit_sagas
from crosstie.workers.audit_sagas import TouchedBySagas
from crosstie.workers.sagas_presentation import saga_lines
from integrity.tables import linked
from sagas.preparing import Servers, prepared, sweep_until_nothing_is_prepared
from sagas.proxied import COMMIT
from sagas.shop import Invoice, Order, Stock, contents, create_shop, saga_states
from sagas.two_phase_program import order

pytestmark = [pytest.mark.xdist_group("two-phase"), pytest.mark.turns("shop")]

PROGRAM = Path(__file__).with_name("two_phase_program.py")
POINTS = sorted(point for point in FAULT_POINTS if point.startswith("two-phase."))
COMMITTED = {"two-phase.home-committed", "two-phase.ends-sent", "two-phase.branch-finished"}
SENT = "two-phase.prepares-sent"
PAIRS: list[tuple[ServedKind, ServedKind]] = [
    ("postgresql", "mariadb"),
    ("mariadb", "postgresql"),
    ("postgresql", "postgresql"),
]


class Ordered(Event):
    """Published by a branch."""

    sku: str


@pytest.fixture(params=PAIRS, ids="-".join)
def shop(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Pair]:
    """A shop over two servers, or two databases of one; `default` is home."""
    pair = Pair(*(servers[kind].database() for kind in request.param))
    with configured_databases(pair):
        create_shop(pair.by_name)
        yield pair
    for database in pair.databases:
        assert prepared(database) == [], "a branch stays prepared"


def interrupt() -> None:
    """Leave the saga where it stands, as a crash does, but in this process."""
    raise KeyboardInterrupt


def assert_outcome(shop: Pair, before: object, *, committed: bool) -> None:
    """Everything of the order, or nothing."""
    after: dict[str, list[Any]] = contents(shop.by_name)
    if committed:
        assert [row[1] for row in after["default"]][-1] == "new"
        assert [row[1:3] for row in after["secondary"]] == [
            *(("keep", 7), ("change", 0), ("delete", 0), ("count", 0), ("new", 0))
        ]
        assert saga_states(shop.by_name) == {"default": ["committed"], "secondary": ["done"]}
    else:
        assert after == before


def test_a_two_phase_saga_commits_everywhere_raw_sql_included(shop: Pair) -> None:
    """No image is kept: the records say only that it has committed."""
    order(expiry_s=60)

    assert_outcome(shop, None, committed=True)
    assert shop.second.scalar("SELECT undo_log FROM crosstie_saga") == "[]"
    assert find_leftovers("default", grace_s=0) == find_leftovers("secondary", grace_s=0) == []


def test_nobody_sees_a_branch_before_home_has_decided(shop: Pair) -> None:
    """Backward recovery shows a branch's writes before home's commit; two phases do not."""
    seen: list[object] = []
    with armed("two-phase.home-recorded", lambda: seen.append(contents(shop.by_name)["secondary"])):
        before = contents(shop.by_name)["secondary"]
        order(expiry_s=60)
    assert seen == [before]


@pytest.mark.parametrize("point", sorted(set(POINTS) - COMMITTED - {SENT}))
def test_a_saga_that_fails_leaves_nothing_prepared(point: str, shop: Pair) -> None:
    """An error before home's COMMIT rolls the branches back at once, prepared or not."""
    before = contents(shop.by_name)
    with crash_at(point), pytest.raises(SagaAborted) as caught:
        order()
    assert caught.value.pending == ()
    assert_outcome(shop, before, committed=False)
    assert not any(prepared(database) for database in shop.databases)


@pytest.mark.parametrize("point", POINTS)
def test_an_interrupted_saga_is_finished_by_a_sweep(point: str, shop: Pair) -> None:
    """Whichever point it was: what is prepared obeys home, and home says aborted if it has not committed."""
    before = contents(shop.by_name)
    with armed(point, interrupt), pytest.raises(KeyboardInterrupt):
        order()
    sweep_until_nothing_is_prepared(shop)
    assert_outcome(shop, before, committed=point in COMMITTED)


@pytest.mark.parametrize("point", ["two-phase.branch-prepared", "two-phase.home-recorded", "two-phase.home-committed"])
def test_a_killed_process_leaves_all_or_nothing_to_a_sweep(point: str, shop: Pair, spawn: Spawner) -> None:
    """The real thing: SIGKILL between PREPARE and COMMIT PREPARED."""
    before = contents(shop.by_name)
    spawn.python(str(PROGRAM), environment=shop.environment | crash_env(point)).wait_killed()
    sweep_until_nothing_is_prepared(shop)
    assert_outcome(shop, before, committed=point in COMMITTED)


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "aborted"])
def test_a_server_that_dies_with_a_prepared_branch_keeps_it(committed: bool, shop: Pair, servers: Servers) -> None:
    """After its restart a sweep commits it or rolls it back, as home says."""
    server = servers[shop.second.kind]
    before = contents(shop.by_name)

    def die() -> None:
        server.kill()
        if not committed:
            raise KeyboardInterrupt

    try:
        with suppress(KeyboardInterrupt), armed(f"two-phase.home-{'committed' if committed else 'recorded'}", die):
            order()
    finally:
        server.start()
    assert prepared(shop.second), "the server has lost what it had prepared"
    sweep_until_nothing_is_prepared(shop)
    assert_outcome(shop, before, committed=committed)


def test_a_sweep_and_a_slow_original_agree(shop: Pair) -> None:
    """A worker that comes too early takes the decision, and the original finds it taken."""
    before = contents(shop.by_name)

    def sweep_all() -> None:
        for name in shop.by_name:
            sweep_sagas(name)

    with (
        armed("two-phase.branch-prepared", sweep_all),
        pytest.raises(SagaAborted),
    ):
        order(expiry_s=0.0001)
    sweep_until_nothing_is_prepared(shop)
    assert_outcome(shop, before, committed=False)
    sweep_all()
    assert saga_states(shop.by_name)["default"] == ["finished"]


def prepare_by_hand(database: TestDatabase, name: str, key: int) -> Callable[[], bool]:
    """Have the server keep a transaction of this name; returns what rolls it back."""
    xid = name if database.kind == "mariadb" else ""
    begin = [f"XA START {xid}"] if xid else ["BEGIN"]
    end = [f"XA END {xid}", f"XA PREPARE {xid}"] if xid else [f"PREPARE TRANSACTION '{name}'"]
    with database.connect() as connection, connection.cursor() as cursor:
        for statement in [*begin, f"UPDATE stock SET note = 'x' WHERE id = {key}", *end]:
            cursor.execute(statement)

    def roll_back() -> bool:
        with suppress(pymysql.err.OperationalError):  # its connection is still closing
            database.execute(f"XA ROLLBACK {xid}" if xid else f"ROLLBACK PREPARED '{name}'")
            return True
        return False

    return roll_back


def test_what_has_not_expired_and_what_is_not_ours_is_left_alone(shop: Pair) -> None:
    """A running saga, another program's transaction, and the same names in another database of the server."""
    strangers = (
        ["'somebody','else',1", f"'crosstie:{'0' * 33}:0:1','default:secondary',1"]
        if shop.second.kind == "mariadb"
        else ["somebody:else", f"crosstie:elsewhere:{'0' * 33}:0:another:1"]
    )
    rollbacks = [prepare_by_hand(shop.second, name, key) for key, name in enumerate(strangers, start=1)]
    with (
        armed("two-phase.home-recorded", interrupt),
        pytest.raises(KeyboardInterrupt),
        saga("order", commit="two_phase", expiry_s=3600) as s,
    ):
        Order(sku="new", amount=Decimal(1)).save()
        Stock(sku="new").save()
    for name in shop.by_name:
        assert sweep_sagas(name) == SweepReport()
    assert find_leftovers("secondary", grace_s=0) == []
    found = find_saga(s.saga_id)
    assert found is not None
    assert [(one.participant, one.state) for one in found.records] == [("secondary", "prepared")]
    for rollback in rollbacks:
        eventually(rollback)
    eventually(lambda: end_now(s.saga_id).finished)


def test_leftovers_tell_of_an_undecided_branch(shop: Pair) -> None:
    """It keeps locks, and nobody else would notice; an operator's retry ends it."""
    with armed("two-phase.home-recorded", interrupt), pytest.raises(KeyboardInterrupt):
        order()
    (leftover,) = find_leftovers("secondary", grace_s=0)
    assert (leftover.kind, leftover.database) == ("undecided", "secondary")
    assert find_leftovers("secondary", grace_s=60) == []
    (listed,), _ = find_unfinished()
    assert listed.expired
    assert "secondary (branch): prepared" in "\n".join(saga_lines(listed, values=False))
    eventually(lambda: end_now(leftover.saga_id).finished)
    assert find_leftovers("secondary", grace_s=0) == []


@pytest.mark.parametrize("moment", ["withheld", "answered"])
def test_a_lost_answer_of_home_is_learnt_from_its_register(
    moment: Any, shop: Pair, proxy_to: Callable[[TestDatabase], Proxy]
) -> None:
    """The branches do what the register says, not what the caller feared."""
    proxy = proxy_to(shop.first)
    behind = Pair(shop.first.proxied(proxy), shop.second)
    before = contents(shop.by_name)
    with configured_databases(behind, tables=False):
        with Order.transaction():  # connect: MariaDB is sent a COMMIT then, too
            assert Order.find_all().count() == 4
        trigger = proxy.cut_after(COMMIT[shop.first.kind], moment=moment)
        with armed("recovery.before-decision", proxy.heal):
            if moment == "answered":
                order()
            else:
                with pytest.raises(SagaAborted):
                    order()
        assert trigger.fired.is_set()
        sweep_until_nothing_is_prepared(shop)
    assert_outcome(shop, before, committed=moment == "answered")


def test_committed_outlives_what_is_prepared(shop: Pair) -> None:
    """Retention leaves home's record as long as a branch has to ask for it."""
    with armed("two-phase.home-committed", interrupt), pytest.raises(KeyboardInterrupt):
        order(expiry_s=3600)
    age = "UPDATE crosstie_saga SET updated_at_ms = updated_at_ms - 3600000"
    shop.first.execute(age)
    assert prune("default") == 0
    sweep_until_nothing_is_prepared(shop)
    shop.second.execute(age)
    assert prune("default") == prune("secondary") == 1


@pytest.mark.parametrize("way", ["inserts", "deletes"])
def test_an_audit_judges_no_row_whose_other_half_is_prepared(
    shop: Pair, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Home shows its half, and no record tells of the rows of the other one, which nobody can see yet."""
    monkeypatch.setattr(audit_sagas, "PREPARED_WAIT_S", 0.05)
    world = linked(shop)
    child, parent = world.reference.child.table, world.reference.parent.table
    if way == "deletes":
        shop.first.execute(f"INSERT INTO {child.name} (id, user_id) VALUES (1, 10)")
        shop.second.execute(f"INSERT INTO {parent.name} (id) VALUES (10)")

    def leave_half(home: str) -> None:
        with (
            armed("two-phase.home-committed", interrupt),
            pytest.raises(KeyboardInterrupt),
            saga("half", commit="two_phase", home=home, expiry_s=3600) as s,
        ):
            if way == "inserts":
                s.connection("default").execute(sa.insert(child), {"id": 1, "user_id": 10})
                s.connection("secondary").execute(sa.insert(parent), {"id": 10})
            else:
                s.connection("default").execute(sa.delete(child))
                s.connection("secondary").execute(sa.delete(parent))

    leave_half("default" if way == "inserts" else "secondary")
    found = world.audit(suspects=TouchedBySagas())
    assert (found.orphan_rows, found.deferred_rows) == (0, 1)

    sweep_until_nothing_is_prepared(shop)
    assert world.audit(suspects=TouchedBySagas()).state is AuditState.OK


def test_a_block_that_writes_to_one_database_only_is_a_plain_commit(shop: Pair) -> None:
    """Also where that database is not home, which was only read."""
    with saga("restock", commit="two_phase"):
        assert Order.find_all().count() == 4
        with Stock.transaction():
            Stock(sku="alone").save()
        with suppress(ValueError), Stock.transaction():
            Stock(sku="taken back").save()
            raise ValueError
    assert [row[1] for row in contents(shop.by_name)["secondary"]][4:] == ["alone"]
    with saga("read", commit="two_phase"):
        assert (Order.find_all().count(), Stock.find_all().count()) == (4, 5)
    with suppress(ValueError), saga("fail", commit="two_phase"):
        Order(sku="no", amount=Decimal(1)).save()
        Stock(sku="no").save()
        raise ValueError
    assert (Order.find_all().count(), Stock.find_all().count()) == (4, 5)
    assert saga_states(shop.by_name) == {"default": [], "secondary": []}


def test_a_home_that_was_only_read_decides_over_two_branches(servers: Servers, tmp_path: Path) -> None:
    """Its record is then all that it commits."""
    file = {"driver": "sqlite", "database": str(tmp_path / "home.sqlite3")}
    first = TestDatabase("sqlite", "home", file, file)
    trio = Trio(first, servers["postgresql"].database(), servers["mariadb"].database())
    with configured_databases(trio):
        create_shop(trio.by_name)
        with saga("restock", commit="two_phase"):
            assert Order.find_all().count() == 4
            Stock(sku="new").save()
            Invoice(sku="new").save()
        states = saga_states(trio.by_name)
        assert states == {"default": ["committed"], "secondary": ["done"], "tertiary": ["done"]}
        assert (Stock.find_all().count(), Invoice.find_all().count()) == (5, 5)


def test_events_of_a_branch_are_prepared_with_it(shop: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without NOTIFY, with which PostgreSQL refuses to prepare."""
    monkeypatch.setattr("crosstie.outbox.notification.interval_s", lambda: 0.0)
    with saga("order", commit="two_phase"):
        Order(sku="new", amount=Decimal(1)).save()
        Stock(sku="new").save()
        Ordered(sku="new").publish("secondary")
    assert saga_states(shop.by_name) == {"default": ["committed"], "secondary": ["done"]}


@pytest.mark.parametrize("late", [False, True], ids=["", "tag"])
def test_a_branch_whose_transaction_has_failed_is_not_prepared(late: bool, shop: Pair) -> None:
    """PostgreSQL answers PREPARE of a failed transaction with ROLLBACK and no error: state and answer are read."""
    before = contents(shop.by_name)
    branches: list[tuple[LocalTransaction, int]] = []

    def fail_behind_its_back() -> None:
        tx, number = branches[0]
        if shop.second.kind == "mariadb":
            shop.second.execute(f"KILL {number}")
            return
        with suppress(psycopg.errors.DivisionByZero), closing(tx.connection.connection.cursor()) as cursor:
            cursor.execute("SELECT 1 / 0")

    def look(*args: Any) -> None:
        if "crosstie_saga" in args[2]:  # its record has a request of its own, because somebody listens
            fail_behind_its_back()

    if late:
        sa.event.listen(ConnectionManager.get("secondary").engine, "after_cursor_execute", look)
    with (
        pytest.raises(SagaAborted) as caught,
        nullcontext() if late else armed("two-phase.branch-recorded", fail_behind_its_back),
        saga("order", commit="two_phase") as s,
    ):
        Order(sku="new", amount=Decimal(1)).save()
        Stock(sku="new").save()
        tx = s.transaction("secondary")
        who = "SELECT CONNECTION_ID()" if shop.second.kind == "mariadb" else "SELECT pg_backend_pid()"
        branches.append((tx, tx.connection.execute(sa.text(who)).scalar_one()))
    if shop.second.kind == "postgresql":
        assert isinstance(caught.value.__cause__, TransactionPoisoned)
        assert ("answered PREPARE TRANSACTION with ROLLBACK" in str(caught.value)) is late
    assert_outcome(shop, before, committed=False)


def refusal(kinds: tuple[DatabaseKind, DatabaseKind], folder: Path) -> str:
    """What a two-phase saga over databases of the common servers says; nothing was committed."""
    with ExitStack() as stack:
        pair = Pair(*(stack.enter_context(fresh_database(kind, folder, furnished=True)) for kind in kinds))
        with configured_databases(pair):
            create_shop(pair.by_name)
            before = contents(pair.by_name)
            with pytest.raises(TwoPhaseUnavailable) as caught:
                order()
            assert contents(pair.by_name) == before
    return str(caught.value)


def test_sqlite_is_home_or_nothing(tmp_path: Path, servers: Servers) -> None:
    """It cannot prepare, and says what else to do; as home it need not."""
    assert "saga(…, home='secondary')" in refusal(("sqlite", "sqlite"), tmp_path)
    file = tmp_path / "home.sqlite3"
    config = {"driver": "sqlite", "database": str(file)}
    pair = Pair(TestDatabase("sqlite", "home", config, config), servers["postgresql"].database())
    with configured_databases(pair):
        create_shop(pair.by_name)
        order()
        assert_outcome(pair, None, committed=True)


def test_a_standard_postgresql_is_refused_with_the_name_of_the_setting(tmp_path: Path) -> None:
    """Its max_prepared_transactions is 0, which only a restart changes."""
    with fresh_database("postgresql", tmp_path) as probe:
        if probe.scalar("SHOW max_prepared_transactions") != "0":
            pytest.skip("the tests' PostgreSQL server keeps prepared transactions")
    assert "max_prepared_transactions" in refusal(("sqlite", "postgresql"), tmp_path)


def test_a_two_phase_saga_refuses_what_contradicts_it(servers: Servers) -> None:
    """Row locks of crosstie's own, an unknown way to commit, and an inner saga that wants another end."""
    with pytest.raises(SagaError, match="isolation"):
        saga("order", commit="two_phase", isolation="locked")
    with pytest.raises(SagaError, match="two_phase"):
        saga("order", commit="twice")  # type: ignore[arg-type]
    with configured_databases(Pair(servers["postgresql"].database(), servers["mariadb"].database())):
        with saga("outer"), pytest.raises(SagaError, match="outer one has backward"), saga("in", commit="two_phase"):
            pytest.fail("it was let in")
        with saga("outer", commit="two_phase"), saga("in"), saga("in", commit="two_phase"):
            pass


def test_names_that_no_server_can_keep_are_refused(servers: Servers) -> None:
    """An XA id has 64 bytes for the names of the connections."""
    pair = Pair(servers["postgresql"].database(), servers["mariadb"].database())
    with configured_databases(pair):
        long = "x" * 60
        ConnectionManager.configure({"default": pair.first.config, long: pair.second.config})
        with pytest.raises(TwoPhaseUnavailable, match="shorter names"), saga("order", commit="two_phase") as s:
            s.transaction("default")
            s.transaction(long)

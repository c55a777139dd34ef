"""A lane is read from behind what is gone from it for good, and nothing that is committed late is passed over."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa

from bench.databases import Pair, TestDatabase
from crosstie.orm.connection import ConnectionManager
from crosstie.outbox import drain, horizon, lane, sweep_lanes
from crosstie.outbox.envelope import Envelope
from crosstie.outbox.horizon import Horizon, horizon_of
from crosstie.outbox.insertion import insert_events
from outbox import bank

FROM_POSTGRESQL = pytest.mark.parametrize("pair", [("postgresql", "mariadb")], indirect=True, ids="-".join)


@pytest.fixture(autouse=True)
def _look_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(horizon, "LOOK_S", 0.0)


def emptied_to(database: TestDatabase) -> int:
    """Of the lane that has got furthest."""
    return int(database.scalar("SELECT max(emptied_to) FROM crosstie_lane"))


class Writer(NamedTuple):
    """As PostgreSQL tells of it."""

    transaction: str
    pid: int | None


class Locks:
    """A source that knows nothing but who writes into its outbox."""

    kind = "postgresql"

    def __init__(self) -> None:
        self.writers: list[Writer] = []

    def prepared(self, *_: object) -> Any:
        """The answer to the one question that is asked."""
        return type("Answer", (), {"rows": list(self.writers)})


@pytest.fixture
def locks() -> Locks:
    """Nobody writes."""
    return Locks()


def test_an_id_is_final_once_all_have_ended_who_wrote_when_it_was_known(locks: Locks) -> None:
    """Whoever begins later gets a greater one."""
    known = Horizon(locks)  # type: ignore[arg-type]
    locks.writers = [Writer("3/1", 10), Writer("4/1", 11)]
    known.saw(50)
    assert known.final() == 0
    locks.writers = [Writer("4/1", 11), Writer("3/2", 10)]
    known.saw(70)
    assert known.final() == 0
    locks.writers = [Writer("3/2", 10), Writer("4/2", 11)]
    assert known.final() == 50
    assert known.final() == 50  # 70 was known when these two had begun
    locks.writers = []
    assert known.final() == 70


def test_a_transaction_that_was_prepared_meanwhile_is_waited_for(locks: Locks) -> None:
    """It goes by another name then, and has no process."""
    known = Horizon(locks)  # type: ignore[arg-type]
    locks.writers = [Writer("3/1", 10)]
    known.saw(50)
    assert known.final() == 0
    locks.writers = [Writer("-1/777", None)]
    assert known.final() == 0
    locks.writers = []
    assert known.final() == 50


@FROM_POSTGRESQL
def test_a_lane_begins_behind_what_is_gone(configured: Pair) -> None:
    """Some batches later, when nobody writes any more."""
    bank.open_bank()
    for times in (1, 2, 3):
        bank.transfer("a", times=times)
        assert drain("default", "secondary", owner="one") == times
    assert emptied_to(configured.first) == 3  # what was known when the last batch was read
    assert bank.arrivals(configured.second) == [("a", number) for number in range(1, 7)]


@FROM_POSTGRESQL
def test_a_writer_that_commits_late_is_waited_for(configured: Pair) -> None:
    """Its event is delivered although greater ids of its lane were delivered, looked at and deleted meanwhile."""
    bank.open_bank()
    engine = ConnectionManager.get("default").engine
    with engine.connect() as late:
        insert_events(late, [Envelope.of(bank.Moved(account="a", number=1))])
        for number in range(2, 6):
            with engine.begin() as early:
                insert_events(early, [Envelope.of(bank.Moved(account="a", number=number))])
            assert sweep_lanes("default", owner="one") == 1
            assert emptied_to(configured.first) == 0
        late.commit()
    assert sweep_lanes("default", owner="one") == 1
    assert sorted(bank.arrivals(configured.second)) == [("a", number) for number in range(1, 6)]


@FROM_POSTGRESQL
def test_looking_for_work_does_not_walk_over_what_an_old_snapshot_keeps(
    configured: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleted events cannot be cleaned away while somebody may see them."""
    monkeypatch.setenv("CROSSTIE_OUTBOX__LANES", "1")
    ConnectionManager.configure(configured.configuration)
    bank.open_bank()
    database = ConnectionManager.get("default")
    with database.engine.connect().execution_options(isolation_level="REPEATABLE READ") as old:
        old.execute(sa.text("SELECT count(*) FROM crosstie_lane")).all()
        for times in (2000, 1, 1):
            bank.transfer("a", times=times)
            assert drain("default", "secondary", owner="one", limit_s=60) == times
        pages = pages_of_a_look(configured.first)
        configured.first.execute("UPDATE crosstie_lane SET emptied_to = 0")
        assert pages < pages_of_a_look(configured.first) / 2


def pages_of_a_look(database: TestDatabase) -> int:
    """How many the server has to read to answer which lanes have work."""
    statement = lane._with_work().compile(
        dialect=ConnectionManager.get("default").dialect, compile_kwargs={"literal_binds": True}
    )
    (plan,) = database.rows(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}")
    told = json.loads(plan[0]) if isinstance(plan[0], str) else plan[0]
    return int(told[0]["Plan"]["Shared Hit Blocks"]) + int(told[0]["Plan"]["Shared Read Blocks"])


@FROM_POSTGRESQL
def test_ids_that_begin_anew_are_delivered(configured: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """Somebody has emptied the outbox by hand; a worker that starts finds what its lanes would hide."""
    bank.open_bank()
    for _ in range(3):
        bank.transfer("a", times=3)
        assert drain("default", "secondary", owner="one") == 3
    assert emptied_to(configured.first) > 3
    configured.first.execute("TRUNCATE crosstie_outbox RESTART IDENTITY")
    bank.transfer("a", times=3)
    assert drain("default", "secondary", owner="one") == 0
    ConnectionManager.configure(configured.configuration)  # as a process that starts
    assert drain("default", "secondary", owner="one") == 3
    assert "ids that had been in use before" in caplog.text
    assert not horizon_of(ConnectionManager.get("default")).check()


def test_every_server_delivers_with_the_lane_that_it_has(configured: Pair) -> None:
    """Where the horizon is not known, lanes are read from the beginning."""
    bank.open_bank()
    for times in (1, 2, 3):
        bank.transfer("b", times=times)
        assert drain("default", "secondary", owner="one") == times
    assert bank.arrivals(configured.second) == [("b", number) for number in range(1, 7)]
    assert (emptied_to(configured.first) > 0) == (configured.first.kind == "postgresql")

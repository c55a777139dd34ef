"""Forward recovery: whatever dies at whatever point, a sweep alone ends the saga, with all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from bench.databases import Pair, TestDatabase, Trio
from bench.faults import crash_at, crash_env
from bench.processes import Spawner
from bench.proxy import Moment, Proxy
from bench.waiting import eventually
from crosstie.orm import ConnectionManager
from crosstie.orm.errors import DatabaseUnavailable
from crosstie.orm.faults import FAULT_POINTS, armed
from crosstie.sagas import (
    SagaAborted,
    SagaBlock,
    SagaInDoubt,
    SweepReport,
    doorbell,
    image,
    owed,
    prune,
    record,
    resolve_saga,
    saga,
    sweep_sagas,
)
from crosstie.sagas.inspection import find_unfinished
from crosstie.sagas.record import SagaHeader
from crosstie.sagas.resolution import Manner
from sagas.bank import Posting, balances, create_bank, transfer
from sagas.proxied import Bench, behind_proxies
from sagas.shop import saga_states, sweep_until_quiet

pytestmark = pytest.mark.turns("bench")

PROGRAM = Path(__file__).with_name("forward_program.py")
POINTS = sorted(point for point in FAULT_POINTS if point.startswith("forward."))
REDO_POINTS = sorted(point for point in FAULT_POINTS if point.startswith("redo."))
COMMITTED = {"forward.home-committed", "forward.branch-committed"}


def interrupt() -> None:
    """Leave the saga where it stands, as a crash does, but in this process."""
    raise KeyboardInterrupt


def whole(databases: dict[str, TestDatabase], *, before: object) -> dict[str, list[Any]]:
    """The rows after a transfer, once a sweep has found nothing more to do; each is there once."""
    after = balances(databases)
    assert after != before
    assert len(after["transfers"]) == 1
    assert [str(row[1]) for row in after["accounts"]] == ["ann", "bob"]
    assert [(float(row[2]), row[3]) for row in after["accounts"]] == [(87.5, "moved"), (100, None)]
    assert sorted(row[1] for row in after["postings"]) == ["first", "upserted", "upserted over"]
    assert [(round(float(row[2]), 2), row[3]) for row in after["postings"] if row[1] == "first"] == [(0.1, 3)]
    assert [row[1] for row in after.get("notices", [])][1:] == ["moved"] * ("notices" in after)
    return after


def assert_outcome(databases: dict[str, TestDatabase], before: object, *, committed: bool) -> None:
    """Everything of the transfer once, or nothing."""
    if not committed:
        assert balances(databases) == before
        assert all(set(states) <= {"finished"} for states in saga_states(databases).values())
        return
    whole(databases, before=before)
    states = saga_states(databases)
    assert states.pop("default") == ["committed"]
    assert all(state == ["done"] for state in states.values())


def _kill_at(spawn: Spawner, databases: Pair | Trio, point: str, verb: str = "saga", nth: int = 1) -> None:
    environment = databases.environment | crash_env(point, nth)
    spawn.python(str(PROGRAM), verb, *databases.by_name, environment=environment).wait_killed()


@pytest.mark.parametrize("point", POINTS)
def test_a_process_killed_in_a_saga_leaves_all_or_nothing(
    point: str, configured_crash_pair: Pair, spawn: Spawner
) -> None:
    """What home has committed is done in the branch by a sweep; before that nothing is anywhere."""
    databases = configured_crash_pair.by_name
    create_bank(databases)
    before = balances(databases)

    _kill_at(spawn, configured_crash_pair, point)
    sweep_until_quiet(databases)

    assert_outcome(databases, before, committed=point in COMMITTED)


@pytest.mark.parametrize(
    ("point", "nth"),
    [("forward.branch-recorded", 2), ("forward.home-committed", 1), *(("forward.branch-committed", n) for n in (1, 2))],
)
def test_a_process_killed_in_a_saga_over_three_databases_leaves_all_or_nothing(
    point: str, nth: int, configured_trio: Trio, spawn: Spawner
) -> None:
    """None, one or both of the branches may have followed when the process dies."""
    databases = configured_trio.by_name
    create_bank(databases)
    before = balances(databases)

    _kill_at(spawn, configured_trio, point, nth=nth)
    sweep_until_quiet(databases)

    assert_outcome(databases, before, committed=point in COMMITTED)


@pytest.mark.parametrize("point", REDO_POINTS)
def test_a_redoer_that_is_killed_leaves_work_for_the_next(
    point: str, configured_crash_pair: Pair, spawn: Spawner
) -> None:
    """The original dies after home's commit, the one that follows dies too, and the next one finishes."""
    databases = configured_crash_pair.by_name
    create_bank(databases)
    before = balances(databases)

    _kill_at(spawn, configured_crash_pair, "forward.home-committed")
    _kill_at(spawn, configured_crash_pair, point, verb="sweep")
    sweep_until_quiet(databases)

    assert_outcome(databases, before, committed=True)


@pytest.mark.parametrize("point", POINTS)
def test_an_interrupted_saga_is_finished_by_a_sweep(point: str, configured: Pair) -> None:
    """The same in this process, over every pair of databases."""
    create_bank(configured.by_name)
    before = balances(configured.by_name)

    with armed(point, interrupt), pytest.raises(KeyboardInterrupt), saga("transfer", recover="forward", expiry_s=-1):
        transfer()
    sweep_until_quiet(configured.by_name)

    assert_outcome(configured.by_name, before, committed=point in COMMITTED)


@pytest.mark.parametrize("point", sorted(set(POINTS) - COMMITTED))
def test_a_saga_that_fails_before_home_has_committed_leaves_nothing(point: str, configured: Pair) -> None:
    """There is nothing to undo, and no record of it; the records in memory are unsaved again."""
    create_bank(configured.by_name)
    before = balances(configured.by_name)

    with crash_at(point), pytest.raises(SagaAborted) as caught, saga("transfer", recover="forward"):
        transfer()
        posting = Posting(text="mine").save()

    assert caught.value.pending == ()
    assert balances(configured.by_name) == before
    assert saga_states(configured.by_name) == {"default": [], "secondary": []}
    posting.save()
    assert Posting.find_all().count() == 2


def left_owing(expiry_s: float = -1) -> SagaBlock:
    """A saga whose process has gone after home's commit."""
    with (
        armed("forward.home-committed", interrupt),
        pytest.raises(KeyboardInterrupt),
        saga("transfer", recover="forward", expiry_s=expiry_s) as s,
    ):
        transfer()
    return s


def test_two_sweepers_at_once_do_it_once(configured: Pair) -> None:
    """Both find the saga owing, both insert the branch's record, and one gets through."""
    create_bank(configured.by_name)
    before = balances(configured.by_name)
    left_owing()
    together = Barrier(2)

    def sweep(_: int) -> SweepReport:
        together.wait(timeout=60)
        return sweep_sagas("default")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(sweep, range(2)))

    sweep_until_quiet(configured.by_name)
    assert_outcome(configured.by_name, before, committed=True)


def test_a_saga_that_has_not_expired_is_left_to_its_process(configured: Pair) -> None:
    """A sweep settles it if its branches are done, and else waits; the doorbell says that the process has left."""
    create_bank(configured.by_name)
    before = balances(configured.by_name)
    s = left_owing(expiry_s=3600)

    assert sweep_sagas("default") == SweepReport()
    assert resolve_saga(s.saga_id, "default") == SweepReport(settled=1)

    assert_outcome(configured.by_name, before, committed=True)


def test_a_redoer_that_comes_years_later_does_nothing(configured: Pair) -> None:
    """It read `owed`, and stood still until the branch was done, the saga settled and the branch's record deleted."""
    create_bank(configured.by_name)
    before = balances(configured.by_name)
    found = record.read(left_owing().saga_id, "default")
    assert found is not None
    entries = image.load(found.undo_log)
    sweep_sagas("default")
    after = whole(configured.by_name, before=before)
    for name in ("secondary", "default"):
        configured.by_name[name].execute("UPDATE crosstie_saga SET updated_at_ms = updated_at_ms - 36000000")
        assert prune(name) == 1

    for _ in range(2):
        with pytest.raises(owed._NothingOwed):
            owed._redo_once(found.header, "secondary", entries, Manner.CHECKED)

    assert balances(configured.by_name) == after
    assert saga_states(configured.by_name) == {"default": [], "secondary": []}


def test_the_record_of_a_branch_stays_as_long_as_home_owes(configured: Pair) -> None:
    """It is the barrier; and a home that cannot be asked may owe."""
    create_bank(configured.by_name)
    with saga("transfer", recover="forward"):
        transfer()
    configured.second.execute("UPDATE crosstie_saga SET updated_at_ms = updated_at_ms - 36000000")

    assert prune("secondary") == 0
    ConnectionManager.configure(configured.configuration | {"default": "postgresql://root@127.0.0.1:1/nothing"})
    assert prune("secondary") == 0
    ConnectionManager.configure(configured.configuration)
    assert sweep_sagas("default").settled == 1
    assert prune("secondary") == 1


_IMPATIENT: dict[str, dict[str, object]] = {"sqlite": {"busy_timeout_s": 0.2}, "postgresql": {}, "mariadb": {}}


def test_a_sweep_waits_for_an_original_that_is_only_slow(configured: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch's transaction holds the register, so a worker that is too early defers the saga."""
    create_bank(configured.by_name)
    before = balances(configured.by_name)
    impatient = configured.second.config | _IMPATIENT[configured.second.kind]
    monkeypatch.setenv("CROSSTIE_SAGA__LOCK_TIMEOUT_S", "1")
    ConnectionManager.configure(configured.configuration | {"secondary": impatient})
    seen: list[SweepReport] = []

    with (
        armed("forward.home-committed", lambda: seen.append(sweep_sagas("default"))),
        saga("transfer", recover="forward", expiry_s=-1) as s,
    ):
        transfer()

    assert seen == [SweepReport(deferred=1)]
    assert s.owed == ()
    configured.first.execute("UPDATE crosstie_saga SET next_at_ms = 0")
    assert sweep_sagas("default") == SweepReport(settled=1)
    assert_outcome(configured.by_name, before, committed=True)


# -- lost answers, and databases that are away ---------------------------------------------------------------


@pytest.fixture(params=[("postgresql", "mariadb"), ("mariadb", "postgresql")], ids="-".join)
def bench(request: pytest.FixtureRequest, tmp_path: Path, proxy_to: Callable[[TestDatabase], Proxy]) -> Iterator[Bench]:
    """Both databases behind proxies, warm: nothing but the saga's own statements will pass."""
    with behind_proxies(request.param, tmp_path, proxy_to, create_bank) as made:
        yield made


@pytest.mark.parametrize("moment", ["answered", "withheld"])
def test_a_lost_answer_of_home_is_learnt_from_its_register(moment: Moment, bench: Bench) -> None:
    """It either owes, and the branch follows, or it is told never to."""
    before = balances(bench.databases)
    trigger = bench.lose_commit_of("default", moment)

    with armed("recovery.before-decision", bench.home.heal):
        if moment == "answered":
            with saga("transfer", recover="forward") as s:
                transfer()
            assert s.owed == ()
        else:
            with pytest.raises(SagaAborted) as caught, saga("transfer", recover="forward"):
                transfer()
            assert caught.value.pending == ()

    assert trigger.fired.is_set()
    sweep_until_quiet(bench.databases)
    assert_outcome(bench.databases, before, committed=moment == "answered")


@pytest.mark.parametrize("moment", ["answered", "withheld"])
def test_an_unreachable_home_leaves_the_saga_in_doubt_until_a_sweep(moment: Moment, bench: Bench) -> None:
    """The caller is told neither success nor failure, and the branch does what home says."""
    before = balances(bench.databases)
    bench.lose_commit_of("default", moment)

    with pytest.raises(SagaInDoubt), saga("transfer", recover="forward", expiry_s=0.001):
        transfer()

    bench.home.heal()
    eventually(lambda: sweep_sagas("default").deferred == 0)
    sweep_until_quiet(bench.databases)
    assert_outcome(bench.databases, before, committed=moment == "answered")


def test_an_original_that_cannot_rule_out_a_commit_says_so(bench: Bench) -> None:
    """Home has no record, and the branch's transaction, which would have shown that it never had one, is gone."""
    before = balances(bench.databases)
    bench.lose_commit_of("default", "withheld")

    def lose_the_branch_too() -> None:
        bench.home.heal()
        bench.branch.cut()

    with (
        armed("recovery.before-decision", lose_the_branch_too),
        pytest.raises(SagaInDoubt),
        saga("transfer", recover="forward"),
    ):
        transfer()

    assert saga_states(bench.databases) == {"default": [], "secondary": []}
    assert balances(bench.databases) == before


@pytest.mark.parametrize("moment", ["answered", "withheld"])
def test_a_branch_whose_commit_is_in_doubt_is_done_once(moment: Moment, bench: Bench) -> None:
    """Its register tells whether it has followed; if not, it is redone at once."""
    before = balances(bench.databases)
    trigger = bench.lose_commit_of("secondary", moment)

    with armed("forward.branch-committed", bench.branch.heal), saga("transfer", recover="forward") as s:
        transfer()

    assert trigger.fired.is_set()
    assert s.settle(20)
    sweep_until_quiet(bench.databases)
    assert_outcome(bench.databases, before, committed=True)


def test_a_redoer_that_cannot_look_at_home_again_does_nothing(bench: Bench) -> None:
    """Home may have forgotten the saga by now."""
    before = balances(bench.databases)
    left_owing()

    with armed("redo.recorded", bench.home.cut), pytest.raises(DatabaseUnavailable):
        sweep_sagas("default")

    assert balances(bench.databases)["postings"] == before["postings"]
    bench.home.heal()
    sweep_until_quiet(bench.databases)
    assert_outcome(bench.databases, before, committed=True)


@pytest.mark.parametrize("moment", ["answered", "withheld"])
def test_a_redo_whose_commit_is_in_doubt_is_done_once(moment: Moment, bench: Bench) -> None:
    """It asks the branch's register, as everybody does."""
    before = balances(bench.databases)
    left_owing()
    trigger = bench.lose_commit_of("secondary", moment)

    sweep_sagas("default")

    assert trigger.fired.is_set()
    bench.branch.heal()
    bench.databases["default"].execute("UPDATE crosstie_saga SET next_at_ms = 0")
    sweep_until_quiet(bench.databases)
    assert_outcome(bench.databases, before, committed=True)


def test_a_branch_that_is_away_is_owed_its_writes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block ends well, says what is to come, rings for a worker, and waits on demand."""
    before = balances(bench.databases)
    rung: list[SagaHeader] = []
    monkeypatch.setattr(doorbell, "_listeners", [rung.append])

    with armed("forward.home-committed", bench.branch.cut), saga("transfer", recover="forward", expiry_s=-1) as s:
        transfer()

    assert s.owed == ("secondary",)
    assert [one.saga_id for one in rung] == [s.saga_id]
    assert not s.settle(0)
    (found,), _ = find_unfinished(["default"])
    assert (found.decision, list(found.owed)) == ("owed", ["secondary"])
    assert sweep_sagas("default") == SweepReport(deferred=1)
    bench.branch.heal()
    assert s.settle(20)
    assert find_unfinished() == ([], {})
    assert_outcome(bench.databases, before, committed=True)

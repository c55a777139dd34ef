"""A real worker, nothing else, finishes what processes killed at every named point of a saga have left."""

from __future__ import annotations

from pathlib import Path

from bench.databases import Pair, Trio
from bench.faults import crash_env
from bench.processes import Spawner
from bench.waiting import eventually
from crosstie.orm.faults import FAULT_POINTS
from sagas.bank import balances, create_bank
from sagas.shop import contents, create_shop, saga_states

PROGRAM = Path(__file__).parent.parent / "sagas" / "crash_program.py"
FORWARD = PROGRAM.with_name("forward_program.py")
POINTS = sorted(point for point in FAULT_POINTS if point.startswith("saga."))
COMMITTED = {"keep", "changed", "count", "new"}


def _crash_everywhere_then_work(databases: Pair | Trio, spawn: Spawner) -> None:
    tags = {point: f"{number}:" for number, point in enumerate(POINTS)}
    create_shop(databases.by_name, tags.values())
    before = {tag: contents(databases.by_name, tag) for tag in tags.values()}

    for point, tag in tags.items():
        child = spawn.python(
            str(PROGRAM), "saga", tag, *databases.by_name, environment=databases.environment | crash_env(point)
        )
        child.wait_killed()
    assert any(contents(databases.by_name, tag) != before[tag] for tag in tags.values()), "nothing was half done"
    spawn.worker(environment=databases.environment)

    def quiet() -> bool:
        left = {state for states in saga_states(databases.by_name).values() for state in states}
        return not left & {"applied", "aborted"}

    eventually(quiet, describe="no saga is unfinished")
    for point, tag in tags.items():
        after = contents(databases.by_name, tag)
        if point == "saga.home-committed":
            assert {str(row[1]).removeprefix(tag) for row in after["secondary"]} == COMMITTED
            assert all(f"{tag}new" in {row[1] for row in rows} for rows in after.values())
        else:
            assert after == before[tag], point


def test_a_worker_finishes_sagas_over_two_databases(configured_crash_pair: Pair, spawn: Spawner) -> None:
    """All or nothing in both, for each point at which the original was killed."""
    _crash_everywhere_then_work(configured_crash_pair, spawn)


def test_a_worker_finishes_sagas_over_three_databases(configured_trio: Trio, spawn: Spawner) -> None:
    """All or nothing in all three."""
    _crash_everywhere_then_work(configured_trio, spawn)


def test_a_worker_does_what_a_killed_process_owed(configured_crash_pair: Pair, spawn: Spawner) -> None:
    """Home had committed, and the branch had not followed; the worker knows none of the models."""
    databases = configured_crash_pair.by_name
    create_bank(databases)
    environment = configured_crash_pair.environment
    child = spawn.python(
        str(FORWARD), "saga", *databases, environment=environment | crash_env("forward.home-committed")
    )
    child.wait_killed()
    assert len(balances(databases)["postings"]) == 1

    spawn.worker(environment=environment)

    owed = {"default": ["committed"], "secondary": ["done"]}
    eventually(lambda: saga_states(databases) == owed, describe="nothing is owed")
    assert len(balances(databases)["postings"]) == 3

"""A real SIGKILL at every named point of a saga and of its recovery; then a sweep; then all or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.databases import KINDS, Pair, TestDatabase, Trio
from bench.faults import crash_env
from bench.processes import Spawner
from crosstie.orm.faults import FAULT_POINTS
from sagas.shop import contents, create_shop, saga_states, sweep_until_quiet, sweep_until_undone

PROGRAM = Path(__file__).with_name("crash_program.py")
SAGA_POINTS = sorted(point for point in FAULT_POINTS if point.startswith("saga."))
TRIOS = [*(KINDS[turn:] + KINDS[:turn] for turn in range(3)), ("mariadb", "postgresql", "postgresql")]
RECOVERY_POINTS = sorted(point for point in FAULT_POINTS if point.startswith("recovery."))


def _kill_at(spawn: Spawner, databases: Pair | Trio, point: str, verb: str = "saga", nth: int = 1) -> None:
    child = spawn.python(
        str(PROGRAM), verb, "-", *databases.by_name, environment=databases.environment | crash_env(point, nth)
    )
    child.wait_killed()


def _assert_all_or_nothing(before: object, databases: dict[str, TestDatabase], *, committed: bool) -> None:
    after = contents(databases)
    if committed:
        assert all("new" in {row[1] for row in rows} for rows in after.values())
        assert [row[1] for row in after["secondary"]] == ["keep", "changed", "count", "new"]
        states = saga_states(databases)
        assert states.pop("default") == ["committed"]
        assert all(state == ["done"] for state in states.values())
    else:
        assert after == before


@pytest.mark.parametrize("point", SAGA_POINTS)
def test_a_process_killed_in_a_saga_leaves_all_or_nothing(
    point: str, configured_crash_pair: Pair, spawn: Spawner
) -> None:
    """Whatever was committed before the kill is undone, or everything was."""
    databases = configured_crash_pair.by_name
    create_shop(databases)
    before = contents(databases)

    _kill_at(spawn, configured_crash_pair, point)
    sweep_until_quiet(databases)

    _assert_all_or_nothing(before, databases, committed=point == "saga.home-committed")


@pytest.mark.parametrize(
    ("point", "nth"),
    [
        *((point, 1) for point in SAGA_POINTS),
        ("saga.branch-recorded", 2),
        ("joint.commits-sent", 1),
        ("saga.branch-committed", 2),
    ],
)
@pytest.mark.turns("trio")
@pytest.mark.parametrize("trio", TRIOS, ids="-".join, indirect=True)
def test_a_process_killed_in_a_saga_over_three_databases_leaves_all_or_nothing(
    point: str, nth: int, configured_trio: Trio, spawn: Spawner
) -> None:
    """Two branches, whose commits leave together: one, both or none may have come through when the process dies."""
    databases = configured_trio.by_name
    create_shop(databases)
    before = contents(databases)

    _kill_at(spawn, configured_trio, point, nth=nth)
    if point == "joint.commits-sent":
        sweep_until_undone(databases, [n for n, one in databases.items() if n != "default" and one.kind != "sqlite"])
    sweep_until_quiet(databases)

    _assert_all_or_nothing(before, databases, committed=point == "saga.home-committed")


@pytest.mark.parametrize("point", RECOVERY_POINTS)
def test_a_recoverer_killed_in_recovery_leaves_work_for_the_next(
    point: str, configured_crash_pair: Pair, spawn: Spawner
) -> None:
    """The original dies between two commits, its recoverer dies too, and the next one finishes."""
    databases = configured_crash_pair.by_name
    create_shop(databases)
    before = contents(databases)

    _kill_at(spawn, configured_crash_pair, "saga.branch-committed")
    _kill_at(spawn, configured_crash_pair, point, verb="sweep")
    sweep_until_quiet(databases)

    assert contents(databases) == before
    assert saga_states(databases) == {"default": ["finished"], "secondary": ["undone"]}


def test_a_process_that_is_not_killed_commits_everywhere(configured_trio: Trio, spawn: Spawner) -> None:
    """The program of the crash tests does what they take it to do when nothing is armed."""
    databases = configured_trio.by_name
    create_shop(databases)

    spawn.python(str(PROGRAM), "saga", "-", *databases, environment=configured_trio.environment).wait_ok()
    sweep_until_quiet(databases)

    _assert_all_or_nothing(None, databases, committed=True)

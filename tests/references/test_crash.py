"""A worker is killed while it deletes or nulls children; the next one finishes, and nothing is lost or done twice."""

from __future__ import annotations

from typing import Any, Final

import pytest

from bench.databases import Pair
from bench.faults import crash_env
from bench.processes import Spawner
from bench.waiting import eventually
from crosstie.orm import transaction
from crosstie.outbox import sweep_lanes
from references.family import count, open_family, user_with

WORKER: Final = """
    from crosstie.outbox import propagation
    from references.family import define, propagate
    propagation.ROWS_PER_TRANSACTION = 3
    models = define()
    propagate()
"""
POINTS: Final = ("reference.released", "relay.applied", "relay.target-committed", "relay.source-committed")


@pytest.fixture
def family(configured_crash_pair: Pair) -> Any:
    """The models, over the pairs of databases for crash tests."""
    return open_family()


@pytest.mark.parametrize("nth", [1, 3])
@pytest.mark.parametrize("point", POINTS)
def test_a_worker_killed_in_a_batch_leaves_the_rest_to_the_next(
    family: Any, configured_crash_pair: Pair, spawn: Spawner, point: str, nth: int
) -> None:
    """SIGKILL inside the first batch or a later one: every child goes, its children too, and those of others stay."""
    pair = configured_crash_pair
    user = user_with(family, posts=8, comments=1, badges=7)
    other = user_with(family, posts=2, comments=1, badges=2)
    user.delete()
    spawn.code(WORKER, environment=pair.environment | crash_env(point, nth)).wait_killed()
    assert sum(stored(pair)) > 0

    def finished() -> bool:
        for database in pair.databases:
            database.execute("UPDATE crosstie_lane SET lease_until_ms = 0, ready_at_ms = 0")
        for source in ("default", "secondary"):
            sweep_lanes(source, owner="next")
        return stored(pair) == [0, 0]

    eventually(finished, describe="both outboxes are empty")
    assert count(pair, "posts") == count(pair, "posts", f"user_id = {other.id}") == 2
    assert count(pair, "comments") == 2
    assert count(pair, "badges", "user_id IS NULL") == 7
    assert count(pair, "badges", f"user_id = {other.id}") == 2


def test_a_child_that_was_given_another_parent_after_the_crash_stays(
    family: Any, configured_crash_pair: Pair, spawn: Spawner
) -> None:
    """What was applied before the crash is not applied again to rows that have changed since."""
    pair = configured_crash_pair
    user, other = user_with(family, badges=2), user_with(family)
    user.delete()
    spawn.code(WORKER, environment=pair.environment | crash_env("relay.target-committed")).wait_killed()
    with transaction("secondary"):
        family.Badge.find_all().update_all(user_id=other.id)
    for database in pair.databases:
        database.execute("UPDATE crosstie_lane SET lease_until_ms = 0, ready_at_ms = 0")
    eventually(
        lambda: sweep_lanes("default", owner="next") == 0 and stored(pair) == [0, 0], describe="the rest is done"
    )
    assert count(pair, "badges", f"user_id = {other.id}") == 2


def stored(pair: Pair) -> list[int]:
    """How many events wait in each database."""
    return [int(database.scalar("SELECT count(*) FROM crosstie_outbox")) for database in pair.databases]

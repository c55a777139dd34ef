"""A real SIGKILL at every named point of a repair and of its undo: each row is as it was, or repaired and kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.databases import Pair
from bench.faults import crash_env
from bench.processes import Spawner
from bench.waiting import eventually
from crosstie.orm.faults import FAULT_POINTS
from crosstie.workers.repair import Cap, Outcome, repair_reference
from integrity import repair_program
from integrity.blog import USERS, Blog, define_blog

PROGRAM = Path(repair_program.__file__)
POINTS = [("delete", point) for point in ("repair.fenced", "repair.recorded", "repair.committed")]
POINTS += [("set_null", "repair.committed"), ("recreate", "repair.recreated")]


@pytest.fixture
def blog(configured_crash_pair: Pair, no_models: None) -> Blog:
    """Ada with a post, and two posts each of three users that never were."""
    made = define_blog()
    for user_id in (made.user(name="ada").save().id, *(900 + number // 2 for number in range(6))):
        made.post(user_id=user_id).save()
    return made


def contents(pair: Pair) -> tuple[object, ...]:
    """Both tables."""
    users = pair.first.rows("SELECT id, name FROM users ORDER BY id")
    return users, pair.second.rows("SELECT id, user_id FROM posts ORDER BY id")


def repaired_unkept(pair: Pair, policy: str) -> set[int]:
    """Orphans that are repaired without a row in the quarantine."""
    if policy == "recreate":
        made = {int(row[0]) for row in pair.first.rows("SELECT id FROM users WHERE id >= 900")}
        return made ^ {int(row[0]) for row in pair.first.rows("SELECT parent_key FROM crosstie_quarantine")}
    left = {row[0] for row in pair.second.rows("SELECT id FROM posts WHERE user_id >= 900")}
    rows = pair.second.rows("SELECT child_key FROM crosstie_quarantine")
    return (set(range(2, 8)) - left) ^ {json.loads(row[0])["id"] for row in rows}


def test_every_point_is_crashed_at() -> None:
    """A point that is added is added here."""
    assert {point for _, point in POINTS} | {"repair.restored"} == {
        point for point in FAULT_POINTS if point.startswith("repair.")
    }


@pytest.mark.parametrize(("policy", "point"), POINTS)
def test_a_killed_repair_leaves_rows_that_are_repaired_and_kept_or_untouched(
    configured_crash_pair: Pair, blog: Blog, spawn: Spawner, policy: str, point: str
) -> None:
    """The next repair does the rest, and the undo of both brings everything back."""
    before = contents(configured_crash_pair)
    spawn.python(PROGRAM, policy, environment=configured_crash_pair.environment | crash_env(point, 2)).wait_killed()
    assert repaired_unkept(configured_crash_pair, policy) == set()

    def rest() -> bool:  # a server may take a moment to release the locks of a client that was killed
        report = repair_reference(
            USERS, policy, apply=True, cap=Cap(percent=100), recreate=lambda key: blog.user(id=key, name="(gone)")
        )
        return report.count(Outcome.REPAIRED) == len(report.rows)

    eventually(rest)
    assert repaired_unkept(configured_crash_pair, policy) == set()
    assert repair_reference(USERS, "report").audit.orphan_rows == 0
    repair_program.undo_all()
    assert contents(configured_crash_pair) == before


def test_a_killed_undo_leaves_the_rest_to_the_next(configured_crash_pair: Pair, blog: Blog, spawn: Spawner) -> None:
    """Each row is put back once."""
    before = contents(configured_crash_pair)
    repair_program.repair(blog, "quarantine")
    environment = configured_crash_pair.environment | crash_env("repair.restored", 3)
    spawn.python(PROGRAM, "undo", environment=environment).wait_killed()
    assert configured_crash_pair.second.scalar("SELECT count(*) FROM posts") == 1 + 2

    def back() -> bool:
        repair_program.undo_all()
        return contents(configured_crash_pair) == before

    eventually(back)

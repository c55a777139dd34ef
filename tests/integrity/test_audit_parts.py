"""Audits in parts: after so many of them every key was read, and what one has found is not forgotten by the next."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from bench.databases import Pair
from crosstie.orm import ConnectionManager
from crosstie.orm.integrity import (
    AuditedReference,
    AuditResult,
    AuditScope,
    AuditState,
    audit_chunk,
    part_of_plan,
    plan_audit,
)
from crosstie.orm.reference import references
from crosstie.workers import audit_chunks
from crosstie.workers.audit import run_audit
from crosstie.workers.audit_intent import intend
from crosstie.workers.audit_record import last_runs, last_standing, open_run
from crosstie.workers.audit_runner import help_audits
from crosstie.workers.audit_triggers import create_noting, drop_noting
from integrity.blog import USERS, Blog
from integrity.tables import INTEGER_TYPES, TEXT_TYPES, UUID_TYPES, Linked, linked, orphans

PART, CHANGES, FULL = AuditScope.PART, AuditScope.CHANGES, AuditScope.FULL
ONE = pytest.mark.parametrize("pair", [("sqlite", "postgresql")], indirect=True, ids="-".join)
ALONE = pytest.mark.parametrize("pair", [("sqlite", "sqlite")], indirect=True, ids="-".join)
KEYS, ORPHANS = range(1, 31), {3: 3, 14: 14, 30: 30}


@pytest.fixture
def large(world: Linked) -> Linked:
    """Thirty posts, three of them of users that never were."""
    fill(world)
    return world


def fill(world: Linked, key: Any = int, numbers: Sequence[int] = KEYS) -> None:
    """Each post is of a user of its own; how many there are, the servers know."""
    world.register(key(number) for number in numbers if number not in ORPHANS)
    world.post([(post, key(number)) for post, number in enumerate(numbers, 1)])
    world.child.execute("ANALYZE TABLE posts" if world.child.kind == "mariadb" else "ANALYZE posts")


def part(world: Linked, parts: int = 3, **options: Any) -> AuditResult:
    """Audit the next part, by pages of five keys."""
    (result,) = run_audit([world.reference], scope=PART, parts=parts, chunk_size=5, **options).results
    return result


def test_parts_follow_each_other_and_remember(large: Linked) -> None:
    """Ten keys at a time; what was found before is looked at again, and the fourth audit begins anew."""
    found = [part(large) for _ in range(3)]
    assert [one.keys_checked for one in found] == [10, 11, 12]
    assert [orphans(one) for one in found] == [{3: 3}, {3: 3, 14: 14}, ORPHANS]
    assert {one.scope for one in found} == {PART}
    large.register([14])
    large.child.execute("UPDATE posts SET user_id = 900 WHERE id = 4")
    again = [part(large) for _ in range(3)]
    assert [orphans(one) for one in again] == [{3: 3, 30: 30}, {3: 3, 30: 30}, {3: 3, 30: 30, 4: 900}]


@pytest.mark.parametrize("types", [INTEGER_TYPES, TEXT_TYPES], ids=["integer", "text"])
@pytest.mark.parametrize("pair", [("postgresql", "mariadb"), ("mariadb", "sqlite")], indirect=True, ids="-".join)
def test_the_chunks_of_a_part_are_evenly_filled(configured: Pair, types: dict[str, str]) -> None:
    """Most keys crowd in a corner, a few are very far away; the chunks follow each other and leave nothing out."""
    text = types is TEXT_TYPES
    world = linked(configured, types, declared=sa.String(60) if text else sa.BigInteger())
    numbers = [*range(200), *(10**15 + number for number in range(4))]
    fill(world, lambda number: f"key {number:020}" if text else number, numbers)
    whole = replace(plan_audit(world.reference, page_size=10), keys=len(numbers))  # as if it were no estimate
    after, filled = None, []
    for ends in (False, True):
        plan = part_of_plan(world.reference, whole, after=after, parts=2, chunks=8)
        assert [chunk.lo for chunk in plan.chunks] == [after, *(chunk.hi for chunk in plan.chunks[:-1])]
        assert (plan.after, plan.last, plan.ends) == (after, plan.chunks[-1].hi, ends)
        filled.append([audit_chunk(world.reference, plan, chunk).keys for chunk in plan.chunks])
        after = plan.last
    assert sum(map(sum, filled)) == len(numbers)
    assert [(len(keys), max(keys)) for keys in filled] == [(8, 13), (8, 13)]


@pytest.mark.parametrize("types", [TEXT_TYPES, UUID_TYPES], ids=["text", "uuid"])
@pytest.mark.parametrize("pair", [("postgresql", "mariadb"), ("mariadb", "sqlite")], indirect=True, ids="-".join)
def test_parts_of_keys_that_only_their_database_can_order(configured: Pair, types: dict[str, str]) -> None:
    """Text and UUIDs, each in its own order; together the parts are everything."""
    uuids = types is UUID_TYPES
    world = linked(configured, types, declared=sa.Uuid() if uuids else sa.String(60))
    fill(world, lambda number: f"00000000-0000-0000-0000-{number * 7919 % 1000:012d}" if uuids else f"key {number}")
    found = [part(world) for _ in range(3)]
    assert {row for one in found for row in orphans(one)} == set(ORPHANS)
    assert set(orphans(found[-1])) == set(ORPHANS)
    assert last_standing(ConnectionManager.get("default"), world.reference.name).position is None


@ONE
def test_keys_that_come_and_go_between_parts(large: Linked) -> None:
    """New ones at the end belong to the last part; where nothing is left behind a part, the next begins anew."""
    part(large)
    large.post([(40, 40)])
    assert [40 in orphans(part(large)) for _ in range(3)][-1]
    part(large)
    large.child.execute("DELETE FROM posts WHERE user_id > 10")
    assert orphans(part(large)) == {3: 3}


@ONE
def test_parts_since_changes_are_noted_are_as_good_as_everything(large: Linked) -> None:
    """Once the last one is read, changes are enough; triggers that were made anew in between are not."""
    create_noting(large.reference)
    part(large)
    part(large)
    assert last_standing(ConnectionManager.get("default"), large.reference.name).basis is None
    part(large)
    large.post([(40, 900)])
    (found,) = run_audit([large.reference], scope=CHANGES).results
    assert (found.scope, orphans(found)) == (CHANGES, ORPHANS | {40: 900})
    part(large)
    drop_noting(large.reference)
    create_noting(large.reference)
    part(large)
    part(large)
    (found,) = run_audit([large.reference], scope=CHANGES).results
    assert (found.scope, orphans(found)) == (FULL, ORPHANS | {40: 900})


@pytest.mark.parametrize("pair", [("sqlite", "postgresql")], indirect=True, ids="-".join)
def test_a_truncated_table_breaks_the_row_of_parts(large: Linked) -> None:
    """The note that tells of it is gone with the part that has read it, and most keys are in other parts."""
    create_noting(large.reference)
    part(large)
    large.parent.execute("TRUNCATE TABLE users")
    for _ in range(2):
        part(large)
    (found,) = run_audit([large.reference], scope=CHANGES).results
    assert (found.scope, found.orphan_rows) == (FULL, len(KEYS))


@ALONE
def test_a_part_that_was_not_read_to_its_end_is_read_again(large: Linked) -> None:
    """The place is that of the last audit that was complete."""
    part(large)
    large.parent.execute("ALTER TABLE users RENAME TO away")
    assert part(large).state is AuditState.INCOMPLETE
    large.parent.execute("ALTER TABLE away RENAME TO users")
    found = part(large)
    assert orphans(found) == {3: 3, 14: 14}


@ONE
def test_an_abandoned_part_is_brought_to_its_end_by_a_worker(blog: Blog, configured: Pair) -> None:
    """With what is noted, and so that the next part goes on behind it."""
    blog.user.bulk_create([blog.user(id=number) for number in KEYS if number not in ORPHANS])
    blog.post.bulk_create([blog.post(user_id=number) for number in KEYS])
    run_audit([USERS], scope=PART, parts=3, chunk_size=2)
    (declared,) = references(crossing_only=True)
    reference = AuditedReference.declared(declared)
    database = ConnectionManager.get("secondary")
    intent = intend(reference, PART, page_size=2, parts=3, chunks=4)
    assert intent.plan is not None
    assert intent.plan.after == 10
    open_run(database, "killed", USERS, intent.plan, owner="gone", lease_s=60, scope=PART, standing=intent.standing)
    configured.second.execute("UPDATE crosstie_audit_run SET lease_until_ms = 0")
    assert help_audits("secondary", owner="worker")
    (run,) = last_runs("secondary")
    assert (run.run_id, run.state, run.findings, run.detail["scope"]) == ("killed", "findings", 2, "part")
    (found,) = run_audit([USERS], scope=PART, parts=3, chunk_size=2).results
    assert {one.parent_key for one in found.findings} == set(ORPHANS)


@ALONE
def test_results_begin_where_the_part_does(large: Linked) -> None:
    """A part whose first chunk is missing is no part."""
    database = ConnectionManager.get("default")
    plan = plan_audit(large.reference, page_size=2)
    open_run(database, "run", large.reference.name, plan, owner="one", lease_s=60)
    assert audit_chunks.results(database, "run", large.reference.name, 10) == []
    assert json.loads(large.child.scalar("SELECT detail FROM crosstie_audit_run"))["plan"]["after"] is None


@ALONE
def test_what_cannot_be_parted_is_read_as_a_whole(large: Linked) -> None:
    """Keys that fit a page; and a key without an index, whose table is read once in any case."""
    (found,) = run_audit([large.reference], scope=PART, parts=3).results
    assert orphans(found) == ORPHANS
    assert any("everything" in note for note in found.notes)
    large.child.execute("DROP INDEX posts_user")
    found = part(large)
    assert found.keys_checked == len(KEYS)
    assert any("everything" in note for note in found.notes)

"""Chunks are about evenly filled, however the keys lie, and planning them costs a few look-ups."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from bench.databases import Pair
from crosstie.orm import ConnectionManager
from crosstie.orm.integrity import AuditPlan, Strategy, audit_chunk, conclude_audit, plan_audit, uuids
from integrity.tables import UUID_TYPES, Linked, linked, orphans

FEW = pytest.mark.parametrize(
    "pair", [("sqlite", "sqlite"), ("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join
)
ROWS = 4_000
CHUNKS = 8


@contextmanager
def statements(name: str) -> Iterator[list[str]]:
    """What is sent to a database meanwhile."""
    sent: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    engine = ConnectionManager.get(name).autocommit
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


def filled(world: Linked, plan: AuditPlan) -> list[int]:
    """Rows of each chunk; together they are an audit that finds the one orphan."""
    results = [audit_chunk(world.reference, plan, chunk) for chunk in plan.chunks]
    verdict = conclude_audit(world.reference, plan, results)
    assert (verdict.reason, verdict.child_rows, len(orphans(verdict))) == (None, ROWS, 1)
    return [one.rows or 0 for one in results]


def analyze(world: Linked) -> None:
    """Have the server know how many rows there are."""
    world.child.execute("ANALYZE TABLE posts" if world.child.kind == "mariadb" else "ANALYZE posts")


@FEW
def test_keys_that_crowd_in_a_corner_fill_the_chunks_evenly(world: Linked) -> None:
    """Ten of them are a million times as far away as the others are from each other."""
    keys = [*range(1, ROWS - 9), *(10**15 + number for number in range(10))]
    world.register(keys[:-1])
    world.post(enumerate(keys, 1))
    analyze(world)
    plan = plan_audit(world.reference, page_size=100, chunks=CHUNKS)
    rows = filled(world, plan)
    assert len(rows) == CHUNKS
    assert max(rows) <= 2 * ROWS / CHUNKS
    assert min(rows) >= ROWS / CHUNKS / 2


@FEW
def test_uuids_are_parted_without_counting_them_all(configured: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """By look-ups of rows; each database orders them its own way, and chunks are as many as memory makes necessary."""
    monkeypatch.setattr(uuids, "_GATHERED", 1)
    world = linked(configured, UUID_TYPES, declared=sa.Uuid())
    keys = [str(uuid.uuid5(uuid.NAMESPACE_DNS, str(number))) for number in range(ROWS)]
    if configured.first.kind == "sqlite":
        keys = [key.replace("-", "") for key in keys]
    world.register(keys[:-1])
    world.post(enumerate(keys, 1))
    analyze(world)
    with statements("default") as sent:
        plan = plan_audit(world.reference, page_size=100, chunks=CHUNKS)
    assert not [one for one in sent if "count(" in one.lower() and "DISTINCT" in one]
    rows = filled(world, plan)
    assert len(rows) == CHUNKS
    assert max(rows) <= 2 * ROWS / CHUNKS


@FEW
def test_a_sample_that_tells_too_little_is_not_used(world: Linked) -> None:
    """Most rows have no key: the range is parted as it is, and everything is read."""
    world.register(range(1, 200))
    world.post((number, number // 20 if number % 20 == 0 else None) for number in range(1, ROWS + 1))
    analyze(world)
    plan = plan_audit(world.reference, page_size=50, chunks=CHUNKS, strategy=Strategy.PACKED)
    results = [audit_chunk(world.reference, plan, chunk) for chunk in plan.chunks]
    verdict = conclude_audit(world.reference, plan, results)
    assert (verdict.reason, verdict.child_rows, list(orphans(verdict).values())) == (None, 200, [200])

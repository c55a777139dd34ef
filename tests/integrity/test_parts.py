"""An audit in parts: plan, chunks and results go through JSON, and their verdict is that of an audit at one go."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from bench.databases import Pair
from crosstie.orm.errors import DatabaseUnavailable
from crosstie.orm.integrity import (
    AuditPlan,
    AuditState,
    ChunkResult,
    Finding,
    KeyRange,
    Strategy,
    UnreadablePlan,
    audit_chunk,
    conclude_audit,
    plan_audit,
    uuids,
)
from crosstie.orm.integrity.confirmation import Confirmation
from integrity.tables import TEXT_TYPES, UUID_TYPES, Linked, linked, orphans

ONE = pytest.mark.parametrize("pair", [("sqlite", "postgresql")], indirect=True, ids="-".join)


def through_json(value: Any) -> Any:
    """What another process reads."""
    return type(value).of(json.loads(json.dumps(value.as_document())))


def in_parts(
    world: Linked, chunks: int, page_size: int, *, strategy: Strategy | None = None, **options: Any
) -> tuple[AuditPlan, list[ChunkResult]]:
    """Run all chunks, the last one first, and the rest of each as a chunk of its own."""
    plan: AuditPlan = through_json(plan_audit(world.reference, page_size=page_size, chunks=chunks, strategy=strategy))
    left = list(plan.chunks)
    results: dict[int, list[ChunkResult]] = {}
    while left:
        number, chunk = len(left) - 1, through_json(left[-1])
        result: ChunkResult = through_json(audit_chunk(world.reference, plan, chunk, **options))
        results.setdefault(number, []).append(result)
        left.pop()
        if result.covered.hi != chunk.hi:
            left.append(KeyRange(result.covered.hi, chunk.hi))
    return plan, [one for number in sorted(results) for one in results[number]]


@pytest.mark.parametrize("kind", ["integer", "uuid", "text"])
def test_the_verdict_over_parts_is_that_of_the_whole(
    configured: Pair, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every chunk ends after one page, and its rest is run later; all the orphans are found, each once."""
    keys: list[Any]
    if kind == "integer":
        world, keys = linked(configured), list(range(-20, 20))
    elif kind == "uuid":
        world = linked(configured, UUID_TYPES, declared=sa.Uuid)
        keys = [uuid.UUID(int=(n * 0x9E3779B97F4A7C15F39CC0605CEDC835) % 2**128, version=4).hex for n in range(40)]
    else:
        world, keys = linked(configured, TEXT_TYPES, declared=sa.String), [f"key {n}" for n in range(40)]
    world.register(key for n, key in enumerate(keys) if n % 7)
    world.post([(n, key) for n, key in enumerate([*keys, *keys])])

    monkeypatch.setattr(uuids, "_KEYS_OF_A_SET", 1)
    monkeypatch.setattr(uuids, "_GATHERED", 1)
    strategy = Strategy.PACKED if kind == "integer" else None

    plan, results = in_parts(world, 3, 4, strategy=strategy, budget_s=0.0)

    assert len(plan.chunks) > 1
    assert len(results) >= 10
    answer = conclude_audit(world.reference, plan, results)
    whole = world.audit(chunk_size=4, strategy=strategy)
    assert answer.reason is None
    assert orphans(answer) == orphans(whole)
    assert (answer.keys_checked, answer.child_rows, answer.orphan_keys, answer.orphan_rows) == (40, 80, 6, 12)
    assert set(whole.open_keys or ()) == set(answer.open_keys or ())
    assert replace(whole, seconds=0.0, findings=(), open_keys=()) == replace(answer, findings=(), open_keys=())


@ONE
def test_a_chunk_without_result_is_incomplete(world: Linked) -> None:
    """Whichever of them is missing, and whoever lost it."""
    world.register(range(20))
    world.post([(n, n) for n in range(20)])
    plan, results = in_parts(world, 4, 5)
    assert conclude_audit(world.reference, plan, results).state is AuditState.OK
    for number in range(len(results)):
        lacking = results[:number] + results[number + 1 :]
        assert conclude_audit(world.reference, plan, lacking).state is AuditState.INCOMPLETE
    stopped = [*results[:-1], replace(results[-1], reason="the database went away")]
    assert conclude_audit(world.reference, plan, stopped).reason == "the database went away"


@ONE
def test_what_an_error_stopped_is_run_again_from_there(world: Linked) -> None:
    """The result tells how far it came and whether the rest may be tried again."""
    world.register(range(20))
    world.post([(n, n) for n in range(20)])
    plan = plan_audit(world.reference, page_size=5)
    (chunk,) = plan.chunks
    world.parent.execute("ALTER TABLE users RENAME TO hidden")
    stopped = audit_chunk(world.reference, plan, chunk)
    assert stopped.covered.is_empty
    assert stopped.reason is not None
    assert conclude_audit(world.reference, plan, [stopped]).state is AuditState.INCOMPLETE
    world.parent.execute("ALTER TABLE hidden RENAME TO users")
    rest = audit_chunk(world.reference, plan, KeyRange(stopped.covered.hi, chunk.hi))
    assert conclude_audit(world.reference, plan, [replace(stopped, reason=None), rest]).state is AuditState.OK


@ONE
def test_pages_whose_candidates_were_not_judged_are_not_covered(world: Linked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates of several pages wait to be judged together; the database fails just then, and all are read again."""
    world.post([(n, n) for n in range(20)])
    plan = plan_audit(world.reference, page_size=5)
    (chunk,) = plan.chunks
    with monkeypatch.context() as patched:

        def failing(*_: Any) -> None:
            raise DatabaseUnavailable("it broke")

        patched.setattr(Confirmation, "settle", failing)
        stopped = audit_chunk(world.reference, plan, chunk)
    assert (stopped.covered.is_empty, stopped.keys, stopped.reason) == (True, 0, "it broke")
    rest = audit_chunk(world.reference, plan, KeyRange(stopped.covered.hi, chunk.hi))
    assert (rest.keys, rest.orphan_keys, rest.reason) == (20, 20, None)


@ONE
def test_what_is_held_is_looked_at_again_at_the_end(world: Linked) -> None:
    """The grace of an orphan runs: its chunk holds it, and the conclusion reports it."""
    world.post([(1, 10), (2, 20)])
    plan, results = in_parts(world, 2, 1, grace_s=5.0)
    assert [(one.orphan_keys, one.held) for one in results] == [(0, (10,)), (0, (20,))]
    world.register([10])
    waited: list[float] = []
    answer = conclude_audit(world.reference, plan, results, grace_s=5.0, wait=waited.append, clock_s=lambda: 1.0)
    assert (orphans(answer), waited) == ({2: 20}, [5.0])


def test_values_of_every_kind_of_key_go_through_json() -> None:
    """Integers, text, UUIDs, bytes and several columns; another value of a child row's key comes back as text."""
    values: Sequence[Any] = [None, -(2**63), "x", "", uuid.UUID(int=7), b"\x00\xff", (1, "a", uuid.UUID(int=1))]
    for value in values:
        assert through_json(KeyRange(value, value)) == KeyRange(value, value)
    day = Finding({"day": dt.date(2026, 1, 2)}, 7, "SELECT 1")
    result = ChunkResult(covered=KeyRange(None, 9), keys=3, findings=(day,), held=(4, "k"))
    assert through_json(result) == replace(result, findings=(replace(day, child_key={"day": "2026-01-02"}),))
    plan = AuditPlan("a -> b", Strategy.FETCH, 5, b"\x01", (KeyRange(None, b"\x01"),), 1, 2, ("why",), ("note",))
    assert through_json(plan) == plan
    with pytest.raises(UnreadablePlan, match="Plan the audit anew"):
        KeyRange.of({"lo": 1.5, "hi": 2})

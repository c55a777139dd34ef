"""Every strategy finds what a comparison in Python finds, over every pair of databases; the planner only picks."""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.databases import Pair
from crosstie.orm.integrity import (
    AuditState,
    Strategy,
    audit_chunk,
    bitmap,
    conclude_audit,
    plan_audit,
    uuid_gathering,
    uuid_set,
)
from crosstie.orm.integrity import uuids as packed_uuids
from crosstie.orm.integrity.gaps import GapScan
from crosstie.orm.integrity.integers import ChildPages, among
from crosstie.orm.integrity.packed import PackedScan
from crosstie.orm.integrity.packing import distances
from crosstie.orm.integrity.planner import Situation, choose_strategy
from crosstie.orm.integrity.storage import KeyKind
from crosstie.orm.integrity.uuid_gathering import Gathering
from crosstie.orm.integrity.widths import PageWidth
from integrity.tables import TEXT_TYPES, UUID_TYPES, Linked, linked, orphans
from integrity.test_uuids import some_uuids

NEAR = st.integers(-80, 200)
FAR = st.one_of(
    NEAR, st.integers(-(2**63), 2**63 - 1), st.sampled_from([2**23, 2**24, 2**31, -(2**31) - 1, 2**63 - 1, -(2**63)])
)
DENSE = st.builds(
    lambda first, count, gaps: set(range(first, first + count)) - gaps,
    st.integers(-80, 60),
    st.integers(0, 140),
    st.sets(NEAR, max_size=4),
)
STRATEGIES = [Strategy.PACKED, Strategy.PROBE, Strategy.BITMAP, Strategy.WORDS, Strategy.SKIP, Strategy.GAPS]


def strategies_for(world: Linked) -> list[Strategy]:
    """Words need two servers, skipping one that takes any recursion, and gaps a child with nothing but integers."""
    kinds = {world.child.kind, world.parent.kind}
    able = {
        Strategy.WORDS: "sqlite" not in kinds,
        Strategy.SKIP: world.child.kind != "mariadb",
        Strategy.GAPS: world.child.kind != "sqlite",
    }
    return [one for one in STRATEGIES if able.get(one, True)]


@pytest.mark.parametrize("keys", [NEAR, FAR], ids=["dense", "wide"])
def test_every_strategy_agrees_with_brute_force(configured: Pair, keys: st.SearchStrategy[int]) -> None:
    """Children and parents drawn at random, NULLs and duplicates among them, and pages of every size."""
    world = linked(configured)

    @settings(
        max_examples=10,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(
        children=st.one_of(st.just([]), st.lists(st.one_of(st.none(), keys), min_size=12, max_size=60)),
        parents=st.one_of(st.sets(keys, max_size=40), DENSE),
        copied=st.integers(0, 10),
        page_size=st.integers(1, 30),
        chunks=st.integers(1, 4),
    )
    def compare(children: list[int | None], parents: set[int], copied: int, page_size: int, chunks: int) -> None:
        parents = parents | {key for key in children[:copied] if key is not None}
        world.child.execute("DELETE FROM posts")
        world.parent.execute("DELETE FROM users")
        world.register(parents)
        world.post(list(enumerate(children)))
        expected = {n: key for n, key in enumerate(children) if key is not None and key not in parents}
        for strategy in strategies_for(world):
            plan = plan_audit(world.reference, page_size=page_size, chunks=chunks, strategy=strategy)
            answer = conclude_audit(
                world.reference, plan, [audit_chunk(world.reference, plan, chunk) for chunk in plan.chunks]
            )
            assert (strategy, answer.reason, orphans(answer)) == (strategy, None, expected)
            if strategy is not Strategy.GAPS:
                assert answer.keys_checked == len(set(children) - {None})
            if strategy is not Strategy.SKIP and (strategy is not Strategy.GAPS or world.child.kind == "postgresql"):
                assert answer.child_rows == len(children) - children.count(None)

    compare()


@pytest.mark.parametrize(
    "pair",
    [("postgresql", "mariadb"), ("mariadb", "postgresql"), ("postgresql", "sqlite")],
    indirect=True,
    ids="-".join,
)
def test_of_a_dense_parent_only_the_gaps_are_asked_about(world: Linked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends of the range included, beyond it, and where the parent has a large hole; the child's keys are not read.

    In a page of the hole they are, and in those behind it, until the parent is looked at again.
    """
    holes = {0, 1, 500, 999, 1_000, *range(2_000, 2_150), 3_999, 4_005}
    world.register(set(range(4_000)) - holes)
    world.post([(n, n) for n in range(4_010)])
    read: list[int] = []
    within = ChildPages._within

    def noted(self: ChildPages, first: int) -> Any:
        read.append(first)
        return within(self, first)

    monkeypatch.setattr(ChildPages, "_within", noted)
    result = world.audit(strategy=Strategy.GAPS, chunk_size=50)
    assert result.reason is None
    assert set(orphans(result).values()) == holes | set(range(4_000, 4_010))
    assert read, "the hole"
    assert min(read) >= 1_900
    assert len(read) < 40


@pytest.mark.parametrize("pair", [("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join)
def test_the_ends_of_what_an_integer_can_be_are_asked_about(world: Linked) -> None:
    """A page at either end of 64 bits, whose parent is missing or there."""
    least, greatest = -(2**63), 2**63 - 1
    world.register([least + 1, greatest - 1])
    world.post([(1, least), (2, least + 1), (3, greatest - 1), (4, greatest), (5, None)])
    result = world.audit(strategy=Strategy.GAPS)
    assert (result.reason, orphans(result)) == (None, {1: least, 4: greatest})


TIMES = st.builds(
    lambda at, low: uuid.UUID(int=at << 80 | 7 << 76 | 2 << 62 | low), st.integers(0, 3), st.integers(0, 20)
)
UUIDS = st.one_of(
    st.sampled_from(some_uuids()), TIMES, st.builds(lambda n: uuid.UUID(int=n), st.integers(0, 2**128 - 1))
)
ALL_THAT_PACK = pytest.mark.parametrize(
    "pair",
    [("postgresql", "mariadb"), ("mariadb", "postgresql"), ("postgresql", "postgresql"), ("mariadb", "mariadb")],
    indirect=True,
    ids="-".join,
)


@ALL_THAT_PACK
def test_uuids_agree_with_brute_force(configured: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every version, alike in their first or last bytes; pages of both ends have few, in each server's order."""
    world = linked(configured, UUID_TYPES, declared=sa.Uuid)
    monkeypatch.setattr(packed_uuids, "_KEYS_OF_A_SET", 10)
    monkeypatch.setattr(packed_uuids, "_GATHERED", 15)
    monkeypatch.setattr(packed_uuids, "_PARENTS_AT_ONCE", 7)
    monkeypatch.setattr(uuid_set, "_CROWDED", 3)

    @settings(
        max_examples=12,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(
        children=st.lists(st.one_of(st.none(), UUIDS), min_size=3, max_size=60),
        parents=st.sets(UUIDS, max_size=40),
        copied=st.integers(0, 10),
        page_size=st.integers(1, 20),
        chunks=st.integers(1, 3),
    )
    def compare(
        children: list[uuid.UUID | None], parents: set[uuid.UUID], copied: int, page_size: int, chunks: int
    ) -> None:
        parents = parents | {key for key in children[:copied] if key is not None}
        world.child.execute("DELETE FROM posts")
        world.parent.execute("DELETE FROM users")
        world.register(map(str, parents))
        world.post([(n, None if key is None else str(key)) for n, key in enumerate(children)])
        expected = {n: key for n, key in enumerate(children) if key is not None and key not in parents}
        for strategy in (Strategy.PACKED, Strategy.FETCH):
            plan = plan_audit(world.reference, page_size=page_size, chunks=chunks, strategy=strategy)
            answer = conclude_audit(
                world.reference, plan, [audit_chunk(world.reference, plan, chunk) for chunk in plan.chunks]
            )
            assert (strategy, answer.reason, orphans(answer)) == (strategy, None, expected)
            assert answer.keys_checked == len(set(children) - {None})
            assert answer.child_rows == len(children) - children.count(None)

    compare()


@given(st.lists(UUIDS, unique=True, max_size=60), st.lists(UUIDS, max_size=60), st.booleans())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_set_of_uuids_leaves_what_it_has_not_met(keys: list[uuid.UUID], met: list[uuid.UUID], ordered: bool) -> None:
    """Pure: the same as a set of Python's, in whatever order they come."""
    wanted = uuid_set.UuidSet(halves(sorted(keys) if ordered else keys))
    wanted.strike(halves([*met, *keys[:20]]))
    left = wanted.left()
    assert len(left) == len(set(left))
    assert set(left) == set(keys) - set(met) - set(keys[:20])


@given(
    keys=st.lists(UUIDS, unique=True, max_size=60),
    met=st.lists(UUIDS, max_size=60),
    ascend=st.booleans(),
    keys_of_a_set=st.integers(1, 30),
    choose=st.randoms(use_true_random=False),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_a_gathering_leaves_what_no_parent_was(
    keys: list[uuid.UUID], met: list[uuid.UUID], ascend: bool, keys_of_a_set: int, choose: random.Random
) -> None:
    """Pure: keys and parents come in pieces of any size, in whatever turns, before and behind each other."""
    gathering = Gathering(keys_of_a_set, ascend=ascend)
    coming = sorted(keys) if ascend else list(keys)
    parents = [*met, *keys[:20]]
    choose.shuffle(parents)
    while coming or parents:
        size = choose.randint(1, 9)
        if coming and (not parents or choose.random() < 0.5):
            gathering.add(halves(coming[:size]))
            del coming[:size]
        else:
            gathering.meet(halves(parents[:size]))
            del parents[:size]
        if not coming:
            gathering.complete()
            break
    while parents:
        gathering.meet(halves(parents[:7]))
        del parents[:7]
    left = gathering.left()
    assert gathering.number == len(keys)
    assert len(left) == len(set(left))
    assert set(left) == set(keys) - set(met) - set(keys[:20])


def test_no_more_parents_wait_than_memory_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of complete sets do not wait, and those that wait are let go when their set is complete."""
    monkeypatch.setattr(uuid_gathering, "_WAITING", 10)
    keys = [uuid.UUID(int=n << 64) for n in range(40)]
    gathering, takes = Gathering(10, ascend=True), []
    for parents in (keys[:9], keys[9:12]):
        gathering.meet(halves(parents))
        takes.append(gathering.takes_parents)
    gathering.add(halves(keys[:10]))
    takes.append(gathering.takes_parents)
    gathering.meet(halves(keys[:9]))
    takes.append(gathering.takes_parents)
    assert takes == [True, False, True, True]
    gathering.add(halves(keys[10:40]))
    gathering.complete()
    assert gathering.left() == keys[12:]


def halves(keys: Iterable[uuid.UUID]) -> uuid_set.Halves:
    """As a server has sent them."""
    return uuid_set.halves(b"".join(key.bytes for key in keys))


@given(st.sets(FAR, max_size=50), st.sets(FAR, max_size=50))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_integers_are_among_others_or_not(keys: set[int], others: set[int]) -> None:
    """Pure: dense or far apart, the others beyond the keys on either side."""
    ascending = sorted(keys)
    base = ascending[0] if ascending else 0
    above = [other for other in others if 0 <= other - base < 2**64]
    found = among(distances(ascending, base), distances(above, base))
    assert found.tolist() == [key in others for key in ascending]


def test_a_page_is_as_wide_as_its_keys_are_far_apart() -> None:
    """Dense keys at once, others after a few pages; one that has too many is read again, narrower."""
    dense = PageWidth(100, 10_000, 10_000)
    assert dense.width == 100
    dense.found(100, 100)
    assert dense.width == 100
    sparse = PageWidth(100, 2**63, 2**63)
    pages = 0
    while sparse.width < 50 * 2**30:
        sparse.found(sparse.width, sparse.width // 2**30)
        pages += 1
    assert pages < 15
    assert sparse.width // 2**30 < 100
    guessed = PageWidth(100, 2**63, 1_000)
    assert guessed.too_many(guessed.width, 101)
    assert not guessed.too_many(guessed.width, 100)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "pair",
    [("sqlite", "postgresql"), ("postgresql", "mariadb"), ("mariadb", "postgresql")],
    indirect=True,
    ids="-".join,
)
def test_each_strategy_confirms_on_live_data(configured: Pair, strategy: Strategy) -> None:
    """A parent that comes after its page was read is no orphan, and a row that a saga has is deferred."""
    world = linked(configured)
    if strategy not in strategies_for(world):
        pytest.skip("not for this pair")
    world.register([1, 2])
    world.post([(n, n) for n in range(1, 7)])
    looked: list[str] = []

    def suspects(database_name: str, /, *, since_ms: int) -> list[tuple[str, tuple[str, ...]]]:
        looked.append(database_name)
        if len(looked) == 1:
            world.register([3])
        return [("posts", ("4",))] if database_name == "default" else []

    result = world.audit(strategy=strategy, suspects=suspects)
    assert result.reason is None
    assert orphans(result) == {5: 5, 6: 6}
    assert (result.deferred_keys, result.deferred_rows) == (1, 1)


@pytest.mark.parametrize("pair", [("postgresql", "mariadb"), ("mariadb", "sqlite")], indirect=True, ids="-".join)
def test_without_an_index_the_table_is_read_once(configured: Pair) -> None:
    """The planner takes the set of keys, and says that an index would help."""
    world = linked(configured)
    world.child.execute("DROP INDEX posts_user" + (" ON posts" if world.child.kind == "mariadb" else ""))
    world.register(n for n in range(50) if n != 7)
    world.post([(n, n % 50) for n in range(200)])
    plan = plan_audit(world.reference, page_size=20, chunks=5)
    assert (plan.strategy, len(plan.chunks)) == (Strategy.BITMAP, 1)
    result = world.audit(chunk_size=20)
    assert [finding.parent_key for finding in result.findings] == [7] * 4
    assert (result.keys_checked, result.child_rows) == (50, 200)
    assert any("has no index" in note for note in result.notes)


@pytest.mark.parametrize("pair", [("postgresql", "sqlite"), ("sqlite", "postgresql")], indirect=True, ids="-".join)
def test_rows_that_a_read_by_primary_key_has_lost_make_it_incomplete(
    world: Linked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second page of rows comes back empty, as after a swallowed error, and there are rows behind it."""
    world.register(range(50))
    world.post([(n, n) for n in range(50)])
    monkeypatch.setattr(bitmap, "_PAGE", 20)
    assert world.audit(strategy=Strategy.BITMAP).keys_checked == 50
    read = bitmap._Rows._read

    def losing(self: bitmap._Rows, after: int | None) -> Any:
        return read(self, after) if after is None else (None, np.zeros(0, dtype=np.uint64))

    monkeypatch.setattr(bitmap._Rows, "_read", losing)
    result = world.audit(strategy=Strategy.BITMAP)
    assert result.state is AuditState.INCOMPLETE
    assert "30 rows with id above 19 were not read" in (result.reason or "")


@pytest.mark.parametrize("pair", [("postgresql", "mariadb")], indirect=True, ids="-".join)
def test_the_reads_of_both_ends_overlap(world: Linked, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the parent is asked about a page the child reads the next one: each waits for the other to have begun."""
    world.register(range(20))
    world.post([(n, n) for n in range(20)])
    both = threading.Barrier(2, timeout=30)

    class Meeting(PackedScan):
        def read(self, after: Any) -> Any:
            if after is not None:
                both.wait()
            return super().read(after)

        def missing(self, page: Any) -> Any:
            if page.tile.hi != 19:
                both.wait()
            return super().missing(page)

    result = world.audit(chunk_size=5, scan=lambda ends, _: Meeting(ends))
    assert (result.state, result.reason, result.keys_checked) == (AuditState.OK, None, 20)


@pytest.mark.parametrize("pair", [("postgresql", "mariadb")], indirect=True, ids="-".join)
def test_a_dense_parent_is_asked_about_two_pages_at_once(world: Linked) -> None:
    """Each question waits for another one to be under way; what they find is the same."""
    world.register(set(range(400)) - {7, 350})
    world.post([(n, n) for n in range(400)])
    both = threading.Barrier(2, timeout=30)

    class Meeting(GapScan):
        def missing(self, page: Any) -> Any:
            both.wait()
            return super().missing(page)

    result = world.audit(chunk_size=50, scan=lambda ends, _: Meeting(ends))
    assert (result.reason, orphans(result)) == (None, {7: 7, 350: 350})


SITUATION = Situation(
    kind=KeyKind.INTEGER,
    indexed=True,
    rows=5_000_000,
    keys=1_600_000,
    parents=2_000_000,
    span=2_000_000,
    parent_span=2_000_000_000,
    round_trip_s=0.0002,
    page_size=50_000,
    child_skips=True,
    child_is_pageable=True,
    child_packs=True,
    both_pack=True,
)


@pytest.mark.parametrize(
    ("changes", "strategy", "reason"),
    [
        ({}, Strategy.PACKED, "in order"),
        ({"round_trip_s": 0.02}, Strategy.WORDS, "20.0 ms"),
        ({"round_trip_s": 0.02, "span": 2**40}, Strategy.PACKED, "in order"),
        ({"round_trip_s": 0.02, "both_pack": False}, Strategy.PACKED, "in order"),
        ({"parent_span": 2_100_000}, Strategy.GAPS, "about 95% of all keys"),
        ({"parent_span": 2_100_000, "keys": 40_000, "parents": 100_000}, Strategy.PACKED, "in order"),
        ({"parent_span": 2_100_000, "child_packs": False}, Strategy.PACKED, "in order"),
        ({"parent_span": 2_100_000, "round_trip_s": 0.02}, Strategy.WORDS, "20.0 ms"),
        ({"parent_span": 2_100_000, "indexed": False}, Strategy.BITMAP, "read once"),
        ({"keys": 3_000}, Strategy.SKIP, "next key"),
        ({"keys": 3_000, "child_skips": False}, Strategy.PROBE, "asked about the keys"),
        ({"keys": 100_000}, Strategy.PROBE, "asked about the keys"),
        ({"indexed": False}, Strategy.BITMAP, "read once"),
        ({"indexed": False, "rows": 40_000, "keys": 40_000, "parents": 100}, Strategy.PACKED, "in order"),
        ({"indexed": False, "child_is_pageable": False}, Strategy.PACKED, "each page reads the table"),
        ({"kind": KeyKind.TEXT}, Strategy.FETCH, "kind text"),
        ({"narrow": False}, Strategy.FETCH, "greater than 2^63 - 1"),
        ({"kind": KeyKind.UUID}, Strategy.PACKED, "as bytes"),
        ({"kind": KeyKind.UUID, "both_pack": False}, Strategy.PACKED, "as bytes"),
    ],
)
def test_the_choice_follows_from_the_numbers(changes: dict[str, Any], strategy: Strategy, reason: str) -> None:
    """Pure: what is known of both ends decides, and the reasons say so."""
    chosen, reasons = choose_strategy(replace(SITUATION, **changes))
    assert chosen is strategy
    assert reason in " ".join(reasons)


@pytest.mark.parametrize("pair", [("postgresql", "sqlite"), ("mariadb", "postgresql")], indirect=True, ids="-".join)
def test_the_planner_reads_the_servers_own_statistics(world: Linked) -> None:
    """A hundred keys in ten thousand rows, once the server has looked at its table."""
    world.post([(n, n % 100) for n in range(10_000)])
    world.child.execute({"postgresql": "ANALYZE posts", "mariadb": "ANALYZE TABLE posts"}[world.child.kind])
    plan = plan_audit(world.reference, chunks=8)
    assert 8_000 < plan.rows < 12_000
    assert 50 < plan.keys <= 100
    assert len(plan.chunks) == 1, "a page holds them all"
    assert len(plan_audit(world.reference, page_size=10, chunks=8, strategy=Strategy.PACKED).chunks) == 8


@pytest.mark.parametrize("pair", [("sqlite", "postgresql")], indirect=True, ids="-".join)
def test_a_strategy_for_other_keys_is_refused(configured: Pair) -> None:
    """As where the type of a column changes while a planned audit waits."""
    world = linked(configured, TEXT_TYPES, declared=sa.String)
    world.post([(1, "1")])
    result = world.audit(strategy=Strategy.PACKED)
    assert result.state is AuditState.INCOMPLETE
    assert "found keys of kind text" in (result.reason or "")

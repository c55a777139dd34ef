"""On live data only what stays an orphan through every look is reported; what a saga has in its hands waits."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa

from bench.waiting import eventually
from crosstie.orm import transaction
from crosstie.orm.integrity import AuditedReference, AuditPhase, AuditProgress, AuditState, Endpoint
from crosstie.orm.integrity.child import ChildColumn, KeyRows
from crosstie.orm.integrity.confirmation import judge
from crosstie.orm.integrity.parent import ParentColumn
from crosstie.orm.integrity.storage import IntegerStorage
from crosstie.orm.integrity.suspicion import Suspicion
from crosstie.orm.spelling import spell
from crosstie.sagas.image import key_text
from integrity.tables import Linked, orphans, reference

Touched = Collection[tuple[str, tuple[str, ...]]]

TWO = pytest.mark.parametrize(
    "pair", [("sqlite", "sqlite"), ("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join
)
ONE = pytest.mark.parametrize("pair", [("sqlite", "postgresql")], indirect=True, ids="-".join)


class Sagas:
    """Stands for the records of sagas: what they touch by database, and what happens at the n-th look at them."""

    def __init__(self, touched: dict[str, Touched] | None = None) -> None:
        self.touched = touched or {}
        self.looks: list[tuple[str, int]] = []
        self.at: dict[int, Callable[[], Any]] = {}

    def __call__(self, database_name: str, /, *, since_ms: int) -> Touched:
        self.looks.append((database_name, since_ms))
        action = self.at.pop(len(self.looks), None)
        if action is not None:
            action()
        return self.touched.get(database_name, ())


def clocks(world: Linked) -> dict[str, int]:
    """Milliseconds by the clocks of a SQLite child and a PostgreSQL parent."""
    return {
        "default": world.child.scalar("SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"),
        "secondary": world.parent.scalar("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)"),
    }


@TWO
def test_a_parent_that_arrives_after_the_scan_is_no_orphan(world: Linked) -> None:
    """The bulk scan missed it; before anything is reported the parent is asked again."""
    world.post([(1, 10), (2, 20)])
    sagas = Sagas()
    sagas.at[1] = lambda: world.register([10])
    assert orphans(world.audit(suspects=sagas)) == {2: 20}


@TWO
def test_a_child_that_leaves_after_the_scan_is_no_orphan(world: Linked) -> None:
    """A row that is gone, or points elsewhere by now, is not reported."""
    world.register([30])
    world.post([(1, 10), (2, 20), (3, 25)])
    sagas = Sagas()

    def change() -> None:
        world.child.execute("DELETE FROM posts WHERE id = 1")
        world.child.execute("UPDATE posts SET user_id = 30 WHERE id = 3")

    sagas.at[2] = change
    assert orphans(world.audit(suspects=sagas)) == {2: 20}


@ONE
def test_a_child_that_leaves_between_the_two_looks_is_no_orphan(world: Linked, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was there before the parent was asked and is gone after: the parent may have gone with it."""
    world.post([(1, 10), (2, 20), (3, 20)])
    asked = ParentColumn.absent

    def absent_then_delete(self: ParentColumn, keys: Any) -> Any:
        answer = asked(self, keys)
        world.child.execute("DELETE FROM posts WHERE id IN (1, 3)")
        world.child.execute("INSERT INTO posts VALUES (4, 20)")
        return answer

    monkeypatch.setattr(ParentColumn, "absent", absent_then_delete)
    assert orphans(world.audit()) == {2: 20}


@TWO
def test_rows_of_an_unresolved_saga_are_deferred_and_reported_once_it_is_resolved(world: Linked) -> None:
    """By the child row's key or by the parent's; what is still an orphan afterwards is found by the next audit."""
    world.post([(1, 10), (2, 20), (3, 30), (4, 30)])
    sagas = Sagas({"default": [("posts", ("1",)), ("posts", ("3",))], "secondary": [("users", ("20",))]})
    result = world.audit(suspects=sagas)
    assert orphans(result) == {4: 30}
    assert (result.orphan_keys, result.orphan_rows) == (1, 1)
    assert (result.deferred_keys, result.deferred_rows) == (3, 3)
    assert world.audit(suspects=Sagas()).orphan_rows == 4


@ONE
def test_ok_says_how_many_keys_it_could_not_judge(world: Linked) -> None:
    """Deferred keys are shown beside the state."""
    world.post([(1, 10)])
    result = world.audit(suspects=Sagas({"default": [("posts", ("1",))]}))
    assert (result.state, result.deferred_keys) == (AuditState.OK, 1)


@ONE
def test_both_databases_are_asked_before_and_after_and_since_the_child_was_read(
    world: Linked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """t1 is taken by each database's own clock before the scan reads the child."""
    world.post([(1, 10)])
    page = ChildColumn.groups
    read_at: dict[str, int] = {}

    def timed(self: ChildColumn, *args: Any) -> Any:
        read_at.update(clocks(world))
        eventually(lambda: all(clocks(world)[name] > read_at[name] + 1 for name in read_at))
        return page(self, *args)

    monkeypatch.setattr(ChildColumn, "groups", timed)
    begun_at = clocks(world)
    sagas = Sagas()
    world.audit(suspects=sagas)
    assert [name for name, _ in sagas.looks] == ["default", "secondary"] * 2
    for name, since_ms in sagas.looks:
        assert begun_at[name] - 1 <= since_ms <= read_at[name] + 1


@ONE
def test_a_saga_seen_only_by_the_second_look_still_defers(world: Linked) -> None:
    """It began and ended between the looks: the second one asks for what has ended since."""
    world.post([(1, 10), (2, 20)])
    sagas = Sagas()

    def appear() -> None:
        sagas.touched = {"secondary": [("users", ("10",))]}

    sagas.at[3] = appear
    result = world.audit(suspects=sagas)
    assert orphans(result) == {2: 20}
    assert result.deferred_keys == 1


@ONE
def test_a_deferred_key_is_looked_at_again_before_the_audit_ends(world: Linked) -> None:
    """The saga had it when its chunk was read, and has let go of it since: no reason to wait for the next audit."""
    world.post([(1, 10), (2, 20)])
    sagas = Sagas({"default": [("posts", ("1",))]})

    def resolve(step: AuditProgress) -> None:
        if step.phase is AuditPhase.CONFIRMING and sagas.looks:
            sagas.touched = {}

    result = world.audit(suspects=sagas, progress=resolve)
    assert orphans(result) == {1: 10, 2: 20}
    assert result.deferred_keys == 0


@ONE
def test_a_key_with_more_rows_than_are_listed_is_counted_in_full(world: Linked) -> None:
    """Thousands of rows of one deleted parent: all counted, the first of them listed."""
    world.post([(n, 10) for n in range(3_000)])
    world.child.execute("INSERT INTO posts (id, user_id) VALUES (9999, 20)")
    result = world.audit(finding_limit=50)
    assert (result.orphan_keys, result.orphan_rows, len(result.findings)) == (2, 3_001, 50)


@ONE
def test_grace_is_waited_for_and_spares_a_slow_writer(world: Linked) -> None:
    """A writer outside sagas adds the parent within the grace; nobody sleeps in a test."""
    world.post([(1, 10), (2, 20)])
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        world.register([10])

    result = world.audit(grace_s=5.0, wait=wait, clock_s=lambda: 100.0)
    assert orphans(result) == {2: 20}
    assert waited == [5.0]


@ONE
def test_without_candidates_nobody_waits(world: Linked) -> None:
    """The grace costs nothing where everything has its parent."""
    world.register([10])
    world.post([(1, 10)])

    def wait(seconds: float) -> None:
        raise AssertionError(f"waited {seconds} s")

    assert world.audit(grace_s=5.0, wait=wait).state is AuditState.OK


@ONE
def test_the_callers_open_transaction_is_not_seen(world: Linked) -> None:
    """What the caller has not committed is no orphan and hides none."""
    world.post([(1, 10)])
    with pytest.raises(RuntimeError), transaction("secondary") as tx:
        tx.connection.execute(sa.text("INSERT INTO users VALUES (10)"))
        assert orphans(world.audit()) == {1: 10}
        raise RuntimeError


def test_a_parent_that_is_not_the_primary_key_defers_by_table() -> None:
    """A deleted row's key does not tell its other columns, so any saga on the table makes the audit wait."""
    ends = reference()
    codes = sa.Table(
        "users", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("code", sa.BigInteger)
    )
    by_code = AuditedReference.between(ends.child, Endpoint("secondary", codes, codes.c.code))
    touched = [("users", ("999",))]
    rows = KeyRows(1, ((1,),))
    assert judge(10, rows, Suspicion.of(ends, IntegerStorage(), [], touched))[0] is not None
    assert judge(10, rows, Suspicion.of(by_code, IntegerStorage(), [], touched))[0] is None
    assert judge(10, rows, Suspicion.of(by_code, IntegerStorage(), [], [("other", ("999",))]))[0] is not None


def test_a_row_key_that_databases_spell_differently_is_taken_for_touched() -> None:
    """A float or a time as primary key cannot be matched with a saga's record."""
    suspicion = Suspicion(frozenset({("1.5",)}), frozenset(), parent_key_is_enough=True)
    assert suspicion.touches_row((2.5,))
    assert not Suspicion(frozenset(), frozenset(), parent_key_is_enough=True).touches_row((2.5,))


@pytest.mark.parametrize(
    "value",
    [7, -1, "abc", "abc   ", "", uuid.UUID(int=5), uuid.UUID(int=5).hex, str(uuid.UUID(int=5)), Decimal("1.50")],
)
def test_keys_are_spelt_as_sagas_spell_them(value: Any) -> None:
    """The engine knows nothing of sagas, yet both must write a key the same way."""
    assert spell(value) == key_text(value)

"""Parents in several databases: a key is in order if any of them has it, or the one that was chosen with the child."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from bench.databases import Pair, Trio
from crosstie.orm import ActiveRecord, ConnectionManager, Tenants, connected_to
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.integrity import AuditPhase, AuditProgress, AuditResult, AuditScope, AuditState, UnknownReference
from crosstie.orm.reference import reference_unions
from crosstie.orm.relation import BelongsTo
from crosstie.sagas import saga, sweep_sagas
from crosstie.workers.audit import run_audit
from crosstie.workers.audit_references import known_reference, reflected_reference, select_references
from crosstie.workers.audit_triggers import create_noting, drop_noting
from crosstie.workers.deployment import deployment_jobs
from integrity.desk import UNION, WRITTEN

ONE = pytest.mark.parametrize("trio", [("sqlite", "postgresql", "mariadb")], indirect=True, ids="-".join)


def run(scope: AuditScope = AuditScope.FULL, **options: Any) -> AuditResult:
    """Audit everything that is declared: one reference."""
    (result,) = run_audit(scope=scope, **options).results
    return result


def found(result: AuditResult) -> set[Any]:
    """The keys that nobody has."""
    return {one.parent_key for one in result.findings}


def test_a_parent_in_any_shard_is_a_parent(desk: Any, configured_trio: Trio) -> None:
    """One reference and one report; what neither has is an orphan, also when one of them loses it."""
    _, ticket = desk
    assert (run().state, run().reference) == (AuditState.OK, UNION)
    ticket(user_id=99).save()
    result = run()
    assert (found(result), result.keys_checked, result.child_rows) == ({99}, 7, 7)
    configured_trio.third.execute("DELETE FROM users WHERE id = 12")
    configured_trio.second.execute("DELETE FROM users WHERE id = 1")
    assert found(run(chunk_size=1)) == {99, 12, 1}
    configured_trio.second.execute("INSERT INTO users (id) VALUES (12)")
    assert found(run()) == {99, 1}


def test_a_shard_that_is_down_makes_it_incomplete(desk: Any, configured_trio: Trio) -> None:
    """Its rows may be the parents of any key."""
    _, ticket = desk
    ticket(user_id=99).save()
    configured_trio.third.execute("DROP TABLE users")
    result = run()
    assert (result.state, result.orphan_rows) == (AuditState.INCOMPLETE, 0)
    assert "'tertiary'" in (result.reason or "")


def test_changes_of_every_shard_are_noted(desk: Any, configured_trio: Trio) -> None:
    """A parent that moves to the other shard stays a parent."""
    (reference,) = select_references()
    create_noting(reference)
    assert run(AuditScope.CHANGES).scope is AuditScope.FULL
    configured_trio.third.execute("DELETE FROM users WHERE id IN (11, 12)")
    configured_trio.second.execute("DELETE FROM users WHERE id = 1")
    configured_trio.second.execute("INSERT INTO users (id) VALUES (11)")
    result = run(AuditScope.CHANGES)
    assert (result.scope, result.keys_checked, found(result)) == (AuditScope.CHANGES, 3, {1, 12})
    assert len(drop_noting(reference)) >= 6
    assert run(AuditScope.CHANGES).scope is AuditScope.FULL


@ONE
def test_a_saga_on_any_shard_defers(desk: Any, configured_trio: Trio) -> None:
    """Its record is in the database of the shard."""
    user, ticket = desk
    with connected_to(region="us"), saga("leave", home="default"):
        user.find(13).delete()
        ticket(user_id=1).save()
    result = run()
    assert (result.state, result.deferred_keys) == (AuditState.OK, 1)
    sweep_sagas("tertiary")
    assert found(run()) == {13}


@ONE
def test_a_parent_that_moves_while_it_is_looked_for_is_no_orphan(desk: Any, configured_trio: Trio) -> None:
    """Written to the other shard before it leaves its own, it is in one of them at any time, but not in each read."""

    def move(step: AuditProgress) -> None:
        if step.phase is AuditPhase.CONFIRMING:
            configured_trio.second.execute("INSERT INTO users (id) VALUES (99)")

    desk[1](user_id=99).save()
    assert run(progress=move).state is AuditState.OK


@ONE
def test_tables_without_models_may_be_in_shards(desk: Any, configured_trio: Trio) -> None:
    """In braces, on the command line and in the settings."""
    desk[1](user_id=99).save()
    (result,) = run_audit([reflected_reference(WRITTEN)]).results
    assert (result.reference, found(result)) == (WRITTEN, {99})
    (alone,) = run_audit([reflected_reference("default.tickets.user_id -> {secondary}.users.id")]).results
    assert found(alone) == {11, 12, 13, 99}
    for wrong in ("{secondary, }.users.id", "{secondary.users.id", "{secondary, secondary}.users.id"):
        with pytest.raises(UnknownReference, match="in braces"):
            reflected_reference(f"default.tickets.user_id -> {wrong}")


@ONE
def test_it_is_one_reference_by_every_name(desk: Any, configured_trio: Trio, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the command, to workers that help, to schedules."""
    assert [one.name for one in select_references(["tickets.user_id"])] == [UNION]
    assert known_reference(UNION) == select_references([UNION])[0]
    assert [job.name for job in deployment_jobs()] == [f"audit {UNION}"]
    monkeypatch.setenv("CROSSTIE_AUDIT__REFERENCES", json.dumps([WRITTEN]))
    ConnectionManager.configure(configured_trio.configuration)
    assert [one.name for one in select_references()] == [UNION, WRITTEN]
    assert known_reference(WRITTEN) is not None


@pytest.mark.parametrize("pair", [("sqlite", "postgresql")], indirect=True, ids="-".join)
def test_what_is_chosen_together_has_its_own_parent(
    pair: Pair, no_models: None, configure: Callable[..., None]
) -> None:
    """A line of one tenant needs its order there; of what they share, any tenant's row will do."""
    configure({"default": pair.first.config, "tenant_acme": pair.first.config, "tenant_bolt": pair.second.config})

    class Order(IntegerPKMixin, ActiveRecord):
        __table_name__ = "orders"
        __connection__ = Tenants("tenant_{tenant}")

        id: int | None = None

    class Line(IntegerPKMixin, ActiveRecord):
        __table_name__ = "lines"
        __connection__ = Tenants("tenant_{tenant}")

        id: int | None = None
        order_id: int

        order: ClassVar[BelongsTo[Order]] = BelongsTo(foreign_key="order_id")

    class Bill(IntegerPKMixin, ActiveRecord):
        __table_name__ = "bills"
        __connection__ = "default"

        id: int | None = None
        order_id: int

        order: ClassVar[BelongsTo[Order]] = BelongsTo(foreign_key="order_id")

    assert [one.name for one in reference_unions()] == [
        "tenant_acme.lines.order_id -> tenant_acme.orders.id",
        "tenant_bolt.lines.order_id -> tenant_bolt.orders.id",
        "default.bills.order_id -> tenant_{tenant}.orders.id",
    ]
    assert [one.name for one in reference_unions(crossing_only=True)] == [
        "default.bills.order_id -> tenant_{tenant}.orders.id"
    ]


@pytest.fixture
def configure(pair: Pair) -> Any:
    """Configure connections of other names than those of the pair; reset after the test."""
    from bench.guard import configured_databases

    with configured_databases(pair, tables=False):
        yield ConnectionManager.configure


@pytest.mark.parametrize(
    "pair", [("sqlite", "sqlite"), ("postgresql", "mariadb"), ("mariadb", "sqlite")], indirect=True
)
def test_a_table_may_refer_to_itself(configured: Pair, no_models: None) -> None:
    """A tree: read as any reference, and a deleted node is noted as a parent, its leaves as children."""

    class Node(IntegerPKMixin, ActiveRecord):
        __table_name__ = "nodes"
        __connection__ = "default"

        id: int | None = None
        parent_id: int | None = None

        parent: ClassVar[BelongsTo[Node]] = BelongsTo(foreign_key="parent_id")

    Node.create_table()
    Node.bulk_create([Node(id=1), Node(id=2, parent_id=1), Node(id=3, parent_id=2), Node(id=4, parent_id=4)])
    name = "default.nodes.parent_id -> default.nodes.id"
    create_noting(*select_references([name]))
    (result,) = run_audit([name]).results
    assert (result.reference, result.state, result.keys_checked) == (name, AuditState.OK, 3)
    configured.first.execute("DELETE FROM nodes WHERE id = 2")
    configured.first.execute("INSERT INTO nodes (id, parent_id) VALUES (5, 77)")
    (result,) = run_audit([name], scope=AuditScope.CHANGES).results
    assert (result.scope, found(result)) == (AuditScope.CHANGES, {2, 77})

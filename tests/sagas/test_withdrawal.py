"""The undo of a branch takes its events back by their keys, exactly these, however often it is begun."""

from __future__ import annotations

from decimal import Decimal

import pytest

from bench.databases import Pair, TestDatabase, Trio
from bench.faults import crash_at
from crosstie.orm import ConnectionManager
from crosstie.orm.faults import FaultInjected
from crosstie.orm.statement_log import logged_statements
from crosstie.orm.transaction import transaction
from crosstie.outbox import Event, subscriber, sync_routes
from crosstie.sagas import SagaAborted, saga, sweep_sagas
from sagas.shop import Invoice, Order, Stock, create_shop, saga_states

pytestmark = pytest.mark.usefixtures("own_registries")


class Reserved(Event):
    """Told to two databases; each key has a lane of its own more or less."""

    __event_type__ = "test.withdrawal.reserved"
    __key__ = "sku"

    sku: str


def _subscribe() -> None:
    for route in ("default", "secondary"):
        subscriber(Reserved, database=route)(lambda event: None)
    assert not sync_routes().failed


def _order(skus: list[str]) -> None:
    """A saga whose branch, `secondary`, publishes these and one more, in a hook that runs before it commits."""
    with saga("order", home="default", expiry_s=0.001) as block:
        Order(sku="new", amount=Decimal(1)).save()
        Stock(sku="new").save()
        for sku in skus:
            Reserved(sku=sku).publish("secondary")
        block.transaction("secondary").before_commit(lambda _: Reserved(sku="by a hook").publish("secondary"))


@pytest.fixture
def shop(configured_crash_pair: Pair) -> TestDatabase:
    """The branch's database, in whose outbox events of others wait."""
    create_shop(configured_crash_pair.by_name)
    _subscribe()
    with transaction("secondary"):
        for number in range(5):
            Reserved(sku=f"other {number}").publish()
    return configured_crash_pair.second


def _waiting(branch: TestDatabase) -> list[tuple[object, ...]]:
    key = "`key`" if branch.kind == "mariadb" else "key"
    return branch.rows(f"SELECT route, {key}, saga_id FROM crosstie_outbox ORDER BY id")


def test_the_events_of_an_aborted_branch_are_deleted_by_key_and_no_others(shop: TestDatabase) -> None:
    """No statement searches the outbox for the saga."""
    before = _waiting(shop)
    assert len(before) == 10
    with logged_statements() as log, crash_at("saga.branch-committed"), pytest.raises(SagaAborted):
        _order([f"mine {number}" for number in range(20)])
    assert _waiting(shop) == before
    deletes = [sql for _, sql in log.statements if sql.startswith("DELETE") and "crosstie_outbox" in sql]
    assert deletes
    for sql in deletes:
        assert "crosstie_outbox.id IN" in sql.replace("`", ""), sql


def test_a_branch_that_published_nothing_pays_nothing(shop: TestDatabase) -> None:
    """Its undo deletes nothing in the outbox."""
    with (
        logged_statements() as log,
        crash_at("saga.branch-committed"),
        pytest.raises(SagaAborted),
        saga("order", home="default"),
    ):
        Order(sku="new", amount=Decimal(1)).save()
        Stock(sku="new").save()
    assert not [sql for _, sql in log.statements if sql.startswith("DELETE") and "crosstie_outbox" in sql]
    assert len(_waiting(shop)) == 10


def test_a_committed_branch_keeps_its_events(shop: TestDatabase) -> None:
    """All of them, with the saga's name, for each of the two routes."""
    _order(["mine"])
    assert [key for _, key, saga_id in _waiting(shop) if saga_id is not None] == ["mine"] * 2 + ["by a hook"] * 2


@pytest.mark.parametrize("place", ["recovery.branch-undone", "recovery.branch-resolved", "recovery.before-finish"])
def test_an_undo_that_dies_and_is_begun_again_is_exact(shop: TestDatabase, place: str) -> None:
    """Before its commit nothing has happened; after it nothing happens again, though new events wait by then."""
    before = _waiting(shop)
    with crash_at("saga.branch-committed"), crash_at(place), pytest.raises(FaultInjected):
        _order(["mine", "mine too"])
    with transaction("secondary"):
        Reserved(sku="later").publish()
    assert len(_waiting(shop)) - len(before) - 2 == (6 if place == "recovery.branch-undone" else 0)
    for _ in range(2):
        sweep_sagas("default")
        sweep_sagas("secondary")
    waiting = _waiting(shop)
    assert waiting[: len(before)] == before
    assert [key for _, key, _ in waiting[len(before) :]] == ["later", "later"]


def test_a_server_that_does_not_tell_places_is_searched(shop: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """As MySQL, which has no RETURNING."""
    before = _waiting(shop)
    monkeypatch.setattr(ConnectionManager.get("secondary").dialect, "insert_returning", False)
    with crash_at("saga.branch-committed"), pytest.raises(SagaAborted):
        _order(["mine"])
    assert _waiting(shop) == before


def test_what_the_hook_of_another_branch_publishes_is_withdrawn_too(configured_trio: Trio) -> None:
    """It is written when the first branch has been prepared, and before its record is."""
    create_shop(configured_trio.by_name)
    _subscribe()
    with crash_at("saga.branch-committed"), pytest.raises(SagaAborted), saga("order", home="default") as block:
        Order(sku="new", amount=Decimal(1)).save()
        Stock(sku="new").save()
        Invoice(sku="new").save()
        block.transaction("tertiary").before_commit(lambda _: Reserved(sku="late").publish("secondary"))
    assert saga_states(configured_trio.by_name)["secondary"] == ["undone"]
    assert _waiting(configured_trio.by_name["secondary"]) == []

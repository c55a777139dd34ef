"""Effects outside databases stay if the saga commits, and are compensated if it does not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from decimal import Decimal

import pytest

from bench.databases import Pair
from bench.faults import crash_at
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.faults import FaultInjected, armed
from crosstie.sagas import (
    EffectInvalid,
    SagaAborted,
    SagaBlock,
    compensator,
    prune,
    saga,
    sweep_effects,
    sweep_sagas,
)
from crosstie.sagas import effect as effects
from crosstie.sagas.compensation import _compensations
from sagas import till
from sagas.shop import Order, Stock, contents, create_shop, saga_states
from sagas.till import Refused, charge, charge_and_fail, refund

pytestmark = pytest.mark.usefixtures("own_till")


@pytest.fixture
def shop(configured_crash_pair: Pair) -> Pair:
    """A shop over two databases; `default` is home."""
    create_shop(configured_crash_pair.by_name)
    return configured_crash_pair


def states(shop: Pair) -> list[str]:
    """The states of the effects, in their order."""
    return [str(state) for (state,) in shop.first.rows("SELECT state FROM crosstie_effect ORDER BY saga_id, step")]


def write() -> None:
    """The business of the saga, in both databases."""
    Order(sku="new", amount=Decimal(1)).save()
    Stock(sku="new").save()


def hurry(shop: Pair) -> None:
    """Let expiries, leases and backoffs have passed."""
    shop.first.execute("UPDATE crosstie_effect SET expires_at_ms = 0, lease_until_ms = 0, next_at_ms = 0")


def crash(point: str, block: Callable[[SagaBlock], object], *, decisions: int = 1) -> None:
    """Run a block that ends at a point as if its process had gone: its own recovery fails, too."""
    with (
        crash_at(point),
        crash_at("recovery.before-decision", nth=decisions),
        pytest.raises(FaultInjected),
        saga("order", home="default") as s,
    ):
        block(s)


def test_a_saga_that_commits_keeps_its_effects(configured: Pair) -> None:
    """The decision settles them, and what the function returns is returned."""
    create_shop(configured.by_name)
    with saga("order", home="default") as s:
        assert s.call(charge, 5, compensate=refund) == "receipt for 5"
        s.compensate_with(refund, 6)
        write()

    assert states(configured) == ["settled", "settled"]
    assert saga_states(configured.by_name) == {"default": ["committed"], "secondary": ["applied"]}
    hurry(configured)
    assert sweep_effects("default") == sweep_effects("secondary")
    assert till.lines() == ["charge 5 :1"]


def test_an_exception_in_the_block_compensates_in_reverse_order(configured: Pair) -> None:
    """At once, and it leaves the block as it is; the key of a call is that of its compensation."""
    create_shop(configured.by_name)
    before = contents(configured.by_name)
    with pytest.raises(ZeroDivisionError) as caught, saga("order", home="default") as s:
        s.call(charge, 5, compensate=refund)
        s.call(charge, amount=6, compensate="till.refund")
        s.compensate_with(refund, 7)
        write()
        raise ZeroDivisionError

    assert till.lines() == ["charge 5 :1", "charge 6 :2", "refund 7 :3", "refund 6 :2", "refund 5 :1"]
    assert states(configured) == ["compensated"] * 3
    assert contents(configured.by_name) == before
    assert saga_states(configured.by_name) == {"default": ["finished"], "secondary": []}
    assert not hasattr(caught.value, "__notes__"), "nothing is left"


@pytest.mark.parametrize("point", ["saga.before-first-commit", "saga.branch-committed", "saga.home-recorded"])
def test_a_failure_at_the_end_compensates(shop: Pair, point: str) -> None:
    """As it undoes what had been committed."""
    before = contents(shop.by_name)
    with crash_at(point), pytest.raises(SagaAborted), saga("order", home="default") as s:
        s.call(charge, 5, compensate=refund)
        write()

    assert till.lines() == ["charge 5 :1", "refund 5 :1"]
    assert contents(shop.by_name) == before
    assert saga_states(shop.by_name)["default"] == ["finished"]


@pytest.mark.parametrize("point", [None, "two-phase.branch-prepared", "two-phase.home-recorded"])
def test_a_saga_in_two_phases_decides_over_effects_too(shop: Pair, point: str | None) -> None:
    """By home's commit, as ever."""
    if shop.second.kind != "mariadb":
        pytest.skip("SQLite prepares nothing, and PostgreSQL not unless it is configured to")
    before = contents(shop.by_name)
    with (
        crash_at(point) if point else nullcontext(),
        pytest.raises(SagaAborted) if point else nullcontext(),
        saga("order", home="default", commit="two_phase") as s,
    ):
        s.call(charge, 5, compensate=refund)
        write()

    assert states(shop) == ["compensated" if point else "settled"]
    assert till.lines("refund") == (["refund 5 :1"] if point else [])
    assert (contents(shop.by_name) == before) is (point is not None)


@pytest.mark.parametrize("writing", [True, False], ids=["one-database", "nothing-written"])
def test_a_saga_of_one_database_decides_over_effects_too(shop: Pair, writing: bool) -> None:
    """It has a record then; even where it writes nothing else."""
    for fails in (False, True):
        with crash_at("saga.home-recorded") if fails else nullcontext():
            try:
                with saga("order", home="default") as s:
                    s.call(charge, 5, compensate=refund)
                    if writing:
                        Order(sku="new", amount=Decimal(1)).save()
            except SagaAborted:
                assert fails

    assert states(shop) == ["settled", "compensated"]
    assert saga_states(shop.by_name) == {"default": ["committed", "finished"], "secondary": []}
    assert till.lines() == ["charge 5 :1", "charge 5 :1", "refund 5 :1"]
    assert shop.first.scalar("SELECT count(*) FROM orders WHERE sku = 'new'") == int(writing)


def test_home_is_the_database_that_was_written_before_the_first_call(shop: Pair) -> None:
    """And stays so; SQLite, whose one writer the block is by then, refuses."""
    if shop.second.kind == "sqlite":
        with pytest.raises(EffectInvalid, match="one writer"), saga("order") as s:
            Stock(sku="new").save()
            s.call(charge, 5, compensate=refund)
        assert till.lines() == []
        return
    with saga("order") as s:
        Stock(sku="new").save()
        s.call(charge, 5, compensate=refund)
        write()
    assert saga_states(shop.by_name) == {"default": ["applied"], "secondary": ["committed"]}
    assert shop.second.scalar("SELECT state FROM crosstie_effect") == "settled"


def test_a_call_that_raised_is_compensated_although_the_saga_commits(shop: Pair) -> None:
    """It may have had its effect, as may one that was never begun because its intent's answer was lost."""
    with saga("order", home="default") as s:
        s.call(charge, 5, compensate=refund)
        with pytest.raises(Refused):
            s.call(charge_and_fail, 6, compensate=refund)
        with crash_at("effect.intended"), pytest.raises(FaultInjected):
            s.call(charge, 7, compensate=refund)
        write()

    assert saga_states(shop.by_name)["default"] == ["committed"]
    assert states(shop) == ["settled", "compensated", "compensated"]
    assert till.lines() == ["charge 5 :1", "charge 6 :2", "refund 7 :3", "refund 6 :2"]


def test_a_call_in_a_part_that_is_rolled_back_is_compensated_although_the_saga_commits(shop: Pair) -> None:
    """A savepoint takes back what happened inside, effects as well as writes."""
    with saga("order", home="default") as s:
        s.call(charge, 5, compensate=refund)
        with pytest.raises(ZeroDivisionError), Stock.transaction():
            s.compensate_with(refund, 6)
            raise ZeroDivisionError
        with Stock.transaction():
            Stock(sku="new").save()
            s.compensate_with(refund, 7)

    assert saga_states(shop.by_name)["default"] == ["committed"]
    assert states(shop) == ["settled", "compensated", "settled"]
    assert till.lines() == ["charge 5 :1", "refund 6 :2"]


def test_a_call_in_an_inner_saga_that_failed_is_compensated_although_the_outer_one_commits(shop: Pair) -> None:
    """At the end of the outer one, whose home the inner one's call has fixed."""
    with saga("order") as s:
        with pytest.raises(ZeroDivisionError), saga("inner", home="default"):
            s.call(charge, 5, compensate=refund)
            Stock(sku="new").save()
            raise ZeroDivisionError
        with saga("inner"):
            s.call(charge, 6, compensate=refund)
        Stock(sku="newer").save()

    assert saga_states(shop.by_name) == {"default": ["committed"], "secondary": ["applied"]}
    assert states(shop) == ["compensated", "settled"]
    assert till.lines() == ["charge 5 :1", "charge 6 :2", "refund 5 :1"]
    assert shop.second.scalar("SELECT count(*) FROM stock WHERE sku = 'new'") == 0


# -- crashes, and workers alone -------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["effect.intended", "effect.called"])
def test_a_crash_around_the_call_leads_to_the_compensation(shop: Pair, point: str) -> None:
    """By a sweep alone, once the saga has expired and not before; home's register says that it is over."""
    crash(point, lambda s: s.call(charge, 5, compensate=refund))
    assert sweep_effects("default").aborted == 0
    assert states(shop) == ["open"]
    hurry(shop)
    report = sweep_effects("default")
    assert (report.aborted, report.compensated) == (1, 1)
    assert till.lines("refund") == ["refund 5 :1"]
    assert (states(shop), saga_states(shop.by_name)["default"]) == (["compensated"], ["finished"])


def test_a_recoverer_that_comes_too_late_aborts_nothing(shop: Pair) -> None:
    """While it stood still, the saga committed, its effects were settled, and retention removed all."""
    crash("effect.called", lambda s: s.call(charge, 5, compensate=refund))
    hurry(shop)

    def meanwhile() -> None:
        shop.first.execute("DELETE FROM crosstie_effect")

    with armed("recovery.before-decision", meanwhile):
        assert sweep_effects("default").aborted == 0
    assert saga_states(shop.by_name)["default"] == []


def test_a_saga_with_a_later_call_is_alive(shop: Pair) -> None:
    """Its effects expire together, with the last of them."""

    def block(s: SagaBlock) -> None:
        s.compensate_with(refund, 4)
        s.call(charge, 5, compensate=refund)

    crash("effect.called", block)
    shop.first.execute("UPDATE crosstie_effect SET expires_at_ms = 0 WHERE step = 1")
    assert sweep_effects("default").aborted == 0
    hurry(shop)
    assert sweep_effects("default").compensated == 2
    assert till.lines("refund") == ["refund 5 :2", "refund 4 :1"]


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_saga_whose_call_takes_longer_than_its_expiry_cannot_commit(shop: Pair, forgotten: bool) -> None:
    """A worker has taken it for dead: it is told at its commit, nothing of it stays, each effect is compensated.

    The first one again, because its compensation came before it; even where retention has removed all traces by then.
    """
    before = contents(shop.by_name)

    def slow(amount: int, idempotency_key: str) -> None:
        hurry(shop)
        assert sweep_effects("default").compensated == 1
        charge(amount, idempotency_key=idempotency_key)

    with pytest.raises(SagaAborted, match="effect" if forgotten else None), saga("order", home="default") as s:
        s.call(slow, 5, compensate=refund)
        if forgotten:
            shop.first.execute("DELETE FROM crosstie_saga")
            shop.first.execute("DELETE FROM crosstie_effect")
        s.call(charge, 6, compensate=refund)
        write()

    assert contents(shop.by_name) == before
    assert states(shop) == ["compensated", "compensated"]
    assert till.lines() == ["refund 5 :1", "charge 5 :1", "charge 6 :2", "refund 6 :2", "refund 5 :1"]


def test_a_worker_that_compensates_while_the_call_still_runs_is_fenced(shop: Pair) -> None:
    """It ends after the process of the saga has had the effect compensated again, and must not call it done."""
    home = ConnectionManager.get("default")
    claims: list[effects.Effect | None] = []

    def slow(amount: int, idempotency_key: str) -> None:
        hurry(shop)
        with crash_at("effect.claimed"), pytest.raises(FaultInjected):
            sweep_effects("default")
        claims.append(effects.read(home, s.saga_id, 1))
        charge(amount, idempotency_key=idempotency_key)

    till.go_down()
    with pytest.raises(ZeroDivisionError), saga("order", home="default") as s:
        s.call(slow, 5, compensate=refund)
        raise ZeroDivisionError
    assert claims[0] is not None
    assert not effects.complete(home, claims[0])
    assert states(shop) == ["due"]


def test_a_branch_of_a_saga_that_was_aborted_for_its_effects_is_undone(shop: Pair) -> None:
    """The worker knew of no branch when it decided, and this one committed after that."""
    before = contents(shop.by_name)

    def worker() -> None:
        hurry(shop)
        sweep_effects("default")

    def block(s: SagaBlock) -> None:
        s.call(charge, 5, compensate=refund)
        worker()
        write()

    crash("saga.branch-committed", block, decisions=2)
    assert saga_states(shop.by_name) == {"default": ["finished"], "secondary": ["applied"]}
    assert sweep_sagas("secondary").aborted == 1
    assert contents(shop.by_name) == before


# -- compensations that fail ----------------------------------------------------------------------------------------


def failed_saga(*amounts: int) -> str:
    """A saga with these charges that aborts while refunds are refused; its id."""
    till.go_down()
    with pytest.raises(ZeroDivisionError) as caught, saga("order", home="default") as s:
        for amount in amounts:
            s.call(charge, amount, compensate=refund)
        raise ZeroDivisionError
    assert "not compensated yet" in caught.value.__notes__[0]
    till.go_down(False)
    return s.saga_id


def test_a_compensation_that_fails_is_tried_again_by_workers(shop: Pair) -> None:
    """The process of the saga tries once; then later, and later each time. Earlier effects wait for it."""
    failed_saga(5, 6)
    assert till.lines("refused") == ["refused 6 :2"]
    rows = shop.first.rows("SELECT attempts, error, next_at_ms > updated_at_ms FROM crosstie_effect ORDER BY step")
    assert [tuple(row) for row in rows] == [(0, None, 0), (1, "Refused: out of order", 1)]
    shop.first.execute("UPDATE crosstie_effect SET next_at_ms = next_at_ms + 60000 WHERE attempts = 1")
    assert sweep_effects("default").compensated == 0, "its backoff"
    hurry(shop)
    assert sweep_effects("default").compensated == 2
    assert till.lines("refund") == ["refund 6 :2", "refund 5 :1"]


def test_a_compensation_that_fails_too_often_is_quarantined(shop: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody tries it any more, and those before it wait, too."""
    monkeypatch.setenv("CROSSTIE_SAGA__COMPENSATION_ATTEMPTS", "2")
    ConnectionManager.configure(shop.configuration)
    failed_saga(5, 6)
    till.go_down()
    hurry(shop)
    assert sweep_effects("default").quarantined == 1
    hurry(shop)
    assert sweep_effects("default") == sweep_effects("secondary")
    assert states(shop) == ["due", "quarantined"]
    assert len(till.lines("refused")) == 2


def test_a_compensation_that_ends_its_process_is_quarantined_too(
    shop: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An attempt counts when it begins."""
    monkeypatch.setenv("CROSSTIE_SAGA__COMPENSATION_ATTEMPTS", "1")
    ConnectionManager.configure(shop.configuration)
    with crash_at("effect.claimed"), pytest.raises(FaultInjected), saga("order", home="default") as s:
        s.call(charge, 5, compensate=refund)
        raise ZeroDivisionError
    assert sweep_effects("default").quarantined == 0, "its lease runs"
    hurry(shop)
    assert sweep_effects("default").quarantined == 1
    assert "never ended" in str(shop.first.scalar("SELECT error FROM crosstie_effect"))


def test_a_lapsed_worker_is_fenced(shop: Pair) -> None:
    """Another has claimed the effect since; what the first says of it then changes nothing."""
    with crash_at("effect.claimed"), pytest.raises(FaultInjected), saga("order", home="default") as s:
        s.call(charge, 5, compensate=refund)
        raise ZeroDivisionError
    home = ConnectionManager.get("default")
    first = effects.read(home, s.saga_id, 1)
    assert first is not None
    assert effects.claim(home, first, lease_s=60) is None, "the lease of the one that crashed"
    hurry(shop)
    second = effects.claim(home, first, lease_s=60)
    assert second is not None
    assert second.epoch == first.epoch + 1
    assert not effects.complete(home, first)
    assert not effects.postpone(home, first, delay_s=0, error="late")
    assert not effects.quarantine(home, first, error="late")
    assert states(shop) == ["due"]
    assert effects.complete(home, second)
    assert states(shop) == ["compensated"]


@pytest.mark.parametrize(("point", "refunds"), [("effect.claimed", 1), ("effect.compensated", 2)])
def test_a_worker_that_dies_compensating_leaves_it_to_the_next(shop: Pair, point: str, refunds: int) -> None:
    """At least once: with the same key, when it died between the service's answer and its note of it."""
    with crash_at(point), pytest.raises(FaultInjected), saga("order", home="default") as s:
        s.call(charge, 5, compensate=refund)
        raise ZeroDivisionError
    hurry(shop)
    assert sweep_effects("default").compensated == 1
    assert till.lines("refund") == ["refund 5 :1"] * refunds


def test_a_worker_leaves_compensations_alone_that_it_does_not_know(
    shop: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another may have their module; that costs no attempt, and is told once."""
    failed_saga(5)
    hurry(shop)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(compensator, "_told", set())
        patch.delitem(_compensations, "till.refund")
        for _ in range(2):
            assert sweep_effects("default").compensated == 0
    assert caplog.text.count("wait for compensation 'till.refund'") == 1
    assert shop.first.scalar("SELECT attempts FROM crosstie_effect") == 1
    assert sweep_effects("default").compensated == 1


# -- what is refused, and what is kept ------------------------------------------------------------------------------


def test_records_outlive_effects_upon_which_somebody_has_to_act(shop: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others go after the retention."""
    monkeypatch.setenv("CROSSTIE_SAGA__RETENTION_S", "0")
    ConnectionManager.configure(shop.configuration)
    with saga("order", home="default") as s:
        s.call(charge, 5, compensate=refund)
    failed_saga(6)
    shop.first.execute("UPDATE crosstie_effect SET updated_at_ms = 1000")
    shop.first.execute("UPDATE crosstie_saga SET updated_at_ms = 1000")
    prune("default")
    assert (states(shop), saga_states(shop.by_name)["default"]) == (["due"], ["finished"])
    hurry(shop)
    sweep_effects("default")
    shop.first.execute("UPDATE crosstie_effect SET updated_at_ms = 1000")
    prune("default")
    assert (states(shop), saga_states(shop.by_name)["default"]) == ([], [])

"""A COMMIT whose answer is lost: the saga finds out, or says that it does not know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from decimal import Decimal
from pathlib import Path

import pytest

from bench.databases import TestDatabase
from bench.proxy import Moment, Proxy
from bench.waiting import eventually
from crosstie.orm import ConnectionManager
from crosstie.orm.errors import CommitInDoubt
from crosstie.orm.faults import armed
from crosstie.orm.transaction import transaction
from crosstie.sagas import SagaAborted, SagaError, SagaInDoubt, saga, sweep_effects, sweep_sagas
from sagas import till
from sagas.proxied import Bench, behind_proxies
from sagas.shop import Order, Stock, contents, create_shop, saga_states


@pytest.fixture(params=[("postgresql", "mariadb"), ("mariadb", "postgresql")], ids="-".join)
def bench(request: pytest.FixtureRequest, tmp_path: Path, proxy_to: Callable[[TestDatabase], Proxy]) -> Iterator[Bench]:
    """Both databases behind proxies, warm: nothing but the saga's own statements will pass."""
    with behind_proxies(request.param, tmp_path, proxy_to, create_shop) as made:
        yield made


def _order() -> None:
    with saga("order", home="default", expiry_s=0.001):
        Order(sku="new", amount=Decimal(1)).save()
        stock = Stock.find_by(sku="count")
        assert stock is not None
        stock.increment(reserved=1)


def _sweep_until_quiet() -> None:
    eventually(
        lambda: all(sweep_sagas(name).deferred == 0 for name in ConnectionManager.names()),
        describe="nothing is deferred",
    )


def test_a_lost_answer_of_home_is_learnt_from_the_register(bench: Bench) -> None:
    """Home committed and only the answer was lost: the saga returns normally, once it has read its own record."""
    trigger = bench.lose_commit_of("default", "answered")

    with armed("recovery.before-decision", bench.home.heal):
        _order()

    assert trigger.fired.is_set()
    assert saga_states(bench.databases) == {"default": ["committed"], "secondary": ["done"]}
    assert bench.databases["secondary"].scalar("SELECT reserved FROM stock WHERE sku = 'count'") == 1


def test_a_lost_commit_of_home_is_aborted(bench: Bench) -> None:
    """The COMMIT never arrived: the saga decides to abort in home, undoes the branch, and says so."""
    before = contents(bench.databases)
    trigger = bench.lose_commit_of("default", "withheld")

    with armed("recovery.before-decision", bench.home.heal), pytest.raises(SagaAborted) as aborted:
        _order()

    assert trigger.fired.is_set()
    assert aborted.value.pending == ()
    assert contents(bench.databases) == before


@pytest.mark.parametrize(("moment", "committed"), [("answered", True), ("withheld", False)])
def test_an_unreachable_home_leaves_the_saga_in_doubt_until_a_sweep(
    moment: Moment, committed: bool, bench: Bench
) -> None:
    """The caller is told neither success nor failure; the sweep ends it in the way that home's register says."""
    before = contents(bench.databases)
    bench.lose_commit_of("default", moment)

    with pytest.raises(SagaInDoubt) as in_doubt:
        _order()
    assert set(in_doubt.value.pending) == {"default", "secondary"}

    bench.home.heal()
    _sweep_until_quiet()
    if committed:
        assert saga_states(bench.databases) == {"default": ["committed"], "secondary": ["done"]}
    else:
        assert contents(bench.databases) == before


@pytest.mark.parametrize("moment", ["answered", "withheld"])
def test_a_branch_whose_commit_is_in_doubt_is_undone_or_refused(moment: Moment, bench: Bench) -> None:
    """Whether the branch had applied or not, after the abort it has not, and never will."""
    before = contents(bench.databases)
    bench.lose_commit_of("secondary", moment)

    with armed("recovery.before-decision", bench.branch.heal), pytest.raises(SagaAborted) as aborted:
        _order()

    assert aborted.value.pending == ()
    assert contents(bench.databases) == before
    assert saga_states(bench.databases)["secondary"] == ["undone" if moment == "answered" else "refused"]


def test_an_unreachable_branch_is_undone_by_a_later_sweep(bench: Bench) -> None:
    """The abort is certain, so the caller is told; the undo waits until the branch is back."""
    before = contents(bench.databases)
    bench.lose_commit_of("secondary", "answered")

    with pytest.raises(SagaAborted) as aborted:
        _order()
    assert aborted.value.pending == ("secondary",)
    assert contents(bench.databases) != before

    bench.branch.heal()
    eventually(
        lambda: [sweep_sagas(name) for name in ConnectionManager.names()] and contents(bench.databases) == before
    )
    assert saga_states(bench.databases) == {"default": ["finished"], "secondary": ["undone"]}


@pytest.mark.parametrize("moment", ["answered", "withheld"])
@pytest.mark.parametrize("healed", [True, False])
def test_an_effect_shares_the_fate_of_a_commit_in_doubt(
    moment: Moment, healed: bool, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a saga of one database: at once if home can be asked, else by a sweep, and compensated only if it aborted."""
    monkeypatch.setenv(till.VARIABLE, str(tmp_path / "till"))
    committed = moment == "answered"
    home = bench.databases["default"]
    expected: type[SagaError] | None = None if healed and committed else SagaAborted if healed else SagaInDoubt

    with (
        armed("recovery.before-decision", bench.home.heal if healed else lambda: None),
        pytest.raises(expected) if expected else nullcontext(),
        saga("order", home="default", expiry_s=0.001) as s,
    ):
        s.call(till.charge, 5, compensate=till.refund)
        Order(sku="new", amount=Decimal(1)).save()
        bench.lose_commit_of("default", moment)

    if not healed:
        assert till.lines("refund") == []
        bench.home.heal()

        def ended() -> bool:
            sweep_effects("default")
            return home.scalar("SELECT state FROM crosstie_effect") not in {"open", "due"}

        # The server may take a moment to notice that its client is gone, and to release the locks.
        eventually(ended)
    assert till.lines("refund") == ([] if committed else ["refund 5 :1"])
    assert home.scalar("SELECT state FROM crosstie_effect") == ("settled" if committed else "compensated")
    assert saga_states(bench.databases)["default"] == ["committed" if committed else "finished"]
    assert home.scalar("SELECT count(*) FROM orders WHERE sku = 'new'") == int(committed)


def test_a_plain_transaction_whose_answer_is_lost_is_in_doubt(bench: Bench) -> None:
    """Without a record there is nothing to ask: the error says that the transaction may be durable."""
    bench.lose_commit_of("default", "answered")

    with pytest.raises(CommitInDoubt), transaction("default"):
        Order(sku="new", amount=Decimal(1)).save()

    assert bench.databases["default"].scalar("SELECT count(*) FROM orders WHERE sku = 'new'") == 1

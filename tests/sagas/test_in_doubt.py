"""A COMMIT whose answer is lost: the saga finds out, or says that it does not know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pytest

from bench import guard
from bench.databases import DatabaseKind, Pair, TestDatabase, fresh_database
from bench.proxy import Moment, Proxy, Trigger
from bench.waiting import eventually
from crosstie.orm import ConnectionManager
from crosstie.orm.errors import CommitInDoubt
from crosstie.orm.faults import armed
from crosstie.orm.transaction import transaction
from crosstie.sagas import SagaAborted, SagaInDoubt, saga, sweep_sagas
from sagas.shop import Order, Stock, contents, create_shop, saga_states


@dataclass
class Bench:
    """Home behind one proxy, the branch behind another, and the databases themselves."""

    home: Proxy
    branch: Proxy
    databases: dict[str, TestDatabase]

    def lose_commit_of(self, name: str, moment: Moment) -> Trigger:
        """Cut the connections when the next COMMIT of this database passes."""
        proxy = self.home if name == "default" else self.branch
        # Not the bare word: BEGIN ISOLATION LEVEL READ COMMITTED has it too.
        pattern = b"COMMIT\x00" if self.databases[name].kind == "postgresql" else b"\x03COMMIT"
        return proxy.cut_after(pattern, moment=moment)


@pytest.fixture(params=[("postgresql", "mariadb"), ("mariadb", "postgresql")], ids="-".join)
def bench(request: pytest.FixtureRequest, tmp_path: Path, proxy_to: Callable[[TestDatabase], Proxy]) -> Iterator[Bench]:
    """Both databases behind proxies, warm: nothing but the saga's own statements will pass."""
    kinds: tuple[DatabaseKind, DatabaseKind] = request.param
    with ExitStack() as stack:
        pair = Pair(*(stack.enter_context(fresh_database(kind, tmp_path)) for kind in kinds))
        home, branch = proxy_to(pair.first), proxy_to(pair.second)
        behind = Pair(pair.first.proxied(home), pair.second.proxied(branch))
        stack.enter_context(guard.configured_databases(behind))
        create_shop(pair.by_name)
        yield Bench(home, branch, pair.by_name)


def _order() -> None:
    with saga("order", home="default", expiry_s=0.001):
        Order(sku="new", amount=Decimal(1)).save()
        stock = Stock.find_by(sku="count")
        assert stock is not None
        stock.increment(reserved=1)


def _sweep_until_quiet() -> None:
    eventually(
        lambda: all(sweep_sagas(name).deferred == 0 for name in ConnectionManager.names()),
        within_s=20,
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


def test_a_plain_transaction_whose_answer_is_lost_is_in_doubt(bench: Bench) -> None:
    """Without a record there is nothing to ask: the error says that the transaction may be durable."""
    bench.lose_commit_of("default", "answered")

    with pytest.raises(CommitInDoubt), transaction("default"):
        Order(sku="new", amount=Decimal(1)).save()

    assert bench.databases["default"].scalar("SELECT count(*) FROM orders WHERE sku = 'new'") == 1

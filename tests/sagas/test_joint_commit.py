"""The branches of a saga commit at once: their COMMITs leave together, and all end as one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import sqlalchemy as sa

from bench.databases import DatabaseKind, TestDatabase, Trio, fresh_database
from bench.guard import configured_databases
from bench.proxy import Moment, Proxy, Trigger
from crosstie.orm import ConnectionManager, LocalTransaction
from crosstie.orm.errors import CommitInDoubt, DuplicateKey
from crosstie.orm.faults import FaultInjected, armed
from crosstie.orm.transaction import detached_transaction, transaction
from crosstie.sagas import SagaAborted, SagaBlock, SagaInDoubt, saga
from crosstie.sagas.record import insert
from sagas.proxied import COMMIT, while_held
from sagas.shop import Invoice, Order, Stock, contents, create_shop, saga_states, sweep_until_quiet, sweep_until_undone

pytestmark = pytest.mark.turns("bench")

BRANCHES = ("secondary", "tertiary")
KINDS: list[tuple[DatabaseKind, DatabaseKind, DatabaseKind]] = [
    ("sqlite", "postgresql", "mariadb"),
    ("mariadb", "postgresql", "postgresql"),
]


@dataclass
class Bench:
    """Two branches behind proxies, and home too where it is a server."""

    proxies: dict[str, Proxy]
    databases: dict[str, TestDatabase]

    def at_commit(self, name: str, moment: Moment, *, deaf: bool = False) -> Trigger:
        """Cut the branch off when its next COMMIT passes, or keep the COMMIT back."""
        proxy = self.proxies[name]
        act = proxy.deaf_after if deaf else proxy.cut_after
        return act(COMMIT[self.databases[name].kind], moment=moment)

    def heal(self) -> None:
        """Let everything pass."""
        for proxy in self.proxies.values():
            proxy.heal()


@pytest.fixture(params=KINDS, ids="-".join)
def bench(request: pytest.FixtureRequest, tmp_path: Path, proxy_to: Callable[[TestDatabase], Proxy]) -> Iterator[Bench]:
    """Three shops; nothing but what the test sends will pass the proxies."""
    with ExitStack() as stack:
        trio = Trio(*(stack.enter_context(fresh_database(kind, tmp_path, furnished=True)) for kind in request.param))
        proxies = {name: proxy_to(one) for name, one in trio.by_name.items() if one.kind != "sqlite"}
        behind = Trio(*(one.proxied(proxies[name]) if name in proxies else one for name, one in trio.by_name.items()))
        stack.enter_context(configured_databases(behind))
        create_shop(trio.by_name)
        yield Bench(proxies, trio.by_name)


def _order(recover: Literal["backward", "forward"] = "backward") -> SagaBlock:
    with saga("order", home="default", expiry_s=0.001, recover=recover) as s:
        Order(sku="new", amount=Decimal(1)).save()
        Stock.find(1).increment(reserved=1)
        if recover == "backward":
            Invoice(sku="new").save()
        else:
            Invoice(id=100, sku="new").save()
    return s


def _is_whole(databases: dict[str, TestDatabase]) -> bool:
    stock = databases["secondary"].scalar("SELECT reserved FROM stock WHERE id = 1")
    counts = [
        databases[name].scalar(f"SELECT count(*) FROM {table} WHERE sku = 'new'")
        for name, table in (("default", "orders"), ("tertiary", "invoices"))
    ]
    return (stock, counts) == (1, [1, 1])


@pytest.mark.parametrize("recover", ["backward", "forward"])
def test_both_branches_commit_at_the_same_time(recover: Literal["backward", "forward"], bench: Bench) -> None:
    """While neither COMMIT has reached its server, both have been sent; home comes after them, or has been before."""
    held = [bench.at_commit(name, "withheld", deaf=True) for name in BRANCHES]
    with while_held(partial(_order, recover), held, bench.heal):
        home = bench.databases["default"].scalar("SELECT count(*) FROM orders WHERE sku = 'new'")
        assert home == (1 if recover == "forward" else 0)
        assert saga_states(bench.databases) | {"default": []} == {"default": [], "secondary": [], "tertiary": []}
    assert _is_whole(bench.databases)


@pytest.mark.parametrize("moments", [("answered", "answered"), ("withheld", "answered"), ("answered", "withheld")])
def test_branches_whose_answers_are_lost_are_undone_or_refused(moments: tuple[Moment, Moment], bench: Bench) -> None:
    """Two at once: the error tells of both, and whichever had applied is undone."""
    before = contents(bench.databases)
    for name, moment in zip(BRANCHES, moments, strict=True):
        bench.at_commit(name, moment)

    with armed("recovery.before-decision", bench.heal), pytest.raises(SagaAborted) as aborted:
        _order()

    assert aborted.value.pending == ()
    assert str(aborted.value).count("CommitInDoubt") == 2
    cause = aborted.value.__cause__
    assert isinstance(cause, ExceptionGroup)
    assert [type(one) for one in cause.exceptions] == [CommitInDoubt, CommitInDoubt]
    assert contents(bench.databases) == before
    expected = {
        name: ["undone" if moment == "answered" else "refused"] for name, moment in zip(BRANCHES, moments, strict=True)
    }
    assert saga_states(bench.databases) == {"default": ["finished"], **expected}


@pytest.mark.parametrize("lost", BRANCHES)
def test_one_branch_that_is_lost_takes_the_other_back(lost: str, bench: Bench) -> None:
    """The other had committed meanwhile: it is undone at once, and the lost one by a later sweep."""
    before = contents(bench.databases)
    bench.at_commit(lost, "answered")

    with pytest.raises(SagaAborted) as aborted:
        _order()

    assert aborted.value.pending == (lost,)
    assert isinstance(aborted.value.__cause__, CommitInDoubt)
    bench.heal()
    sweep_until_quiet(bench.databases)
    assert contents(bench.databases) == before


@pytest.mark.parametrize("moments", [("answered", "answered"), ("withheld", "answered")])
def test_branches_that_follow_home_are_redone_whatever_answers_are_lost(
    moments: tuple[Moment, Moment], bench: Bench
) -> None:
    """The saga is committed before they are; each is there once in the end."""
    for name, moment in zip(BRANCHES, moments, strict=True):
        bench.at_commit(name, moment)

    s = _order("forward")

    assert set(s.owed) == set(BRANCHES)
    bench.heal()
    sweep_until_quiet(bench.databases)
    assert _is_whole(bench.databases)


def test_refusals_of_both_branches_are_told_together(configured_trio: Trio) -> None:
    """A worker has tombstones in both already: neither commits, and the message names both."""
    create_shop(configured_trio.by_name)
    before = contents(configured_trio.by_name)
    kinds = [configured_trio.by_name[name].kind for name in BRANCHES]

    def refuse() -> None:
        for name, kind in zip(BRANCHES, kinds, strict=True):
            if kind != "sqlite":  # where the saga is the one writer
                with detached_transaction(name) as tx:
                    tx.mark_written()
                    insert(tx.connection, s._header, name, "refused")

    with (
        pytest.raises(SagaAborted) as aborted,
        armed("saga.before-first-commit", refuse),
        saga("order", home="default") as s,
    ):
        Order(sku="new", amount=Decimal(1)).save()
        Stock(sku="new").save()
        Invoice(sku="new").save()

    cause = aborted.value.__cause__
    found = cause.exceptions if isinstance(cause, ExceptionGroup) else [cause]
    assert [type(one) for one in found] == [DuplicateKey] * (2 - kinds.count("sqlite"))
    assert contents(configured_trio.by_name) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, FaultInjected])
def test_an_interrupt_between_sending_and_reading_leaves_no_connection_out_of_step(
    error: type[BaseException], configured_trio: Trio
) -> None:
    """The answers that were not read go with their connections; the saga is ended like one that crashed."""
    create_shop(configured_trio.by_name)
    before = contents(configured_trio.by_name)

    def fail() -> None:
        raise error

    expected = SagaAborted if error is FaultInjected else KeyboardInterrupt
    with armed("joint.commits-sent", fail), pytest.raises(expected):
        _order()

    sweep_until_undone(
        configured_trio.by_name, [name for name in BRANCHES if configured_trio.by_name[name].kind != "sqlite"]
    )
    assert contents(configured_trio.by_name) == before
    for name, model in (("secondary", Stock), ("tertiary", Invoice)):
        for _ in range(3):
            with transaction(name):
                assert model.find_by(sku="keep") is not None
    _order()
    assert _is_whole(configured_trio.by_name)


def test_branches_under_watch_commit_all_the_same(configured_trio: Trio) -> None:
    """Where somebody listens to statements, the record has a request of its own, and only COMMITs leave together."""
    create_shop(configured_trio.by_name)
    seen: list[str] = []
    for name in BRANCHES:
        engine = ConnectionManager.get(name).engine
        sa.event.listen(engine, "before_cursor_execute", lambda *args: seen.append(args[2]))

    _order()

    assert sum("crosstie_saga" in sql for sql in seen) == 2
    sweep_until_quiet(configured_trio.by_name)
    assert _is_whole(configured_trio.by_name)


@pytest.mark.parametrize("bench", KINDS[1:], indirect=True, ids="-".join)
@pytest.mark.parametrize(("moment", "healed"), [("answered", True), ("withheld", True), ("answered", False)])
def test_an_answer_of_home_that_is_lost_decides_over_both_branches(moment: Moment, healed: bool, bench: Bench) -> None:
    """Home commits after them, so they are applied: its register says whether they stay."""
    before = contents(bench.databases)
    bench.at_commit("default", moment)
    error = SagaInDoubt if not healed else SagaAborted if moment == "withheld" else None

    with (
        armed("recovery.before-decision", bench.heal if healed else lambda: None),
        pytest.raises(error) if error else nullcontext(),
    ):
        _order()

    bench.heal()
    sweep_until_quiet(bench.databases)
    if moment == "answered":
        assert _is_whole(bench.databases)
    else:
        assert contents(bench.databases) == before


def test_a_saga_of_three_databases_over_a_slow_network(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told and not judged: how long the branches' commits take where every request takes 20 ms."""
    _order()
    for name in BRANCHES:
        bench.proxies[name].delay_s = 0.02

    def commit_s() -> float:
        at: list[float] = []
        note = lambda: at.append(time.perf_counter())  # noqa: E731
        with (
            armed("saga.before-first-commit", note),
            armed("saga.home-recorded", note),
            saga("order", home="default"),
        ):
            Order(sku="more", amount=Decimal(1)).save()
            Stock.find(1).increment(reserved=1)
            Invoice(sku="more").save()
        return at[1] - at[0]

    together = commit_s()
    monkeypatch.setattr(LocalTransaction, "depart", lambda _: None)
    apart = commit_s()
    sys.stdout.write(
        f"two branches commit in {together * 1000:.0f} ms, one after the other in {apart * 1000:.0f} ms: "
        "each request takes 20 ms\n"
    )

"""The branches of a two-phase saga are prepared at once and end at once; whatever is lost, none stays prepared."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Literal

import pytest
import sqlalchemy as sa

from bench.databases import DatabaseKind, TestDatabase, Trio, fresh_database
from bench.faults import crash_env
from bench.guard import configured_databases
from bench.links import Pattern
from bench.processes import Spawner
from bench.proxy import Moment, Proxy, Trigger
from crosstie.orm import ConnectionManager
from crosstie.orm.errors import DatabaseUnavailable, DuplicateKey
from crosstie.orm.faults import FaultInjected, armed
from crosstie.orm.transaction import detached_transaction, transaction
from crosstie.sagas import SagaAborted, preparable, saga
from crosstie.sagas.record import insert
from sagas.preparing import Servers, prepared, sweep_until_nothing_is_prepared
from sagas.proxied import COMMIT, while_held
from sagas.shop import Invoice, Order, Stock, contents, create_shop, saga_states
from sagas.two_phase_program import order_and_invoice

pytestmark = pytest.mark.xdist_group("two-phase")

PROGRAM = Path(__file__).with_name("two_phase_program.py")
BRANCHES = ("secondary", "tertiary")
Step = Literal["prepare", "end"]
ASKED: dict[Step, dict[DatabaseKind, Pattern]] = {
    "prepare": {"postgresql": b"PREPARE TRANSACTION 'crosstie", "mariadb": b"XA PREPARE"},
    "end": {"postgresql": (b"COMMIT PREPARED", b"ROLLBACK PREPARED"), "mariadb": (b"XA COMMIT", b"XA ROLLBACK")},
}
LOST: list[tuple[Moment, Moment]] = [("answered", "answered"), ("withheld", "answered"), ("answered", "withheld")]


@dataclass
class Bench:
    """A home, and two branches on servers that keep what is prepared; the servers are behind proxies."""

    proxies: dict[str, Proxy]
    behind: Trio
    trio: Trio

    def at(self, step: Step, name: str, moment: Moment, *, deaf: bool = False) -> Trigger:
        """Cut the branch off when it is next asked to prepare or to end, or keep the request back."""
        proxy = self.proxies[name]
        act = proxy.deaf_after if deaf else proxy.cut_after
        return act(ASKED[step][self.trio.by_name[name].kind], moment=moment)

    def heal(self) -> None:
        """Let everything pass."""
        for proxy in self.proxies.values():
            proxy.heal()

    def is_whole(self) -> bool:
        """Whether the order is everywhere, and settled."""
        rows = contents(self.trio.by_name)
        states = {"default": ["committed"], **{name: ["done"] for name in BRANCHES}}
        return all(one[-1][1] == "new" for one in rows.values()) and saga_states(self.trio.by_name) == states


@pytest.fixture(params=["sqlite"])
def bench(
    request: pytest.FixtureRequest, servers: Servers, tmp_path: Path, proxy_to: Callable[[TestDatabase], Proxy]
) -> Iterator[Bench]:
    """Three shops, warm: nothing but what the test sends will pass the proxies."""
    with ExitStack() as stack:
        branches = [servers["postgresql"].database(), servers["mariadb"].database()]
        trio = Trio(stack.enter_context(fresh_database(request.param, tmp_path)), *branches)
        proxies = {name: proxy_to(one) for name, one in trio.by_name.items() if one.kind != "sqlite"}
        behind = Trio(*(one.proxied(proxies[name]) if name in proxies else one for name, one in trio.by_name.items()))
        stack.enter_context(configured_databases(behind))
        create_shop(trio.by_name)
        yield Bench(proxies, behind, trio)
        for proxy in proxies.values():
            proxy.heal()
        assert not any(prepared(one) for one in branches), "a branch stays prepared"


@pytest.mark.parametrize("step", ["prepare", "end"])
def test_both_branches_are_asked_at_the_same_time(step: Step, bench: Bench) -> None:
    """While no request has reached its server, both have been sent; home commits between the two steps."""
    held = [bench.at(step, name, "withheld", deaf=True) for name in BRANCHES]
    with while_held(order_and_invoice, held, bench.heal):
        assert [len(prepared(bench.trio.by_name[name])) for name in BRANCHES] == [step == "end"] * 2
        assert saga_states(bench.trio.by_name)["default"] == (["committed"] if step == "end" else [])
    assert bench.is_whole()


@pytest.mark.parametrize("moments", LOST)
def test_branches_whose_answers_are_lost_are_rolled_back(moments: tuple[Moment, Moment], bench: Bench) -> None:
    """Prepared or never asked, nobody here knows: the error tells of both, and their names end them."""
    before = contents(bench.trio.by_name)
    for name, moment in zip(BRANCHES, moments, strict=True):
        bench.at("prepare", name, moment)

    with armed("two-phase.ends-sent", bench.heal), pytest.raises(SagaAborted) as aborted:
        order_and_invoice()

    cause = aborted.value.__cause__
    assert isinstance(cause, ExceptionGroup)
    assert [type(one) for one in cause.exceptions] == [DatabaseUnavailable, DatabaseUnavailable]
    assert prepared(bench.trio.second) == []
    # MariaDB may take a moment to see that the connection is gone to which the branch belongs.
    assert bool(prepared(bench.trio.third)) <= ("tertiary" in aborted.value.pending)
    sweep_until_nothing_is_prepared(bench.trio)
    assert contents(bench.trio.by_name) == before


@pytest.mark.parametrize("lost", BRANCHES)
def test_one_branch_that_is_lost_rolls_the_other_back(lost: str, bench: Bench) -> None:
    """The other is rolled back at once, the lost one by a sweep, which finds it by its name."""
    before = contents(bench.trio.by_name)
    bench.at("prepare", lost, "answered")

    with pytest.raises(SagaAborted) as aborted:
        order_and_invoice()

    assert aborted.value.pending == (lost,)
    assert isinstance(aborted.value.__cause__, DatabaseUnavailable)
    assert [name for name in BRANCHES if prepared(bench.trio.by_name[name])] == [lost]
    bench.heal()
    sweep_until_nothing_is_prepared(bench.trio)
    assert contents(bench.trio.by_name) == before


@pytest.mark.parametrize("refused", [BRANCHES, *((name,) for name in BRANCHES)], ids="-".join)
def test_a_refusal_of_one_branch_rolls_the_other_back(refused: tuple[str, ...], bench: Bench) -> None:
    """It was on its way, or prepared already; nothing is left to a worker, because every answer was read."""
    before = contents(bench.trio.by_name)

    def refuse() -> None:
        for name in refused:
            with detached_transaction(name) as tx:
                tx.mark_written()
                insert(tx.connection, s._header, name, "refused")

    with (
        pytest.raises(SagaAborted) as aborted,
        armed("two-phase.before-first-prepare", refuse),
        saga("order", commit="two_phase", home="default") as s,
    ):
        Order(sku="new", amount=Decimal(1)).save()
        Stock(sku="new").save()
        Invoice(sku="new").save()

    cause = aborted.value.__cause__
    found = cause.exceptions if isinstance(cause, ExceptionGroup) else [cause]
    assert [type(one) for one in found] == [DuplicateKey] * len(refused)
    assert aborted.value.pending == ()
    assert not any(prepared(bench.trio.by_name[name]) for name in BRANCHES)
    assert contents(bench.trio.by_name) == before


@pytest.mark.parametrize("moments", LOST)
def test_branches_that_were_not_heard_to_commit_are_left_to_a_sweep(
    moments: tuple[Moment, Moment], bench: Bench
) -> None:
    """Home has committed, so the block ends well, and says of which branch it does not know."""
    for name, moment in zip(BRANCHES, moments, strict=True):
        bench.at("end", name, moment)

    s = order_and_invoice()

    assert s.owed == BRANCHES
    bench.heal()
    sweep_until_nothing_is_prepared(bench.trio)
    assert bench.is_whole()


@pytest.mark.parametrize(
    ("error", "point"),
    [
        (KeyboardInterrupt, "two-phase.prepares-sent"),
        (FaultInjected, "two-phase.prepares-sent"),
        (KeyboardInterrupt, "two-phase.ends-sent"),
    ],
)
def test_an_interrupt_between_sending_and_reading_leaves_no_connection_out_of_step(
    error: type[BaseException], point: str, bench: Bench
) -> None:
    """The answers that were not read go with their connections; what was asked may be done later: a sweep ends it."""
    before = contents(bench.trio.by_name)

    def fail() -> None:
        raise error

    with armed(point, fail), pytest.raises(SagaAborted if error is FaultInjected else error):
        order_and_invoice()

    sweep_until_nothing_is_prepared(bench.trio)
    assert bench.is_whole() if point == "two-phase.ends-sent" else contents(bench.trio.by_name) == before
    for name, model in (("secondary", Stock), ("tertiary", Invoice)):
        for _ in range(3):
            with transaction(name):
                assert model.find_by(sku="keep") is not None


@pytest.mark.parametrize("point", ["two-phase.prepares-sent", "two-phase.branch-prepared", "two-phase.ends-sent"])
def test_a_process_killed_with_two_branches_leaves_all_or_nothing_to_a_sweep(
    point: str, bench: Bench, spawn: Spawner
) -> None:
    """Requests of both may be under way when it dies, and be done when it is dead."""
    before = contents(bench.trio.by_name)
    spawn.python(str(PROGRAM), "trio", environment=bench.trio.environment | crash_env(point)).wait_killed()
    sweep_until_nothing_is_prepared(bench.trio)
    assert bench.is_whole() if point == "two-phase.ends-sent" else contents(bench.trio.by_name) == before


@pytest.mark.parametrize("way", ["watched", "wrapped"])
def test_branches_under_watch_are_prepared_all_the_same(
    way: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody listens to statements, and the record has a request of its own; or a tracer's connection cannot send."""
    seen: list[str] = []
    for name in BRANCHES if way == "watched" else ():
        engine = ConnectionManager.get(name).engine
        sa.event.listen(engine, "before_cursor_execute", lambda *args: seen.append(args[2]))
    if way == "wrapped":
        monkeypatch.setattr(preparable, "can_depart", lambda *_: False)

    order_and_invoice()

    assert sum("crosstie_saga" in sql for sql in seen) == (2 if way == "watched" else 0)
    assert bench.is_whole()


@pytest.mark.parametrize("bench", ["mariadb"], indirect=True)
@pytest.mark.parametrize("moment", ["answered", "withheld"])
def test_an_answer_of_home_that_is_lost_decides_over_both_branches(moment: Moment, bench: Bench) -> None:
    """Both are prepared by then, and do what its register says."""
    before = contents(bench.trio.by_name)
    bench.proxies["default"].cut_after(COMMIT["mariadb"], moment=moment)

    with (
        armed("recovery.before-decision", bench.heal),
        pytest.raises(SagaAborted) if moment == "withheld" else nullcontext(),
    ):
        order_and_invoice()

    assert not any(prepared(bench.trio.by_name[name]) for name in BRANCHES)
    assert bench.is_whole() if moment == "answered" else contents(bench.trio.by_name) == before


def test_a_two_phase_saga_over_a_slow_network(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told and not judged: how long two branches take to prepare and to commit where every request takes 20 ms."""
    order_and_invoice()
    for name in BRANCHES:
        bench.proxies[name].delay_s = 0.02

    def ms() -> tuple[float, float]:
        at: list[float] = []
        note = lambda: at.append(time.perf_counter() * 1000)  # noqa: E731
        with (
            armed("two-phase.before-first-prepare", note),
            armed("two-phase.home-recorded", note),
            armed("two-phase.home-committed", note),
        ):
            order_and_invoice()
        note()
        return at[1] - at[0], at[3] - at[2]

    together = ms()
    monkeypatch.setattr(preparable, "can_depart", lambda *_: False)
    apart = ms()
    sys.stdout.write(
        "two branches are prepared in {:.0f} ms and committed in {:.0f} ms, ".format(*together)
        + "one after the other in {:.0f} ms and {:.0f} ms: each request takes 20 ms\n".format(*apart)
    )

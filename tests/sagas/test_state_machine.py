"""Random sagas, crashes and sweeps over real databases, compared with a model that knows no databases at all.

Each saga moves money between accounts of both databases and leaves a trace in each. After the sweeps a saga has taken
place exactly if its trace is there: in both or in neither, as its caller was told, and the balances are those of the
sagas that took place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from bench import guard
from bench.databases import DatabaseKind, Pair, fresh_database
from crosstie.orm import ActiveRecord
from crosstie.orm.faults import FAULT_POINTS, FaultInjected, armed
from crosstie.orm.field import IntegerPKMixin
from crosstie.sagas import RowLocked, SagaAborted, SagaInDoubt, saga, sweep_sagas
from crosstie.sagas.strategy import Isolation
from crosstie.testing import run_until_quiet

LONG = os.environ.get("CROSSTIE_STORM") == "long"
OPENING = 100
POINTS = sorted(
    point
    for point in FAULT_POINTS
    if point.startswith(("saga.", "forward.", "redo."))
    or point in {"recovery.before-decision", "recovery.decided", "recovery.branch-undone"}
)


class Account(IntegerPKMixin, ActiveRecord):
    __connection__ = "default"

    id: int | None = None
    balance: int


class Trace(IntegerPKMixin, ActiveRecord):
    __connection__ = "default"

    id: int | None = None
    number: int


class FirstAccount(Account):
    __table_name__ = "accounts"


class FirstTrace(Trace):
    __table_name__ = "traces"


class SecondAccount(Account):
    __table_name__ = "accounts"
    __connection__ = "secondary"


class SecondTrace(Trace):
    __table_name__ = "traces"
    __connection__ = "secondary"


ACCOUNTS: tuple[type[Account], type[Account]] = (FirstAccount, SecondAccount)
TRACES: tuple[type[Trace], type[Trace]] = (FirstTrace, SecondTrace)
MOVE = st.tuples(st.integers(0, 1), st.integers(1, 2), st.integers(1, 2), st.integers(1, 9))


@dataclass
class Played:
    """A saga that was run: what it moves if it has taken place, and what its caller was told."""

    number: int
    told: bool | None = None
    """Whether it has taken place; None where nobody could say."""
    moves: list[tuple[int, int, int, int]] = field(default_factory=list)
    """From which database (0 or 1) and account to which account of the other, and how much."""


class Machine(RuleBasedStateMachine):
    """Sagas, and workers that come or do not."""

    pair: Pair
    """Given by the test."""

    @initialize(isolation=st.sampled_from([None, "locked"]))
    def begin(self, isolation: Isolation | None) -> None:
        """Empty tables, and accounts with their opening balances."""
        for database in self.pair.by_name.values():
            for table in ("accounts", "traces", "crosstie_saga", "crosstie_saga_lock"):
                database.execute(f"DELETE FROM {table}")
        for model in ACCOUNTS:
            model.bulk_create([model(id=number, balance=OPENING) for number in (1, 2)])
        # Without locks an undo meets others' writes, so that there only increments, which commute, can be told apart.
        self.isolation = isolation
        self.played: list[Played] = []

    @rule(
        moves=st.lists(
            st.tuples(st.integers(0, 1), st.integers(1, 2), st.integers(1, 2), st.integers(1, 9)),
            min_size=1,
            max_size=3,
        ),
        inner=st.sampled_from(["none", "kept", "failed"]),
        home=st.sampled_from([None, "default", "secondary"]),
        expiry_s=st.sampled_from([0.001, 60]),
        raises=st.integers(0, 5).map(lambda drawn: drawn == 0),
        points=st.lists(st.sampled_from(POINTS), max_size=2, unique=True),
        assigns=st.booleans(),
        forward=st.booleans(),
    )
    def play(
        self,
        *,
        moves: list[tuple[int, int, int, int]],
        inner: str,
        home: str | None,
        expiry_s: float,
        raises: bool,
        points: list[str],
        assigns: bool,
        forward: bool,
    ) -> None:
        """Run a saga, which may fail by itself or at a place of its commit and of its recovery."""
        played = Played(number=len(self.played))
        self.played.append(played)
        change = _assign if assigns and self.isolation else _increment
        # Row locks, and values that are assigned, are not for branches that follow home.
        recover: Literal["backward", "forward"] = "forward" if forward and not self.isolation else "backward"
        with ExitStack() as stack:
            for point in points:
                stack.enter_context(armed(point))
            try:
                with saga("play", home=home, expiry_s=expiry_s, isolation=self.isolation, recover=recover):
                    for trace in TRACES:
                        trace(id=played.number + 1, number=played.number).save()
                    _move(moves[0], change)
                    played.moves.append(moves[0])
                    for move in moves[1:]:
                        self._inner(move, change, inner, played)
                    if raises:
                        raise ZeroDivisionError
                played.told = True
            except (ZeroDivisionError, RowLocked, SagaAborted):
                played.told = False
            except (FaultInjected, SagaInDoubt):
                played.told = None

    def _inner(self, move: tuple[int, int, int, int], change: Callable[..., None], how: str, played: Played) -> None:
        if how == "none":
            _move(move, change)
            played.moves.append(move)
            return
        with suppress(KeyError), saga("inner"):
            _move(move, change)
            if how == "failed":
                raise KeyError
            played.moves.append(move)

    @rule(database=st.sampled_from(["default", "secondary"]), point=st.none() | st.sampled_from(POINTS))
    def sweep(self, database: str, point: str | None) -> None:
        """A worker comes, and may die."""
        with ExitStack() as stack, suppress(FaultInjected):
            if point is not None:
                stack.enter_context(armed(point))
            sweep_sagas(database)

    @rule()
    def settle(self) -> None:
        """Workers come until nothing is left: then everything can be told."""
        assert not run_until_quiet(), "an undo waits for an operator"
        traces = [self._numbers(name) for name in ("default", "secondary")]
        assert traces[0] == traces[1], "half of a saga has taken place"
        for one in self.played:
            if one.told is not None:
                assert (one.number in traces[0]) == one.told, f"{one} was told otherwise"
        expected = [{1: OPENING, 2: OPENING}, {1: OPENING, 2: OPENING}]
        for one in self.played:
            if one.number in traces[0]:
                for source, giver, taker, amount in one.moves:
                    expected[source][giver] -= amount
                    expected[1 - source][taker] += amount
        found = [dict(self._rows(name, "SELECT id, balance FROM accounts")) for name in ("default", "secondary")]
        assert found == expected
        for name in ("default", "secondary"):
            assert self._rows(name, "SELECT row_key FROM crosstie_saga_lock") == []

    def teardown(self) -> None:
        """Whatever the last rule was, the end is told."""
        if hasattr(self, "played"):
            self.settle()

    def _rows(self, name: str, query: str) -> list[tuple[Any, ...]]:
        return self.pair.by_name[name].rows(query)

    def _numbers(self, name: str) -> set[int]:
        numbers = [int(number) for (number,) in self._rows(name, "SELECT number FROM traces")]
        assert len(numbers) == len(set(numbers))
        return set(numbers)


def _increment(account: Account, delta: int) -> None:
    account.increment(balance=delta)


def _assign(account: Account, delta: int) -> None:
    account.balance += delta
    account.save()


def _move(move: tuple[int, int, int, int], change: Callable[[Account, int], None]) -> None:
    source, giver, taker, amount = move
    change(ACCOUNTS[source].find(giver), -amount)
    change(ACCOUNTS[1 - source].find(taker), amount)


@pytest.fixture(params=[("sqlite", "sqlite"), ("postgresql", "mariadb")], ids="-".join)
def pair(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """Two databases with the tables of the game."""
    monkeypatch.setenv("CROSSTIE_SAGA__LOCK_TIMEOUT_S", "1")
    kinds: tuple[DatabaseKind, DatabaseKind] = request.param
    with ExitStack() as stack:
        pair = Pair(*(stack.enter_context(fresh_database(kind, tmp_path)) for kind in kinds))
        stack.enter_context(guard.configured_databases(pair))
        for model in (*ACCOUNTS, *TRACES):
            model.create_table()
        yield pair


@pytest.mark.storm
@pytest.mark.timeout(3600 if LONG else 120)
def test_every_saga_takes_place_wholly_or_not_at_all_as_its_caller_was_told(pair: Pair) -> None:
    """Money is conserved, no lock is left, and no half of a saga survives the sweeps."""
    machine = type("Play", (Machine,), {"pair": pair})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=400 if LONG else 8,
            stateful_step_count=20 if LONG else 8,
            deadline=None,
            derandomize=not LONG,
            phases=[Phase.generate, Phase.shrink] if LONG else [Phase.generate],
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

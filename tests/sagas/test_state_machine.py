"""Random sagas, crashes and sweeps over real databases, compared with a model that knows no databases at all.

Each saga moves money between accounts of both databases, makes, hands on and deletes seats under keys of its own
choice, and leaves a trace in each. After the sweeps a saga has taken place exactly if its trace is there: in both or in
neither, as its caller was told, and the balances and the seats are those of the sagas that took place, in their order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
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
from crosstie.orm.errors import DuplicateKey, RecordNotFound, StaleRecord
from crosstie.orm.faults import FAULT_POINTS, FaultInjected, armed
from crosstie.orm.field import IntegerPKMixin, OptimisticLockMixin
from crosstie.sagas import RowLocked, SagaAborted, SagaBlock, SagaInDoubt, saga, sweep_sagas
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


class Seat(IntegerPKMixin, OptimisticLockMixin, ActiveRecord):
    """Versioned, so that a branch that follows home may delete it and hand it on."""

    __connection__ = "default"

    id: int | None = None
    holder: int


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


class FirstSeat(Seat):
    __table_name__ = "seats"


class SecondSeat(Seat):
    __table_name__ = "seats"
    __connection__ = "secondary"


ACCOUNTS: tuple[type[Account], type[Account]] = (FirstAccount, SecondAccount)
TRACES: tuple[type[Trace], type[Trace]] = (FirstTrace, SecondTrace)
SEATS: tuple[type[Seat], type[Seat]] = (FirstSeat, SecondSeat)
Move = tuple[int, int, int, int]
"""From which database (0 or 1) and account to which account of the other, and how much."""
Turn = tuple[int, int, bool]
"""In which database, which seat, and whether a seat that is there is handed on; else it is deleted."""
Change = Callable[[SagaBlock, "Account", int], None]
NOBODY = -1
MOVES = st.lists(
    st.tuples(st.integers(0, 1), st.integers(1, 2), st.integers(1, 2), st.integers(1, 9)), min_size=1, max_size=3
)
FAULTS = st.one_of(
    st.just(["saga.branch-committed"]),  # there is more to undo after it than after any other
    st.lists(st.sampled_from(POINTS), max_size=2, unique=True),
)
TURNS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(1, 2), st.integers(0, 2).map(lambda drawn: drawn == 0)), max_size=4
)


@dataclass
class Played:
    """A saga that was run: what it changes if it has taken place, and what its caller was told."""

    number: int
    told: bool | None = None
    """Whether it has taken place; None where nobody could say."""
    moves: list[Move] = field(default_factory=list)
    turns: list[tuple[int, int, str]] = field(default_factory=list)
    """In which database which seat was made, handed on or deleted."""


class Machine(RuleBasedStateMachine):
    """Sagas, and workers that come or do not."""

    pair: Pair
    """Given by the test."""

    @initialize(isolation=st.sampled_from([None, "locked"]))
    def begin(self, isolation: Isolation | None) -> None:
        """Empty tables, and accounts with their opening balances."""
        for database in self.pair.by_name.values():
            for table in ("accounts", "traces", "seats", "crosstie_saga", "crosstie_saga_lock"):
                database.execute(f"DELETE FROM {table}")
        for model in ACCOUNTS:
            model.bulk_create([model(id=number, balance=OPENING) for number in (1, 2)])
        # Without locks an undo meets others' writes, so that there only increments, which commute, can be told apart,
        # and each saga has seats of its own.
        self.isolation = isolation
        self.played: list[Played] = []
        self.given: list[tuple[int, int]] = []
        self._give(0)

    def _give(self, first: int) -> None:
        """Make one of two seats in each database, by a plain transaction."""
        for database, model in enumerate(SEATS):
            model(id=first + 1, holder=NOBODY).save()
            self.given.append((database, first + 1))

    @rule(
        moves=MOVES,
        turns=TURNS,
        inner=st.sampled_from(["none", "kept", "failed"]),
        home=st.sampled_from([None, "default", "secondary"]),
        expiry_s=st.sampled_from([0.001, 60]),
        raises=st.integers(0, 5).map(lambda drawn: drawn == 0),
        points=FAULTS,
        assigns=st.booleans(),
        forward=st.booleans(),
        then=st.sampled_from(["", "", "default", "secondary", "settle"]),
        dies_at=st.none() | st.sampled_from(POINTS),
    )
    def play(
        self,
        *,
        moves: list[Move],
        turns: list[Turn],
        inner: str,
        home: str | None,
        expiry_s: float,
        raises: bool,
        points: list[str],
        assigns: bool,
        forward: bool,
        then: str,
        dies_at: str | None,
    ) -> None:
        """Run a saga, which may fail by itself or at a place of its commit and of its recovery; a worker may follow."""
        played = Played(number=len(self.played))
        self.played.append(played)
        if self.isolation is None:
            self._give(self._first_seat(played))
        change = _assign if assigns and self.isolation else _increment
        # Row locks, and values that are assigned, are not for branches that follow home.
        recover: Literal["backward", "forward"] = "forward" if forward and not self.isolation else "backward"
        with ExitStack() as stack:
            for point in points:
                stack.enter_context(armed(point))
            try:
                with saga("play", home=home, expiry_s=expiry_s, isolation=self.isolation, recover=recover) as block:
                    for trace in TRACES:
                        trace(id=played.number + 1, number=played.number).save()
                    _move(block, moves[0], change)
                    played.moves.append(moves[0])
                    self._take_turns(block, turns[:2], played)
                    for move in moves[1:]:
                        with _inside(inner, played):
                            _move(block, move, change)
                            played.moves.append(move)
                            self._take_turns(block, turns[2:], played)
                    if raises:
                        raise ZeroDivisionError
                played.told = True
            except (ZeroDivisionError, RowLocked, SagaAborted):
                played.told = False
            except (RecordNotFound, StaleRecord, DuplicateKey):
                # A seat that was read as another saga had left it, which was then undone: see `s.lock` in the manual.
                assert self.isolation == "locked"
                played.told = False
            except (FaultInjected, SagaInDoubt):
                played.told = None
        if then == "settle":
            self.settle()
        elif then:
            self._sweep(then, dies_at)

    def _take_turns(self, block: SagaBlock, turns: list[Turn], played: Played) -> None:
        """Make the seats that are not there; hand those on that are, or delete them."""
        for database, which, handed_on in turns:
            key = self._first_seat(played) + which
            seat = SEATS[database].find_by(id=key)
            if seat is None:
                SEATS[database](id=key, holder=played.number).save()
                played.turns.append((database, key, "made"))
                continue
            if self.isolation:
                seat = block.lock(seat)
            if handed_on:
                seat.update(holder=played.number)
            else:
                seat.delete()
            played.turns.append((database, key, "handed on" if handed_on else "deleted"))

    def _first_seat(self, played: Played) -> int:
        return 0 if self.isolation else 2 * (played.number + 1)

    def _sweep(self, database: str, point: str | None) -> None:
        """A worker comes, and may die."""
        with ExitStack() as stack, suppress(FaultInjected):
            if point is not None:
                stack.enter_context(armed(point))
            sweep_sagas(database)

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
        seats = [dict(self._rows(name, "SELECT id, holder FROM seats")) for name in ("default", "secondary")]
        assert seats == self._expected_seats(traces[0])
        for name in ("default", "secondary"):
            assert self._rows(name, "SELECT row_key FROM crosstie_saga_lock") == []

    def _expected_seats(self, took_place: set[int]) -> list[dict[int, int]]:
        """The holders of the seats in each database, once these sagas have had their turns."""
        seats: list[dict[int, int]] = [{}, {}]
        for database, key in self.given:
            seats[database][key] = NOBODY
        for one in self.played:
            for database, key, what in one.turns if one.number in took_place else ():
                assert (key in seats[database]) == (what != "made"), f"{one} has seen what never took place"
                if what == "deleted":
                    del seats[database][key]
                else:
                    seats[database][key] = one.number
        return seats

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


@contextmanager
def _inside(how: str, played: Played) -> Iterator[None]:
    """An inner saga, or none; if it fails, nothing of it was played."""
    if how == "none":
        yield
        return
    moves, turns = len(played.moves), len(played.turns)
    with suppress(KeyError), saga("inner"):
        yield
        if how == "failed":
            del played.moves[moves:], played.turns[turns:]
            raise KeyError


def _increment(_: SagaBlock, account: Account, delta: int) -> None:
    account.increment(balance=delta)


def _assign(block: SagaBlock, account: Account, delta: int) -> None:
    account = block.lock(account)
    account.balance += delta
    account.save()


def _move(block: SagaBlock, move: Move, change: Change) -> None:
    source, giver, taker, amount = move
    change(block, ACCOUNTS[source].find(giver), -amount)
    change(block, ACCOUNTS[1 - source].find(taker), amount)


@pytest.fixture(params=[("sqlite", "sqlite"), ("postgresql", "mariadb")], ids="-".join)
def pair(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """Two databases with the tables of the game."""
    monkeypatch.setenv("CROSSTIE_SAGA__LOCK_TIMEOUT_S", "1")
    kinds: tuple[DatabaseKind, DatabaseKind] = request.param
    with ExitStack() as stack:
        pair = Pair(*(stack.enter_context(fresh_database(kind, tmp_path, furnished=True)) for kind in kinds))
        stack.enter_context(guard.configured_databases(pair))
        for model in (*ACCOUNTS, *TRACES, *SEATS):
            model.create_table()
        yield pair


@pytest.mark.storm
@pytest.mark.timeout(4 * 3600 if LONG else 240)
def test_every_saga_takes_place_wholly_or_not_at_all_as_its_caller_was_told(pair: Pair) -> None:
    """Money is conserved, no lock is left, and no half of a saga survives the sweeps."""
    machine = type("Play", (Machine,), {"pair": pair})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=200 if LONG else 8,
            stateful_step_count=20 if LONG else 8,
            deadline=None,
            derandomize=not LONG,
            phases=[Phase.generate, Phase.shrink] if LONG else [Phase.generate],
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

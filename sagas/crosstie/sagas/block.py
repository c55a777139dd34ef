"""The saga block: writes to several databases that end as one outcome.

All statements run in one open transaction per database. Nothing is committed before the end of the block; then its
strategy commits them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from itertools import count
from secrets import SystemRandom
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, TypeVar

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CommitInDoubt, CrosstieError
from crosstie.orm.local_transaction import LocalTransaction, open_transactions
from crosstie.orm.transaction import active_unit, set_active_unit
from crosstie.outbox.lane import backoff_s
from crosstie.outbox.publish import enqueue
from crosstie.sagas.backward import BackwardRecovery
from crosstie.sagas.deadline import Deadline
from crosstie.sagas.errors import RowLocked, SagaError, SagaInDoubt
from crosstie.sagas.facts import has_deferrable_constraints
from crosstie.sagas.forward import ForwardRecovery
from crosstie.sagas.record import SagaHeader, new_saga_id
from crosstie.sagas.recovery import resolve
from crosstie.sagas.row_lock import help_along
from crosstie.sagas.strategy import Ending, Isolation, Strategy, Terms, aborted
from crosstie.sagas.two_phase import TwoPhaseCommit
from crosstie.sagas.workspace import EFFECTS, Workspace

if TYPE_CHECKING:
    from crosstie.outbox.event import Event

__all__ = ["SagaBlock", "saga"]

logger = logging.getLogger(__name__)

_random: Final = SystemRandom()
_FIRST_PAUSE_S: Final = 0.05
_P = ParamSpec("_P")
_R = TypeVar("_R")


class SagaBlock(Workspace):
    """One run of `with saga(...)`: opens a transaction for each database touched, and ends them together."""

    def __init__(self, strategy: Strategy, deadline: Deadline | None = None) -> None:
        super().__init__(strategy, deadline)
        self._participants: list[LocalTransaction] = []
        self._header: SagaHeader

    def prepare(self) -> None:
        """Run all that may still fail while nothing is committed anywhere; on failure everything is rolled back.

        Raises SagaNotUndoable, SagaError, SagaAborted.
        """
        try:
            self.require_time()
            for name, session in self._sessions.items():
                with self._transactions[name].mapped_errors():
                    session.flush()
            if self.effects.home is not None:
                self.transaction(self.effects.home).mark_written()
                self.effects.kept += [step for tx in self._transactions.values() for step in tx.ledger(EFFECTS)]
            events = self._all_events()
            self._strategy.before_end(self._names_written(), self.transaction)
            self._written = self._names_written()
            self._participants = [self._transactions[name] for name in self._written]
            self._header = self._choose_header(events)
            for tx in self._participants:
                self._prepare(tx, events)
            if len(self._participants) != len(self._written):
                raise SagaError(
                    f"a before_commit hook wrote to {self._written[-1]!r}, which the block had not written. Write to "
                    "it inside the block."
                )
            self._lift_limits()
        except SagaError:
            self.roll_back()
            raise
        except CrosstieError as error:
            self.roll_back()
            self.raise_timed_out(error)
            raise aborted(self._strategy.terms, error) from error
        except BaseException:
            self.roll_back()
            raise

    def give_up(self, error: BaseException) -> None:
        """Roll everything back because of the exception that leaves the block. Raises SagaTimedOut in its place."""
        self.roll_back()
        self.raise_timed_out(error)
        if isinstance(error, RowLocked) and error.key:
            help_along(error.database, error.table, error.key)  # so that the next try finds the row free

    def commit(self) -> None:
        """Commit what `prepare` has prepared. Raises SagaAborted, SagaInDoubt."""
        try:
            if len(self._participants) > 1 or self.effects.begun:
                self._strategy.commit(Ending(self._header, self._transactions, self.roll_back, self.effects))
            else:
                self._commit_alone()
        finally:
            for session in self._sessions.values():
                session.close()
            # Databases that were only read kept their locks until the decision.
            for tx in self._transactions.values():
                if tx.is_open:
                    tx.rollback()

    @property
    def owed(self) -> tuple[str, ...]:
        """After the block: databases in which its writes are decided, and not there yet; a worker sees to them."""
        return self._strategy.owed

    def settle(self, timeout_s: float) -> bool:
        """After the block: see to it that nothing is `owed`, for up to `timeout_s` seconds; whether that is so.

        What is owed is tried at once, as a worker would, and again until the time is over. What is quarantined waits
        for an operator, and not here.
        """
        ends_at = time.monotonic() + timeout_s
        for attempt in count():
            if not self.owed or not self._pay():
                return not self.owed
            pause_s = backoff_s(attempt, jitter=_random.random(), first_s=_FIRST_PAUSE_S)
            if time.monotonic() + pause_s >= ends_at:
                return False
            time.sleep(pause_s)
        raise AssertionError("unreachable")

    def _pay(self) -> bool:
        """Try once to do what is owed; whether a later try may do more."""
        try:
            resolution = resolve(self._header, self.owed[0])
        except CrosstieError as error:
            logger.info("saga %s (%r) waits: %s", self.saga_id, self.name, error)
            return True
        self._strategy.owed = (*resolution.pending, *resolution.quarantined)
        return bool(resolution.pending)

    def _choose_header(self, events: list[Event]) -> SagaHeader:
        names = list(self._written)
        if not names and events:
            raise SagaError(
                f"saga {self.name!r} wrote to no database, so {type(events[0]).__name__} has no outbox to be "
                "written to. Name one: publish(database=…), or __connection__ on the event."
            )
        home = names[0] if names else ""
        if len(names) > 1:
            home = self._strategy.choose_home(self._participants)
        return SagaHeader(self.saga_id, self.name, home, tuple(names), self._strategy.mode)

    def _prepare(self, tx: LocalTransaction, events: list[Event]) -> None:
        if tx.database.name == self._header.home:
            enqueue(tx, events)
        else:
            self._strategy.prepare_branch(tx)
        with tx.mapped_errors():
            tx.run_before_commit(final=len(self._participants) > 1)  # a failure must come before the first commit
            if has_deferrable_constraints(tx.database, tx.bare):
                with tx.internal():
                    tx.bare.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
        if tx.database.name == self._header.home:
            self._strategy.prepare_decider(tx)
        tx.require_healthy()

    def _commit_alone(self) -> None:
        for tx in self._participants:
            try:
                tx.commit()
            except CommitInDoubt as error:
                raise SagaInDoubt(f"saga {self.name!r}: {error}", saga_id=self.saga_id) from error
            except CrosstieError as error:
                raise aborted(self._strategy.terms, error) from error


_STRATEGIES: Final[dict[str, type[Strategy]]] = {
    "backward": BackwardRecovery,
    "forward": ForwardRecovery,
    "two_phase": TwoPhaseCommit,
}


class saga:  # noqa: N801 - reads as the word of the language that it stands for
    """Run a block, or each call of a function, whose writes, in however many databases, all happen or none.

    `home` names the database whose commit decides (default: the one that cannot be undone, else the first one written);
    a worker may end the saga for this process once `expiry_s` seconds (default: `saga.expiry_s`) have passed since a
    branch committed; `timeout_s` bounds the block itself; `isolation="locked"` keeps other such sagas from the rows
    that it writes until it has ended, and may raise RowLocked. A saga inside a saga joins it: an exception that leaves
    the inner one takes back what it did, and the outer one may go on.

    `recover="forward"` commits home first and the branches after it: once home has committed, nothing is taken back,
    and a worker redoes what a crash has kept from a branch. So branches take only writes that can be redone: inserts
    under keys made here, upserts, increments, updates and deletes of versioned records. Home is the declared database,
    else the one with other writes, else the first one written. The block's `owed` and `settle` tell of branches that
    are still to come.

    `commit="two_phase"` prepares the branches instead of committing them before home, so that nothing is ever undone or
    seen too early, and any SQL may run; PostgreSQL, MySQL and MariaDB can. Home is then the declared database or the
    first one touched, and `expiry_s` counts from a branch's first statement.

    An exception leaves the block as it is, and nothing was committed. Raises SagaAborted where the end of the block
    failed and nothing remains or will remain, SagaTimedOut where it came too late, SagaInDoubt where the outcome cannot
    be learnt now, SagaNotUndoable, SagaNotRedoable or TwoPhaseUnavailable where the block cannot be made one outcome,
    SagaError inside a plain transaction.
    """

    def __init__(
        self,
        name: str,
        *,
        home: str | None = None,
        expiry_s: float | None = None,
        timeout_s: float | None = None,
        isolation: Isolation | None = None,
        recover: Literal["backward", "forward"] = "backward",
        commit: Literal["late", "two_phase"] = "late",
    ) -> None:
        way = _way(name, recover, commit)
        if isolation is not None and way != "backward":
            raise SagaError(
                f"saga {name!r}: isolation={isolation!r} is for sagas whose branches can be seen before home commits. "
                f"With {'commit' if way == commit else 'recover'}={way!r} the databases' own locks do it: leave it out."
            )
        self._name = name
        self._home = home
        self._expiry_s = expiry_s
        self._timeout_s = timeout_s
        self._isolation: Isolation | None = isolation
        self._way = way
        self._running: AbstractContextManager[SagaBlock, bool | None] | None = None

    def __enter__(self) -> SagaBlock:
        self._running = self._begin()
        return self._running.__enter__()

    def _begin(self) -> AbstractContextManager[SagaBlock, bool | None]:
        name, home, expiry_s = self._name, self._home, self._expiry_s
        outer: Any = active_unit()
        if issubclass(type(outer), Workspace):  # a block, or the self-test of one
            outer.require_mode(name, None if self._way == "backward" else _STRATEGIES[self._way].mode)
            return _joined(
                outer, name, timeout_s=self._timeout_s, home=home, expiry_s=expiry_s, isolation=self._isolation
            )
        if open_transactions():
            raise SagaError(
                f"saga {name!r} was begun inside a plain transaction of {', '.join(map(repr, open_transactions()))}, "
                "whose commit it could not decide over. Put the saga outside; transactions inside it become savepoints."
            )
        if home is not None:
            ConnectionManager.get(home)
        if expiry_s is None:
            expiry_s = ConnectionManager.settings().saga.expiry_s
        terms = Terms(new_saga_id(), name, home, expiry_s, self._isolation)
        deadline = None if self._timeout_s is None else Deadline.after(name, self._timeout_s)
        return _Outermost(SagaBlock(_STRATEGIES[self._way](terms), deadline))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._running is not None
        self._running.__exit__(kind, error, traceback)

    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        """Make each call of the function a saga of its own. Raises SagaError for one whose body runs after the call."""
        if any(is_late(function) for is_late in (iscoroutinefunction, isasyncgenfunction, isgeneratorfunction)):
            raise SagaError(
                f"@saga on {function.__qualname__!r}: expected a plain function and found one whose body runs after "
                "the call, when the saga would have ended. Sagas belong to a thread: call a plain function by "
                "asyncio.to_thread(), or use `with saga(…)` inside a generator."
            )

        @wraps(function)
        def within_saga(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with self._begin():
                return function(*args, **kwargs)

        return within_saga


def _way(name: str, recover: str, commit: str) -> str:
    """The name of the strategy. Raises SagaError."""
    for parameter, found, known in (
        ("recover", recover, ("backward", "forward")),
        ("commit", commit, ("late", "two_phase")),
    ):
        if found not in known:
            raise SagaError(f"saga {name!r}: expected {parameter}={' or '.join(map(repr, known))}, found {found!r}.")
    if commit == "two_phase" and recover == "forward":
        raise SagaError(
            f"saga {name!r}: recover='forward' commits home before the branches, and commit='two_phase' prepares the "
            "branches before home: leave one of them out."
        )
    return commit if commit == "two_phase" else recover


@contextmanager
def _joined(outer: Any, name: str, **wishes: Any) -> Iterator[SagaBlock]:
    with outer.inner(name, **wishes):
        yield outer


class _Outermost:
    """Runs a block that is inside of no other."""

    __slots__ = ("_block",)

    def __init__(self, block: SagaBlock) -> None:
        self._block = block

    def __enter__(self) -> SagaBlock:
        set_active_unit(self._block)
        return self._block

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        block = self._block
        try:
            try:
                if error is None:
                    block.prepare()
                else:
                    block.give_up(error)
            finally:
                set_active_unit(None)
            if error is None:
                block.commit()
        except BaseException as raised:
            block.effects.end(raised)
            raise
        block.effects.end(error)

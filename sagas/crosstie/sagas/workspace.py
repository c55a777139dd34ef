"""What a saga block works with while it runs: a transaction for each database touched, sessions on them, a deadline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.faults import fault_point
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.mapping import mapping_of
from crosstie.orm.model import ActiveRecord
from crosstie.orm.writing import row_key
from crosstie.sagas.compensation import call, require_plain
from crosstie.sagas.ddl import refuse_implicit_commits
from crosstie.sagas.deadline import Deadline, StatementLimit
from crosstie.sagas.errors import SagaError
from crosstie.sagas.intent import Effects, home_of_effects
from crosstie.sagas.interception import Interceptor
from crosstie.sagas.nesting import Edge, Numbered, contradictions
from crosstie.sagas.record import Mode
from crosstie.sagas.row_lock import LockingRecorder
from crosstie.sagas.strategy import Strategy

if TYPE_CHECKING:
    from crosstie.outbox.event import Event
    from crosstie.sagas.effect import Effect

__all__ = ["EFFECTS", "Workspace"]

_EVENTS = "saga.events"
EFFECTS = "saga.effects"
_T = TypeVar("_T")
_Record = TypeVar("_Record", bound=ActiveRecord)


class Workspace:
    """The inside of a saga block. Nothing in it commits."""

    def __init__(self, strategy: Strategy, deadline: Deadline | None = None) -> None:
        self.saga_id = strategy.terms.saga_id
        self.name = strategy.terms.name
        self._strategy = strategy
        self._transactions: dict[str, LocalTransaction] = {}
        self._written: list[str] = []
        self._numbers = count()
        self._events: list[Numbered] = []
        self.effects = Effects(strategy.terms)
        self._interceptors: dict[LocalTransaction, Interceptor] = {}
        self._sessions: dict[str, Session] = {}
        self._deadline = deadline
        self._limits: dict[LocalTransaction, StatementLimit] = {}

    def transaction(self, database: str) -> LocalTransaction:
        """The block's open transaction on this database, opened now if there is none."""
        tx = self._transactions.get(database)
        if tx is None:
            tx = self._open(database)
            tx.on_first_write = self._assign_recorder
            refuse_implicit_commits(tx)
            self._transactions[database] = tx
        return tx

    def connection(self, database: str) -> sa.Connection:
        """The block's SQLAlchemy connection to this database, for Core statements and textual SQL; never commit it.

        Statements of Core are undone like those of models. Textual SQL cannot be, so its database must be home.
        """
        tx = self.transaction(database)
        tx.require_healthy()
        if tx not in self._interceptors:
            self._interceptors[tx] = Interceptor(tx)
        return tx.connection

    def session(self, database: str) -> Session:
        """The block's SQLAlchemy session on this database, for declarative models of your own; always the same one.

        It is flushed at the end of the block and then closed; `commit()` on it commits nothing, and `rollback()` aborts
        the saga (use `begin_nested()` for a part of it). Its objects stay readable after the block.
        """
        session = self._sessions.get(database)
        if session is None:
            session = self._sessions[database] = Session(
                self.connection(database), join_transaction_mode="rollback_only", expire_on_commit=False
            )
        return session

    def lock(self, row: _Record) -> _Record:
        """Lock this record's row as if it were written, and read it anew: what it holds now, no open saga has written.

        For sagas with `isolation="locked"`. Raises RowLocked, SagaError in others, RecordNotFound.
        """
        mapping = mapping_of(type(row))
        tx = self.transaction(mapping.connection)
        tx.require_healthy()
        tx.mark_written()
        if not isinstance(tx.recorder, LockingRecorder):
            raise SagaError(f"saga {self.name!r} locks no rows. Begin it with isolation='locked'.")
        tx.recorder.lock(tx, mapping.table, [row_key(row, mapping)])
        row.refresh()
        return row

    def buffer_event(self, event: Event) -> None:
        """Keep an event that names no database for home's outbox: home's commit decides over it too."""
        self._ledger(_EVENTS, self._events).append((next(self._numbers), event))

    def _ledger(self, name: str, outside: list[_T]) -> list[_T]:
        """Where to put what a rolled-back savepoint takes back; `outside` where none is open."""
        nested = [tx for tx in self._transactions.values() if tx.depth]
        return nested[-1].ledger(name) if nested else outside

    def call(
        self, function: Callable[..., _T], /, *args: Any, compensate: str | Callable[..., object], **kwargs: Any
    ) -> _T:
        """Call a function whose effect no rollback takes back, and have it compensated unless the saga commits.

        Before the call, home has durably what `compensate`, a registered compensation, will be called with: the same
        arguments, which must be of JSON. Either gets `idempotency_key` if it has such a parameter. A call that raises
        may have had its effect, so it is compensated even if the saga goes on and commits.

        Home is the one declared, else the first database written, and fixed from then on. Raises what the function
        raises, EffectInvalid, SagaTimedOut, TransactionPoisoned, DatabaseUnavailable.
        """
        require_plain(function)
        begun = self._begin_effect(compensate, args, kwargs)
        result = call(function, args, kwargs, begun.idempotency_key)
        fault_point("effect.called")
        self._ledger(EFFECTS, self.effects.kept).append(begun.step)
        return result

    def compensate_with(self, compensation: str | Callable[..., object], /, *args: Any, **kwargs: Any) -> None:
        """Have a registered compensation called with these arguments, of JSON, unless the saga commits.

        For what the block does outside databases by other means than `call`: say it before you do it. It is durable
        when this returns. Raises EffectInvalid, SagaTimedOut, TransactionPoisoned, DatabaseUnavailable.
        """
        begun = self._begin_effect(compensation, args, kwargs)
        self._ledger(EFFECTS, self.effects.kept).append(begun.step)

    def _begin_effect(
        self, compensation: str | Callable[..., object], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Effect:
        self.require_time()
        for tx in self._transactions.values():
            tx.require_healthy()  # else it could only be compensated
        home = home_of_effects(self._strategy.terms, self._names_written(), self._transactions)
        self._strategy.terms = replace(self._strategy.terms, home=home)
        return self.effects.begin(home, compensation, args, kwargs)

    def require_mode(self, name: str, mode: Mode | None) -> None:
        """Raise SagaError where an inner saga asks for another way to end than this one has."""
        if mode not in {None, self._strategy.mode}:
            raise SagaError(
                f"saga {name!r} inside saga {self.name!r} asks for a {mode} end (the outer one has "
                f"{self._strategy.mode}). They end as one: give the outer one the same, or leave it out inside."
            )

    @contextmanager
    def inner(self, name: str, *, timeout_s: float | None, home: str | None, **wishes: Any) -> Iterator[None]:
        """Run a saga inside this one, which goes on if the exception that leaves it is caught.

        Raises SagaError where it asks for what contradicts this saga, and SagaTimedOut.
        """
        outer_terms, outer_deadline, kept = self._strategy.terms, self._deadline, len(self.effects.kept)
        try:
            self._reconcile(name, home, wishes)
            if timeout_s is not None:
                self._hurry(Deadline.after(name, timeout_s))
            edge = Edge(self._transactions, self._sessions, self._events)
            try:
                yield
                self.require_time()
                edge.release()
            except BaseException:
                edge.roll_back()
                raise
        except BaseException as error:
            self._strategy.terms = replace(outer_terms, home=outer_terms.home or self.effects.home)
            del self.effects.kept[kept:]
            self.raise_timed_out(error)
            raise
        finally:
            self._deadline = outer_deadline

    def require_time(self) -> None:
        """Raise SagaTimedOut when the deadline has passed."""
        if self._deadline is not None:
            self._deadline.require_time()

    def raise_timed_out(self, error: BaseException) -> None:
        """Raise SagaTimedOut in place of an error that the deadline has caused."""
        if self._deadline is not None and self._deadline.explains(error):
            raise self._deadline.passed() from error

    def roll_back(self) -> None:
        """Roll back every transaction that is still open."""
        for session in self._sessions.values():
            session.close()
        for tx in reversed(self._transactions.values()):
            if tx.is_open:
                tx.rollback()

    def _names_written(self) -> list[str]:
        """The databases with writes that nothing has taken back, in the order of the first."""
        return [name for name in self._written if name in self._transactions and self._transactions[name].written]

    def _all_events(self) -> list[Event]:
        """The events that name no database, as they were published."""
        nested: list[Numbered] = [one for tx in self._transactions.values() for one in tx.ledgers.get(_EVENTS, ())]
        return [event for _, event in sorted([*self._events, *nested], key=lambda one: one[0])]

    def _open(self, database: str) -> LocalTransaction:
        found = ConnectionManager.get(database)
        if self._deadline is None:
            return self._strategy.open(found)
        limit = StatementLimit(found, lambda: self._deadline)
        tx = self._strategy.open(found, limit.before_begin)
        self._limits[tx] = limit.attached(tx)
        return tx

    def _hurry(self, deadline: Deadline) -> None:
        if self._deadline is not None and self._deadline.at <= deadline.at:
            return
        self._deadline = deadline
        for tx in self._transactions.values():
            if tx not in self._limits:
                self._limits[tx] = StatementLimit(tx.database, lambda: self._deadline).attached(tx)

    def _lift_limits(self) -> None:
        """The commits take as long as they take. Raises SagaTimedOut where the block has not ended in time."""
        self.require_time()
        for tx, limit in self._limits.items():
            if tx.is_open:
                limit.lift(tx)

    def _reconcile(self, name: str, home: str | None, wishes: dict[str, Any]) -> None:
        written = self._names_written()
        terms = self._strategy.terms
        if home is not None and terms.home is None and set(written) <= {home}:
            ConnectionManager.get(home)
            terms = self._strategy.terms = replace(terms, home=home)
        decided = {"home": terms.home or next(iter(written), None)} | {wish: getattr(terms, wish) for wish in wishes}
        found = contradictions({"home": home, **wishes}, decided)
        if found:
            raise SagaError(
                f"saga {name!r} inside saga {self.name!r} asks for {', '.join(found)}. They end as one: give the outer "
                "one the same, or leave it out inside."
            )

    def _assign_recorder(self, tx: LocalTransaction) -> None:
        name = tx.database.name
        self._written = [one for one in self._names_written() if one != name]
        tx.recorder = self._strategy.recorder(name, self._written)
        self._written.append(name)

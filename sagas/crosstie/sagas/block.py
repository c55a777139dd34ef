"""The saga block: writes to several databases that end as one outcome.

All statements run in one open transaction per database. Nothing is committed before the end of the block; then the
branches commit, each with its record, and home commits last. Home's commit is the decision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CommitInDoubt, CrosstieError
from crosstie.orm.faults import fault_point
from crosstie.orm.local_transaction import LocalTransaction, open_transactions, run_after_commit
from crosstie.orm.transaction import active_unit, set_active_unit
from crosstie.outbox.publish import enqueue
from crosstie.sagas import doorbell, image, record
from crosstie.sagas.capture import BranchRecorder, HomeRecorder, uncaptured_reasons, undo_log
from crosstie.sagas.ddl import refuse_implicit_commits
from crosstie.sagas.errors import SagaAborted, SagaError, SagaInDoubt
from crosstie.sagas.facts import has_deferrable_constraints
from crosstie.sagas.home import choose_home
from crosstie.sagas.interception import Interceptor
from crosstie.sagas.record import SagaHeader, new_saga_id
from crosstie.sagas.recovery import Decision, Resolution, resolve

if TYPE_CHECKING:
    from crosstie.outbox.event import Event

__all__ = ["SagaBlock", "saga"]


class SagaBlock:
    """One run of `with saga(...)`: opens a transaction for each database touched, and ends them together."""

    def __init__(self, name: str, *, home: str | None, expiry_s: float) -> None:
        self.saga_id = new_saga_id()
        self.name = name
        self._declared_home = home
        self._expiry_s = expiry_s
        self._row_limit = ConnectionManager.settings().saga.undo_row_limit
        self._transactions: dict[str, LocalTransaction] = {}
        self._written: list[str] = []
        self._events: list[Event] = []
        self._interceptors: dict[str, Interceptor] = {}
        self._sessions: dict[str, Session] = {}
        self._failed_inner: BaseException | None = None
        self._participants: list[LocalTransaction] = []
        self._restorers: list[Callable[[], None]] = []
        self._header = SagaHeader(self.saga_id, name, "", ())

    # -- inside the block ----------------------------------------------------------------------------------

    def transaction(self, database: str) -> LocalTransaction:
        """The block's open transaction on this database, opened now if there is none."""
        tx = self._transactions.get(database)
        if tx is None:
            tx = LocalTransaction(ConnectionManager.get(database))
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
        if database not in self._interceptors:
            self._interceptors[database] = Interceptor(tx)
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

    def buffer_event(self, event: Event) -> None:
        """Keep an event that names no database for home's outbox: home's commit decides over it too."""
        self._ledger_of_innermost_savepoint().append(event)

    def fail(self, error: BaseException) -> None:
        """Note that an inner saga failed: even if its exception is swallowed, this one can only abort."""
        self._failed_inner = self._failed_inner or error

    def _assign_recorder(self, tx: LocalTransaction) -> None:
        name = tx.database.name
        presumed_home = self._declared_home or (self._written[0] if self._written else name)
        self._written.append(name)
        tx.recorder = HomeRecorder() if name == presumed_home else BranchRecorder(self._row_limit)

    def _ledger_of_innermost_savepoint(self) -> list[Event]:
        nested = [tx for tx in self._transactions.values() if tx.depth]
        return nested[-1].ledger("saga.events") if nested else self._events

    # -- the end of the block ------------------------------------------------------------------------------

    def roll_back(self) -> None:
        """Roll back every transaction that is still open."""
        for session in self._sessions.values():
            session.close()
        for tx in reversed(self._transactions.values()):
            if tx.is_open:
                tx.rollback()

    def prepare(self) -> None:
        """Run all that may still fail while nothing is committed anywhere; on failure everything is rolled back.

        Raises SagaNotUndoable, SagaError, SagaAborted.
        """
        try:
            if self._failed_inner is not None:
                raise SagaError("an inner saga failed, and its exception was swallowed") from self._failed_inner
            for name, session in self._sessions.items():
                with self._transactions[name].mapped_errors():
                    session.flush()
            self._events += [event for tx in self._transactions.values() for event in tx.ledger("saga.events")]
            self._participants = [self._transactions[name] for name in self._written]
            self._header = self._choose_header()
            for tx in self._participants:
                self._prepare(tx)
            if len(self._participants) != len(self._written):
                raise SagaError(
                    f"a before_commit hook wrote to {self._written[-1]!r}, which the block had not written. Write to "
                    "it inside the block."
                )
        except SagaError:
            self.roll_back()
            raise
        except CrosstieError as error:
            self.roll_back()
            raise self._aborted(error) from error
        except BaseException:
            self.roll_back()
            raise

    def commit(self) -> None:
        """Commit what `prepare` has prepared. Raises SagaAborted, SagaInDoubt."""
        try:
            if len(self._participants) > 1:
                self._commit_all()
            else:
                self._commit_alone()
        finally:
            for session in self._sessions.values():
                session.close()
            # Databases that were only read kept their locks until the decision.
            for tx in self._transactions.values():
                if tx.is_open:
                    tx.rollback()

    def _choose_header(self) -> SagaHeader:
        names = list(self._written)
        if not names and self._events:
            raise SagaError(
                f"saga {self.name!r} wrote to no database, so {type(self._events[0]).__name__} has no outbox to be "
                "written to. Name one: publish(database=…), or __connection__ on the event."
            )
        home = names[0] if names else ""
        if len(names) > 1:
            stuck = {tx.database.name: list(uncaptured_reasons(tx)) for tx in self._participants}
            home = choose_home(names, stuck, self._declared_home)
        return SagaHeader(self.saga_id, self.name, home, tuple(names))

    def _prepare(self, tx: LocalTransaction) -> None:
        if tx.database.name == self._header.home:
            enqueue(tx, self._events)
        else:
            tx.ledger("outbox.saga_id")[:] = [self.saga_id]
            if tx.ledger("before_commit"):  # a hook may publish, or is the one that writes what was published
                undo_log(tx).append({"op": "events"})
        with tx.mapped_errors():
            tx.run_before_commit()
            if has_deferrable_constraints(tx.database, tx.connection):
                with tx.internal():
                    tx.connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
        tx.require_healthy()

    def _commit_alone(self) -> None:
        for tx in self._participants:
            try:
                tx.commit()
            except CommitInDoubt as error:
                raise SagaInDoubt(f"saga {self.name!r}: {error}", saga_id=self.saga_id) from error
            except CrosstieError as error:
                raise self._aborted(error) from error

    def _commit_all(self) -> None:
        header = self._header
        home = self._transactions[header.home]
        # The hooks of a branch wait for the decision: until home has committed, nothing has happened.
        after = _take(self._participants, "after_commit")
        self._restorers = _take(self._participants, "on_rollback")
        committing_home = False
        try:
            fault_point("saga.before-first-commit")
            for name in header.branches:
                tx = self._transactions[name]
                with tx.mapped_errors(), tx.internal():
                    record.insert(
                        tx.connection,
                        header,
                        name,
                        "applied",
                        undo_log=image.dump(undo_log(tx)),
                        expiry_s=self._expiry_s,
                    )
                fault_point("saga.branch-recorded")
                tx.commit()
                fault_point("saga.branch-committed")
            with home.mapped_errors(), home.internal():
                record.insert(home.connection, header, header.home, Decision.COMMITTED.value)
            fault_point("saga.home-recorded")
            committing_home = True
            home.commit()
        except Exception as error:  # noqa: BLE001 - whatever stopped the commits, what they did must be undone
            self.roll_back()
            self._abort(header, error, in_doubt=committing_home and isinstance(error, CommitInDoubt))
        except BaseException:
            # Interrupted between two commits: this is a crash, and a worker ends it like one.
            self.roll_back()
            doorbell.ring(header)
            raise
        fault_point("saga.home-committed")
        run_after_commit(after, header.home)

    def _abort(self, header: SagaHeader, error: Exception, *, in_doubt: bool) -> None:
        """Finish the failed saga as any worker would; returns only if it turns out to have committed."""
        resolution: Resolution | None = None
        unresolved: CrosstieError | None = None
        try:
            resolution = resolve(header, header.branches[0] if in_doubt else None)
        except CrosstieError as failure:
            unresolved = failure
        if resolution is None or not resolution.finished:
            doorbell.ring(header)
        forgotten = resolution is not None and resolution.decision is Decision.FORGOTTEN
        if in_doubt and (resolution is None or forgotten):
            raise SagaInDoubt(
                f"saga {self.name!r} ({self.saga_id}): the connection to home {header.home!r} was lost during the "
                f"COMMIT that decides, and its outcome cannot be learnt now ({unresolved or 'its records are gone'}). "
                "A worker will finish it; read the data back before running the block again.",
                saga_id=self.saga_id,
                pending=header.participants,
            ) from error
        if resolution is not None and resolution.decision is Decision.COMMITTED:
            if in_doubt:
                return
            raise SagaError(f"saga {self.saga_id}: home says committed, which this process never did") from error
        for restore in reversed(self._restorers):
            restore()
        pending = header.branches if resolution is None else (*resolution.pending, *resolution.quarantined)
        raise self._aborted(error, pending) from error

    def _aborted(self, error: BaseException, pending: tuple[str, ...] = ()) -> SagaAborted:
        rest = f"The undo in {', '.join(pending)} is left to a worker." if pending else "Nothing of it remains."
        cause = f"{type(error).__name__}: {error}".rstrip(".")
        return SagaAborted(
            f"saga {self.name!r} ({self.saga_id}) was aborted by {cause}. {rest}", saga_id=self.saga_id, pending=pending
        )


def _take(transactions: list[LocalTransaction], ledger: str) -> list[Callable[[], None]]:
    hooks = [hook for tx in transactions for hook in tx.ledger(ledger)]
    for tx in transactions:
        tx.ledger(ledger).clear()
    return hooks


@contextmanager
def saga(name: str, *, home: str | None = None, expiry_s: float | None = None) -> Iterator[SagaBlock]:
    """Run a block whose writes, in however many databases, all happen or none.

    `home` names the database whose commit decides (default: the one that cannot be undone, else the first one written);
    a worker may end the saga for this process once `expiry_s` seconds (default: `saga.expiry_s`) have passed since a
    branch committed. A saga inside a saga joins it.

    An exception leaves the block as it is, and nothing was committed. Raises SagaAborted where the end of the block
    failed and nothing remains or will remain, SagaInDoubt where the outcome cannot be learnt now, SagaNotUndoable where
    the block cannot be made one outcome, SagaError inside a plain transaction.
    """
    outer: Any = active_unit()
    if isinstance(outer, SagaBlock):
        try:
            yield outer
        except BaseException as error:
            outer.fail(error)
            raise
        return
    if open_transactions():
        raise SagaError(
            f"saga {name!r} was begun inside a plain transaction of {', '.join(map(repr, open_transactions()))}, whose "
            "commit it could not decide over. Put the saga outside; transactions inside it become savepoints."
        )
    if home is not None:
        ConnectionManager.get(home)
    settings = ConnectionManager.settings().saga
    block = SagaBlock(name, home=home, expiry_s=settings.expiry_s if expiry_s is None else expiry_s)
    set_active_unit(block)
    try:
        try:
            yield block
        except BaseException:
            block.roll_back()
            raise
        block.prepare()
    finally:
        set_active_unit(None)
    block.commit()

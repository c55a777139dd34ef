"""One open transaction on one database, and the registry of those that a thread has open.

Each thread has its own; nothing is shared. Lists that a savepoint must take back (events to publish, the undo log,
saved objects) are *ledgers* of the transaction: a rolled-back savepoint cuts every ledger to the length that it had.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event

from crosstie.orm.answer import Answer
from crosstie.orm.commit import can_depart, commit_departed, commit_verified
from crosstie.orm.database import Database
from crosstie.orm.driver_errors import MappedErrors, classify, driver_exception
from crosstie.orm.errors import DatabaseUnavailable, TransactionPoisoned
from crosstie.orm.final_statement import FinalStatement
from crosstie.orm.pool import ENDED
from crosstie.orm.recorder import WriteRecorder

__all__ = ["LocalTransaction", "Savepoint", "current", "open_transactions", "run_after_commit"]

logger = logging.getLogger(__name__)


class _Open(threading.local):
    def __init__(self) -> None:
        self.by_database: dict[str, LocalTransaction] = {}


_open = _Open()


def _forget_after_fork() -> None:
    # The parent goes on using these connections; the child must not touch their sockets.
    _open.by_database = {}


os.register_at_fork(after_in_child=_forget_after_fork)


class LocalTransaction:
    """One open transaction on one database, owned by the thread that opened it.

    `visible` transactions serve the thread's ORM statements until they end. Raises DatabaseUnavailable where no
    connection can be had.
    """

    def __init__(
        self,
        database: Database,
        *,
        visible: bool = True,
        before_begin: Callable[[sa.Connection], object] | None = None,
    ) -> None:
        self.database = database
        self.recorder: WriteRecorder | None = None
        self.written = False
        self.on_first_write: Callable[[LocalTransaction], None] | None = None
        self.ledgers: dict[str, list[Any]] = {}
        self.depth = 0
        self.before_statement: Callable[[LocalTransaction], None] | None = None
        """Called before each statement of the caller's; may refuse it by an exception."""
        self.notifies = True
        """Whether its commit may send a notification."""
        self.commits_by: tuple[str, ...] = ()
        """What is sent to commit in place of COMMIT."""
        self._final: FinalStatement | None = None
        self._poison: BaseException | None = None
        self._poison_is_final = False
        self._at_close: list[Callable[[sa.Connection], object]] = []
        self._internal = 0
        self._shown = False
        self._released = False
        with self.mapped_errors():
            self.bare: sa.Connection = database.take()
            """`connection` for crosstie's own statements: SQLAlchemy begins its transaction only if one needs it."""
            try:
                if before_begin is not None:
                    before_begin(self.bare)
                if database.capabilities.one_writer:  # elsewhere the first statement begins
                    self.bare.begin()
            except BaseException:
                self.bare.close()
                raise
        if visible:
            _open.by_database[database.name] = self

    def __repr__(self) -> str:
        return f"LocalTransaction({self.database.name!r}, written={self.written}, poisoned={self.poisoned})"

    def mapped_errors(self) -> MappedErrors:
        """A context manager that turns driver errors into ours, naming this database."""
        return self.database.mapped_errors()

    # -- state ---------------------------------------------------------------------------------------------

    @property
    def connection(self) -> sa.Connection:
        """SQLAlchemy's connection, in a transaction of SQLAlchemy's that is not to be ended on it."""
        if not self._shown and not self._released:
            self._shown = True
            if not self.bare.in_transaction():
                self.bare.begin()
        return self.bare

    @property
    def poisoned(self) -> bool:
        """A statement failed and nothing has taken it back: this transaction can only roll back."""
        return self._poison is not None

    @property
    def is_open(self) -> bool:
        """Whether neither commit nor rollback has ended the transaction yet."""
        return not self._released

    def note_error(self, error: BaseException) -> None:
        """Remember a failed statement; swallowing its exception does not make the transaction whole again."""
        failure = classify(error)
        if failure is None:
            return
        self._poison = self._poison or error
        # PostgreSQL takes any error back with the savepoint; elsewhere a deadlock has ended savepoints and all.
        survives = self.database.kind == "postgresql" or not failure.ends_transaction
        if not survives or failure.error is DatabaseUnavailable:
            self._poison_is_final = True

    def end_by_stranger(self) -> None:
        """Note that rollback() was called on the connection behind the block's back: only a rollback can follow."""
        self._poison = self._poison or TransactionPoisoned("rollback() was called on its connection inside the block")
        self._poison_is_final = True

    def require_healthy(self) -> None:
        """Raise TransactionPoisoned if a statement has failed in this transaction."""
        if self._poison is not None:
            raise TransactionPoisoned(
                f"database {self.database.name!r}: this transaction can only roll back, because of an error that was "
                f"swallowed: {driver_exception(self._poison)}. Let the exception leave the block, or wrap the "
                "statement that may fail in a nested transaction."
            ) from self._poison
        self.announce_statement()

    def announce_statement(self) -> None:
        """Say that a statement of the caller's is about to run here."""
        if self.before_statement is not None and not self._internal:
            with self.internal():
                self.before_statement(self)

    def mark_written(self) -> None:
        """Say that a write is about to run here."""
        if not self.written:
            self.written = True
            if self.on_first_write is not None:
                self.on_first_write(self)

    @property
    def is_internal(self) -> bool:
        """Whether what runs on the connection now is crosstie's own, which tells the recorder by itself."""
        return self._internal > 0

    def internal(self) -> AbstractContextManager[None]:
        """Statements of the block are crosstie's own."""
        return _Internal(self)

    def begin_internal(self) -> None:
        """What runs from now on is crosstie's own, until `end_internal` is called as often."""
        self._internal += 1

    def end_internal(self) -> None:
        """The end of `begin_internal`."""
        self._internal -= 1

    # -- ledgers and hooks ----------------------------------------------------------------------------------

    def ledger(self, name: str) -> list[Any]:
        """The list of this name; append to it, and rolled-back savepoints will cut it back."""
        return self.ledgers.setdefault(name, [])

    def before_commit(self, hook: Callable[[LocalTransaction], None]) -> None:
        """Run `hook` inside the transaction, just before it commits; an exception rolls everything back."""
        self.ledger("before_commit").append(hook)

    def after_commit(self, hook: Callable[[], None]) -> None:
        """Run `hook` once the commit is durable; it cannot undo anything, so an exception in it is logged."""
        self.ledger("after_commit").append(hook)

    def on_rollback(self, hook: Callable[[], None]) -> None:
        """Run `hook` if this part of the transaction is rolled back: restore objects in memory."""
        self.ledger("on_rollback").append(hook)

    def at_close(self, hook: Callable[[sa.Connection], object]) -> None:
        """Run `hook` on the connection after the transaction has ended, before it returns to the pool."""
        self._at_close.append(hook)

    # -- ends -----------------------------------------------------------------------------------------------

    @contextmanager
    def savepoint(self) -> Iterator[LocalTransaction]:
        """A nested transaction: an exception takes back what happened inside and goes on."""
        savepoint = Savepoint(self)
        try:
            yield self
            savepoint.release()
        except BaseException:
            savepoint.roll_back()
            raise

    def ledger_lengths(self) -> dict[str, int]:
        """How much is in each ledger: what `cut_back` goes back to."""
        return {name: len(entries) for name, entries in self.ledgers.items()}

    def cut_back(self, lengths: Mapping[str, int]) -> None:
        """A savepoint was rolled back: forget what the ledgers took down since, and an error that it took back."""
        if not self._poison_is_final:
            self._poison = None
        self._run_restorers(from_length=lengths.get("on_rollback", 0))
        for name, entries in self.ledgers.items():
            del entries[lengths.get(name, 0) :]

    def conclude_with(self, final: FinalStatement) -> None:
        """Run this as the last statement of the transaction, if it can be in one request with its COMMIT.

        For a hook that runs before the commit, or after those. Of several the others run now, in their order.
        """
        self.run_final()
        self._final = final

    def run_before_commit(self, *, final: bool = True) -> None:
        """Run the hooks that write into this transaction; each runs once.

        `final=False` leaves the last statement to the commit.
        """
        hooks = self.ledger("before_commit")
        while hooks:
            hooks.pop(0)(self)
        if final:
            self.run_final()

    def run_final(self) -> None:
        """Run by itself what was given to `conclude_with`."""
        final, self._final = self._final, None
        if final is not None:
            with self.mapped_errors(), self.internal():
                final.run(self.bare)

    def commit(self) -> None:
        """Commit and believe it only when the database said so.

        Raises TransactionPoisoned, CommitInDoubt, or what the database answered; after any of them but
        CommitInDoubt the transaction is known to be rolled back.
        """
        try:
            self.make_ready()
            self._hide()
            answer = commit_verified(
                self.database,
                self.bare,
                written=self.written,
                by=self.commits_by,
                final=self._final,
            )
        except BaseException:
            self.rollback()
            raise
        self._end_committed(answer)

    def make_ready(self) -> None:
        """Run what comes before COMMIT and cannot be sent with it; after an error the transaction is still open."""
        self.run_before_commit(final=False)
        if self.commits_by or self._final is None or not self._final.commits_on(self.database, self.bare):
            self.run_final()
        self.require_healthy()

    def depart(self) -> Callable[[], None] | None:
        """Send COMMIT once it is ready, and do not wait; None where that cannot be, and then nothing was sent.

        What is returned reads the answer, and either raises as `commit` does. Whoever does not read it calls `abandon`.
        """
        if self.commits_by or not can_depart(self.database, self.bare):
            return None
        self._hide()
        try:
            believed = commit_departed(self.database, self.bare, written=self.written, final=self._final)
        except BaseException:
            self.rollback()
            raise

        def arrive() -> None:
            try:
                answer = believed()
            except BaseException:
                self.rollback()
                raise
            self._end_committed(answer)

        return arrive

    def abandon(self) -> None:
        """Close the connection of a transaction whose COMMIT was sent: nobody will read the answer."""
        self.bare.invalidate()
        self.rollback()

    def _end_committed(self, answer: Answer | None) -> None:
        self.bare.info[ENDED] = True
        self._release()
        hooks = self.ledger("after_commit")
        if self._final is not None and answer is not None:
            hooks.insert(0, partial(self._final.then, answer))
        run_after_commit(hooks, self.database.name)

    def rollback(self) -> None:
        """Roll back, whatever state the connection is in; never raises for a connection that is already dead."""
        if self._released:
            return
        self._hide()
        connection = self.bare
        try:
            if not (connection.invalidated or connection.in_transaction()):
                connection.begin()  # else SQLAlchemy would think that there is nothing to roll back
            connection.rollback()
            connection.info[ENDED] = True
        except sa.exc.SQLAlchemyError as error:
            logger.debug("rolling back on %r failed, its connection is discarded: %s", self.database.name, error)
            connection.invalidate()
        finally:
            self._release()
            self._run_restorers(from_length=0)

    def _run_restorers(self, *, from_length: int) -> None:
        restorers = self.ledger("on_rollback")
        for restore in reversed(restorers[from_length:]):
            restore()
        del restorers[from_length:]

    def _hide(self) -> None:
        if _open.by_database.get(self.database.name) is self:
            del _open.by_database[self.database.name]

    def _release(self) -> None:
        self._released = True
        try:
            if self._at_close and not self.bare.invalidated:
                with self.internal():
                    for hook in self._at_close:
                        hook(self.bare)
        except sa.exc.SQLAlchemyError:
            logger.debug("a connection to %r could not be reset and is discarded", self.database.name, exc_info=True)
            self.bare.invalidate()
        finally:
            self.database.give_back(self.bare, shown=self._shown)
            ended: Any = _ENDED
            self.bare = ended
            # What they belong to has this transaction, and would else be kept until the garbage collector runs.
            self.on_first_write = self.before_statement = None


class Savepoint:
    """A point to which a transaction can go back; those set later must have ended before it does.

    Raises TransactionPoisoned, and what the database answers.
    """

    def __init__(self, tx: LocalTransaction) -> None:
        tx.require_healthy()
        self._tx = tx
        self._lengths = tx.ledger_lengths()
        self._before = tx.written, tx.recorder
        with tx.mapped_errors(), tx.internal():
            self._nested = tx.bare.begin_nested()
        tx.depth += 1

    def release(self) -> None:
        """Keep what happened since. Raises TransactionPoisoned where a statement has failed: then roll back."""
        self._tx.require_healthy()
        with self._tx.mapped_errors():
            self._nested.commit()
        self._tx.depth -= 1

    def roll_back(self) -> None:
        """Take back what happened since; where the server has ended the transaction, nothing else can follow."""
        tx = self._tx
        tx.depth -= 1
        try:
            if self._nested.is_active or not tx._poison_is_final:
                self._nested.rollback()
        except sa.exc.SQLAlchemyError as error:
            # MySQL has no such savepoint once a deadlock has ended the transaction.
            tx._poison = tx._poison or error
            tx._poison_is_final = True
        tx.written, tx.recorder = self._before
        tx.cut_back(self._lengths)


class _Ended:
    """In place of the connection of a transaction that has ended: another one may have it by now."""

    closed = True

    def __getattr__(self, name: str) -> Any:
        raise sa.exc.ResourceClosedError(f"this transaction has ended: there is no {name} of its connection any more")


_ENDED: Final = _Ended()


class _Internal:
    __slots__ = ("_tx",)

    def __init__(self, tx: LocalTransaction) -> None:
        self._tx = tx

    def __enter__(self) -> None:
        self._tx.begin_internal()

    def __exit__(self, *_: object) -> None:
        self._tx.end_internal()


def run_after_commit(hooks: Iterable[Callable[[], None]], database: str) -> None:
    """Run hooks whose transaction is durable: one that fails is logged, and the others still run."""
    for hook in hooks:
        try:
            hook()
        except Exception:
            logger.exception("a hook failed after database %r had committed; the commit stands", database)


def _notice_error(context: sa.engine.ExceptionContext) -> None:
    for tx in _open.by_database.values():
        if tx.bare is context.connection:
            tx.note_error(context.sqlalchemy_exception or context.original_exception)


def _refuse_foreign_commit(connection: sa.Connection) -> None:
    for tx in _open.by_database.values():
        if tx.bare is connection:
            raise TransactionPoisoned(
                f"database {tx.database.name!r}: commit() was called on a connection whose transaction crosstie ends "
                "itself. Leave the block to commit."
            )


def _notice_foreign_rollback(connection: sa.Connection) -> None:
    for tx in _open.by_database.values():
        if tx.bare is connection:
            # The next statement would silently begin a new transaction, and half of the block would commit.
            tx.end_by_stranger()


def _watch(database: Database, engine: sa.Engine) -> None:
    """Listen where transactions run, and nowhere else: other engines would pay for it with each statement."""
    if not database.is_autocommit(engine):
        event.listen(engine, "handle_error", _notice_error)
        event.listen(engine, "commit", _refuse_foreign_commit)
        event.listen(engine, "rollback", _notice_foreign_rollback)


Database.on_engine.append(_watch)


def current(name: str) -> LocalTransaction | None:
    """The thread's open transaction on this database, or None."""
    return _open.by_database.get(name)


def open_transactions() -> Mapping[str, LocalTransaction]:
    """The thread's open transactions by database name, in the order in which they were opened."""
    return MappingProxyType(_open.by_database)

"""Blocks and single statements on one database: in the transaction that the thread has open there, or alone."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import sqlalchemy as sa

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CrossDatabaseWriteWarning
from crosstie.orm.local_transaction import LocalTransaction, current, open_transactions
from crosstie.orm.prevention import require_writable

__all__ = [
    "UnitOfWork",
    "active_unit",
    "detached_transaction",
    "set_active_unit",
    "statement_connection",
    "transaction",
    "transaction_for_statement",
    "warn_of_foreign_write",
]


class UnitOfWork(Protocol):
    """What opens a thread's local transactions and ends them together: a saga block."""

    def transaction(self, database: str) -> LocalTransaction:
        """The unit's open transaction on this database, opened now if there is none."""


class _Active(threading.local):
    def __init__(self) -> None:
        self.unit: UnitOfWork | None = None


_active = _Active()


def _forget_after_fork() -> None:
    _active.unit = None


os.register_at_fork(after_in_child=_forget_after_fork)


def active_unit() -> UnitOfWork | None:
    """The saga block that the thread is inside of, if any."""
    return _active.unit


def set_active_unit(unit: UnitOfWork | None) -> None:
    """Make `unit` open the thread's transactions from now on; None ends it."""
    _active.unit = unit


@contextmanager
def _ended_with_block(tx: LocalTransaction) -> Iterator[LocalTransaction]:
    """Commit at the end of the block, or roll back what raised out of it."""
    try:
        yield tx
    except BaseException:
        tx.rollback()
        raise
    tx.commit()


@contextmanager
def transaction(name: str) -> Iterator[LocalTransaction]:
    """Run a block in one transaction of this database; nested, in a savepoint of it.

    Raises UnknownConnection, DatabaseUnavailable, and what `LocalTransaction.commit` raises.
    """
    outer = current(name)
    if outer is None and _active.unit is not None:
        outer = _active.unit.transaction(name)
    if outer is not None:
        with outer.savepoint():
            yield outer
        return
    with _ended_with_block(LocalTransaction(ConnectionManager.get(name))) as tx:
        yield tx


@contextmanager
def detached_transaction(name: str) -> Iterator[LocalTransaction]:
    """Run a block in a transaction of its own, on its own connection, whatever the thread has open.

    For recovery and relay code, whose statements must neither join nor see the caller's transaction.
    """
    with _ended_with_block(LocalTransaction(ConnectionManager.get(name), visible=False)) as tx, tx.mapped_errors():
        yield tx


def _level_of_user_code() -> int:
    """The `stacklevel` that makes a warning point past crosstie's own frames, at the line that caused it."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("crosstie.", "contextlib")):
        level, frame = level + 1, frame.f_back
    return level


def warn_of_foreign_write(name: str) -> None:
    """Warn where a write to this database, which has no open transaction, runs inside a transaction of another."""
    others = ", ".join(map(repr, open_transactions()))
    if not others:
        return
    warnings.warn(
        f"a write to {name!r} inside a transaction of {others} commits by itself and is not taken back when that "
        "transaction rolls back. Wrap both in `with saga(...)`.",
        CrossDatabaseWriteWarning,
        stacklevel=_level_of_user_code(),
    )


def transaction_for_statement(name: str, *, write: bool) -> LocalTransaction | None:
    """The thread's transaction that a single statement of the ORM belongs to, readied for it; None outside of any.

    Raises WritesPrevented, TransactionPoisoned, and what opening a saga's transaction raises.
    """
    if write:
        require_writable(name)
    tx = current(name)
    if tx is None:
        if _active.unit is None:
            return None
        tx = _active.unit.transaction(name)
    tx.require_healthy()
    if write:
        tx.mark_written()
    return tx


@contextmanager
def statement_connection(name: str, *, write: bool) -> Iterator[sa.Connection]:
    """The connection on which a single statement of the ORM runs.

    Inside a transaction or a saga it is theirs; outside it commits by itself. Raises as `transaction_for_statement`.
    """
    tx = transaction_for_statement(name, write=write)
    if tx is not None:
        with tx.mapped_errors():
            yield tx.bare
        return
    if write:
        warn_of_foreign_write(name)
    with ConnectionManager.get(name).alone() as connection:
        yield connection

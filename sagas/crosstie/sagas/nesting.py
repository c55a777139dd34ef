"""A saga inside a saga: part of the outer one's outcome, and taken back by itself where it fails.

It begins with a savepoint in each database that is open. In one that is opened later nothing has happened before, so
going back there means rolling back all of it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.orm import Session, SessionTransaction

from crosstie.orm.local_transaction import LocalTransaction, Savepoint

if TYPE_CHECKING:
    from crosstie.outbox.event import Event

__all__ = ["Edge", "Numbered", "contradictions"]

logger = logging.getLogger(__name__)

Numbered: TypeAlias = "tuple[int, Event]"
"""An event, and the number that says when it was published."""


class Edge:
    """Where an inner saga began, in the transactions, the sessions and the events of the block that it joined.

    Raises TransactionPoisoned where the outer saga can only abort, and what a flush of its sessions raises.
    """

    def __init__(
        self, transactions: dict[str, LocalTransaction], sessions: dict[str, Session], events: list[Numbered]
    ) -> None:
        self._transactions = transactions
        self._sessions = sessions
        self._events = events
        self._events_before = len(events)
        self._before = frozenset(transactions)
        self._savepoints: list[Savepoint] = []
        self._nested: dict[str, SessionTransaction] = {}
        # What is pending was written outside: flushed after the savepoints, it would go with them.
        self._flush()
        try:
            for tx in transactions.values():
                self._savepoints.append(Savepoint(tx))
            for name, session in sessions.items():
                with transactions[name].mapped_errors():
                    self._nested[name] = session.begin_nested()
        except BaseException:
            self.roll_back()
            raise

    def release(self) -> None:
        """The inner saga has ended well: what it did is the outer one's now. Raises as it does; then roll back."""
        self._flush()
        for name, nested in reversed(self._nested.items()):
            if nested.is_active:  # commit() on the session has ended it, and committed nothing
                with self._transactions[name].mapped_errors():
                    nested.commit()
        for name, tx in self._transactions.items():
            if name not in self._before:
                tx.require_healthy()
        while self._savepoints:
            self._savepoints[-1].release()
            self._savepoints.pop()

    def roll_back(self) -> None:
        """Take back what happened since, in every database."""
        for name, session in reversed(self._sessions.items()):
            self._take_back(name, session)
        for name in [name for name in self._transactions if name not in self._before]:
            self._sessions.pop(name, None)
            self._transactions.pop(name).rollback()
        while self._savepoints:
            self._savepoints.pop().roll_back()
        del self._events[self._events_before :]

    def _take_back(self, name: str, session: Session) -> None:
        nested = self._nested.get(name)
        if nested is None:  # its first use was inside
            session.close()
            return
        try:
            if session.in_nested_transaction():  # else commit() on the session has ended it
                nested.rollback()
        except sa.exc.SQLAlchemyError as error:
            logger.debug("the server has ended the transaction on %r: %s", name, error)
            session.close()
        for pending in list(session.new):
            session.expunge(pending)
        session.expire_all()

    def _flush(self) -> None:
        for name, session in self._sessions.items():
            with self._transactions[name].mapped_errors():
                session.flush()


def contradictions(inner: dict[str, Any], outer: dict[str, Any]) -> list[str]:
    """What an inner saga asks for, None for nothing in particular, and the outer one has decided otherwise."""
    return [
        f"{name}={wish!r} (the outer one has {outer[name]!r})"
        for name, wish in inner.items()
        if wish is not None and wish != outer[name]
    ]

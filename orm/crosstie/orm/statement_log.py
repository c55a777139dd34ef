"""The statements that this thread sends, by database: to see what a piece of code costs."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy import event

__all__ = ["SentStatement", "StatementLog", "logged_statements"]

_TRANSACTION_WORDS: Final = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE")


class SentStatement(NamedTuple):
    """One statement, its values not included; `database` is the connection's name."""

    database: str
    sql: str


@dataclass
class StatementLog:
    """What was sent, in order."""

    statements: list[SentStatement] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.statements)

    @property
    def by_database(self) -> dict[str, int]:
        """How many statements each database was sent."""
        return dict(Counter(statement.database for statement in self.statements))


@contextmanager
def logged_statements() -> Iterator[StatementLog]:
    """Log what this thread sends to the configured databases inside the block, but for the ends of transactions."""
    log = StatementLog()
    thread = threading.get_ident()

    def sent(connection: sa.Connection, _cursor: Any, statement: str, *_: Any) -> None:
        database = connection.engine.logging_name
        if database is None or threading.get_ident() != thread:
            return
        if not statement.startswith(_TRANSACTION_WORDS):
            log.statements.append(SentStatement(database, statement))

    event.listen(sa.Engine, "before_cursor_execute", sent)
    try:
        yield log
    finally:
        event.remove(sa.Engine, "before_cursor_execute", sent)

"""The last statement of a transaction, sent in one request with its COMMIT.

A write that is known before the end of a transaction and needed by nothing in it, an event's row or a saga's record,
so costs no round trip of its own. The server commits only where the statement went through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from crosstie.orm.answer import Answer
from crosstie.orm.database import Database
from crosstie.orm.in_transaction import in_transaction
from crosstie.orm.prepared import Prepared, is_watched

__all__ = ["FinalStatement"]


@dataclass(frozen=True)
class FinalStatement:
    """A statement and its values; `then` is called with its answer, in or after the transaction, and does not raise."""

    statement: Prepared
    values: Mapping[str, Any]
    returns: bool = False
    """Whether it returns rows."""
    then: Callable[[Answer], object] = lambda _: None

    def run(self, connection: sa.Connection) -> None:
        """Run it by itself. Raises SQLAlchemy's errors."""
        fetch_or_run = self.statement.fetch if self.returns else self.statement.run
        self.then(fetch_or_run(connection, self.values))

    def commits_on(self, database: Database, connection: sa.Connection) -> bool:
        """Whether `run_and_commit` can be used: the server takes both at once, and nobody listens to statements.

        Not where the transaction has had no statement yet, which on MariaDB looks as if an error had ended it.
        """
        if is_watched(connection.engine):
            return False
        raw: Any = connection.connection.dbapi_connection
        if database.kind == "postgresql":
            from crosstie.orm import pipeline  # needs the driver, which others do without

            takes_both = pipeline.is_possible(raw)
        else:  # MariaDB hands rows out of a compound statement so slowly that the round trip is cheaper
            takes_both = database.kind == "mariadb" and not self.returns
        return takes_both and in_transaction(database, raw)

    def run_and_commit(self, database: Database, connection: sa.Connection) -> Answer:
        """Run it and COMMIT in one request; returns its answer, and on PostgreSQL the tag of the COMMIT.

        Raises the driver's errors; where the statement was refused, nothing is committed.
        """
        if database.kind == "postgresql":
            from crosstie.orm import pipeline

            sql, parameters = self.statement.numbered(connection.dialect, self.values)
            return pipeline.execute(connection, sql, parameters, commits=True)
        sql, parameters = self._compound(connection)
        raw: Any = connection.connection.dbapi_connection
        with raw.cursor() as cursor:
            cursor.execute(sql, parameters)
            return Answer((), (), cursor.rowcount)

    def depart(
        self, database: Database, connection: sa.Connection, by: Sequence[str] = ("COMMIT",)
    ) -> Callable[[], Answer]:
        """Send it and what ends the transaction `by`, and do not wait; what is returned reads the answer.

        As `run_and_commit` does; on PostgreSQL one statement ends a transaction.
        """
        if database.kind == "postgresql":
            from crosstie.orm import pipeline

            sql, parameters = self.statement.numbered(connection.dialect, self.values)
            (end,) = by
            return pipeline.depart(connection, sql, parameters, end=end)
        from crosstie.orm import mysql_request

        raw: Any = connection.connection.dbapi_connection
        return mysql_request.depart(raw, *self._compound(connection, by))

    def _compound(self, connection: sa.Connection, by: Sequence[str] = ("COMMIT",)) -> tuple[str, Sequence[Any]]:
        sql, parameters = self.statement.rendered(connection.dialect, self.values)
        return f"BEGIN NOT ATOMIC {sql}; {'; '.join(by)}; END", parameters

"""COMMIT that is believed only when the database said so.

PostgreSQL answers COMMIT of a failed transaction with the tag ROLLBACK and no error; MySQL and MariaDB, after a
deadlock, silently open a new transaction for the next statement. So the state is required before COMMIT, and the answer
is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa

from crosstie.orm.answer import Answer
from crosstie.orm.database import Database
from crosstie.orm.driver_errors import Failure, classify, describe
from crosstie.orm.errors import CommitInDoubt, TransactionPoisoned
from crosstie.orm.final_statement import FinalStatement
from crosstie.orm.in_transaction import in_transaction

__all__ = ["can_depart", "commit_departed", "commit_verified", "depart", "end_on_our_side"]


def commit_verified(
    database: Database,
    connection: sa.Connection,
    *,
    written: bool,
    by: Sequence[str] = (),
    final: FinalStatement | None = None,
) -> Answer | None:
    """Commit the connection's transaction, on MySQL `by` other statements than COMMIT if there are any.

    `final` is sent with the COMMIT, and its answer returned; the caller has asked whether that can be.

    Raises TransactionPoisoned where the database holds no healthy transaction any more (nothing is committed),
    CommitInDoubt where the answer to COMMIT was lost, and the mapped error where the database refused.
    """
    raw = connection.connection.dbapi_connection
    _require_open(database, raw, written=written)
    tag = "COMMIT"
    answer = None
    try:
        if final is not None:
            answer = final.run_and_commit(database, connection)
            tag = answer.tag or tag
        elif database.kind == "postgresql":
            tag = _commit_postgresql(raw)
        for statement in by:
            with raw.cursor() as cursor:  # type: ignore[union-attr]
                cursor.execute(statement)
        if final is not None or database.kind == "postgresql":
            end_on_our_side(connection, raw)
        elif connection.in_transaction():
            connection.commit()
        else:
            raw.commit()  # type: ignore[union-attr]
    except Exception as error:
        if database.kind == "sqlite" and raw.in_transaction:  # type: ignore[union-attr]
            # A COMMIT that SQLite refuses leaves the transaction open, and SQLAlchemy takes it for ended.
            raw.rollback()  # type: ignore[union-attr]
        _raise_understood(database, error)
        raise
    _require_committed(database, tag)
    return answer


def can_depart(database: Database, connection: sa.Connection) -> bool:
    """Whether the driver can send without waiting for the answer."""
    raw: Any = connection.connection.dbapi_connection
    if database.kind == "postgresql":
        from crosstie.orm import pipeline  # needs the driver, which others do without

        return pipeline.is_possible(raw)
    if database.kind == "sqlite":
        return False
    from crosstie.orm import mysql_request

    return mysql_request.is_possible(raw)


def commit_departed(
    database: Database,
    connection: sa.Connection,
    *,
    written: bool,
    final: FinalStatement | None = None,
) -> Callable[[], Answer | None]:
    """Send what `commit_verified` sends, and do not wait; what is returned reads the answer.

    Either raises as `commit_verified` does. Whoever does not read the answer has to close the connection.
    """
    raw: Any = connection.connection.dbapi_connection
    _require_open(database, raw, written=written)
    try:
        arrive = depart(database, connection, "COMMIT") if final is None else final.depart(database, connection)
    except Exception as error:
        _raise_understood(database, error)
        raise

    def believed() -> Answer | None:
        try:
            answer = arrive()
            end_on_our_side(connection, raw)
        except Exception as error:
            _raise_understood(database, error)
            raise
        _require_committed(database, answer.tag or "COMMIT")
        return None if final is None else answer

    return believed


def depart(database: Database, connection: sa.Connection, statement: str) -> Callable[[], Answer]:
    """Send what ends a transaction and do not wait; what is returned reads the answer. Both raise the driver's errors.

    Where `can_depart` says so. Whoever does not read the answer has to close the connection.
    """
    if database.kind == "postgresql":
        from crosstie.orm import pipeline

        return pipeline.depart(connection, None, (), end=statement)
    from crosstie.orm import mysql_request

    return mysql_request.depart(connection.connection.dbapi_connection, statement)


def _require_open(database: Database, raw: Any, *, written: bool) -> None:
    # A MySQL transaction exists only once a statement has touched a table.
    if written and not in_transaction(database, raw):
        raise TransactionPoisoned(
            f"database {database.name!r}: expected an open transaction at COMMIT and found none: the server had "
            "ended it after an error. Nothing was committed; run the whole block again."
        )


def _require_committed(database: Database, tag: str) -> None:
    if tag != "COMMIT":
        raise TransactionPoisoned(
            f"database {database.name!r} answered COMMIT with {tag}: a statement had failed in the transaction. "
            "Nothing was committed; run the whole block again."
        )


def _raise_understood(database: Database, error: Exception) -> None:
    """Raise our exception for one that COMMIT has raised, unless that is no failure of a database."""
    failure = classify(error)
    if failure is None:
        if not isinstance(error, OSError):
            return
        failure = Failure(CommitInDoubt, ends_transaction=True, commit_unknown=True, detail=str(error))
    if failure.commit_unknown:
        database.liveness.note_loss()
        raise CommitInDoubt(
            f"database {database.name!r}: the connection was lost during COMMIT ({failure.detail}); the "
            "transaction may or may not be durable. Read the data back before running the block again."
        ) from error
    raise failure.error(describe(failure, database.name, database.settings.address())) from error


def _commit_postgresql(raw: Any) -> str:
    """COMMIT, and what PostgreSQL says that it did."""
    from crosstie.orm import pipeline  # needs the driver, which others do without

    if pipeline.is_possible(raw):
        return pipeline.commit(raw)
    with raw.cursor() as cursor:
        cursor.execute("COMMIT")
        return str(cursor.statusmessage)


def end_on_our_side(connection: sa.Connection, raw: Any) -> None:
    """Tell SQLAlchemy that its transaction is over; PyMySQL would send another COMMIT, psycopg look whether to."""
    if not connection.in_transaction():
        return
    raw.commit = _nothing
    try:
        connection.commit()
    finally:
        del raw.commit


def _nothing() -> None:
    """In place of a COMMIT that the server has had."""

"""COMMIT that is believed only when the database said so.

PostgreSQL answers COMMIT of a failed transaction with the tag ROLLBACK and no error; MySQL and MariaDB, after a
deadlock, silently open a new transaction for the next statement. So the state is required before COMMIT, and the answer
is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from crosstie.orm.answer import Answer
from crosstie.orm.database import Database
from crosstie.orm.driver_errors import Failure, classify, describe
from crosstie.orm.errors import CommitInDoubt, TransactionPoisoned
from crosstie.orm.final_statement import FinalStatement
from crosstie.orm.in_transaction import in_transaction

__all__ = ["commit_verified"]


def commit_verified(
    database: Database,
    connection: sa.Connection,
    root: sa.Transaction,
    *,
    written: bool,
    by: Sequence[str] = (),
    final: FinalStatement | None = None,
) -> Answer | None:
    """Commit `root`, the connection's transaction, on MySQL `by` other statements than COMMIT if there are any.

    `final` is sent with the COMMIT, and its answer returned; the caller has asked whether that can be.

    Raises TransactionPoisoned where the database holds no healthy transaction any more (nothing is committed),
    CommitInDoubt where the answer to COMMIT was lost, and the mapped error where the database refused.
    """
    raw = connection.connection.dbapi_connection
    # A MySQL transaction exists only once a statement has touched a table.
    if written and not in_transaction(database, raw):
        raise TransactionPoisoned(
            f"database {database.name!r}: expected an open transaction at COMMIT and found none: the server had "
            "ended it after an error. Nothing was committed; run the whole block again."
        )
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
        if final is not None and database.kind == "mariadb":
            _end_on_our_side(root, raw)
        else:
            root.commit()  # after the COMMIT above this sends nothing
    except Exception as error:
        if database.kind == "sqlite" and raw.in_transaction:  # type: ignore[union-attr]
            # A COMMIT that SQLite refuses leaves the transaction open, and SQLAlchemy takes it for ended.
            raw.rollback()  # type: ignore[union-attr]
        failure = classify(error)
        if failure is None:
            if not isinstance(error, OSError):
                raise
            failure = Failure(CommitInDoubt, ends_transaction=True, commit_unknown=True, detail=str(error))
        if failure.commit_unknown:
            database.liveness.note_loss()
            raise CommitInDoubt(
                f"database {database.name!r}: the connection was lost during COMMIT ({failure.detail}); the "
                "transaction may or may not be durable. Read the data back before running the block again."
            ) from error
        raise failure.error(describe(failure, database.name, database.settings.address())) from error
    if tag != "COMMIT":
        raise TransactionPoisoned(
            f"database {database.name!r} answered COMMIT with {tag}: a statement had failed in the transaction. "
            "Nothing was committed; run the whole block again."
        )
    return answer


def _commit_postgresql(raw: Any) -> str:
    """COMMIT, and what PostgreSQL says that it did."""
    from crosstie.orm import pipeline  # needs the driver, which others do without

    if pipeline.is_possible(raw):
        return pipeline.commit(raw)
    with raw.cursor() as cursor:
        cursor.execute("COMMIT")
        return str(cursor.statusmessage)


def _end_on_our_side(root: sa.Transaction, raw: Any) -> None:
    """Tell SQLAlchemy that its transaction is over; PyMySQL would send another COMMIT."""
    raw.commit = _nothing
    try:
        root.commit()
    finally:
        del raw.commit


def _nothing() -> None:
    """In place of a COMMIT that the server has had."""

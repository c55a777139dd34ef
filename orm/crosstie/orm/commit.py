"""COMMIT that is believed only when the database said so.

PostgreSQL answers COMMIT of a failed transaction with the tag ROLLBACK and no error; MySQL and MariaDB, after a
deadlock, silently open a new transaction for the next statement. So the state is required before COMMIT, and the answer
is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from crosstie.orm.database import Database
from crosstie.orm.driver_errors import Failure, classify, describe
from crosstie.orm.errors import CommitInDoubt, TransactionPoisoned

__all__ = ["commit_verified", "in_transaction"]

_SERVER_STATUS_IN_TRANS = 1  # MySQL protocol, status flags of an OK packet


def in_transaction(database: Database, raw: Any) -> bool:
    """Whether the driver connection stands inside a healthy open transaction."""
    if database.kind == "sqlite":
        return bool(raw.in_transaction)
    if database.kind == "postgresql":
        return bool(raw.info.transaction_status.name == "INTRANS")
    if not raw.server_status & _SERVER_STATUS_IN_TRANS:
        # PyMySQL learns the status from OK packets only: after rows, as of INSERT ... RETURNING, it has the one of
        # before. The answer to a ping is an OK packet.
        try:
            raw.ping(reconnect=False)
        except Exception as error:
            failure = classify(error)
            if failure is None:
                raise
            raise failure.error(describe(failure, database.name, database.settings.address())) from error
    return bool(raw.server_status & _SERVER_STATUS_IN_TRANS)


def commit_verified(
    database: Database, connection: sa.Connection, root: sa.Transaction, *, written: bool, by: Sequence[str] = ()
) -> None:
    """Commit `root`, the connection's transaction, on MySQL `by` other statements than COMMIT if there are any.

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
    try:
        if database.kind == "postgresql":
            with raw.cursor() as cursor:  # type: ignore[union-attr]
                cursor.execute("COMMIT")
                tag = cursor.statusmessage
        for statement in by:
            with raw.cursor() as cursor:  # type: ignore[union-attr]
                cursor.execute(statement)
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

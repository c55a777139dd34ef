"""What a driver's exception means, decided by SQLSTATE and errno, never by the wording of a message.

`classify` is the only place that knows the codes. The rest of crosstie asks three questions of its answer: which of our
errors is it, does the transaction survive it, and was the outcome of a COMMIT learnt.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any

from sqlalchemy import exc as sa_exc

from crosstie.orm.errors import (
    CrosstieError,
    DatabaseError,
    DatabaseUnavailable,
    DeadlockDetected,
    DuplicateKey,
    IntegrityViolation,
    LockTimeout,
    NoSuchTable,
    PoolExhausted,
    StatementTimeout,
)
from crosstie.orm.statement_limit import what_to_do

__all__ = ["Failure", "MappedErrors", "classify", "driver_exception"]


@dataclass(frozen=True)
class Failure:
    """A driver's exception, understood.

    `ends_transaction`: the server has rolled the whole transaction back, whatever the client does next.
    `commit_unknown`: raised by COMMIT, this leaves open whether the transaction is durable.
    """

    error: type[DatabaseError]
    ends_transaction: bool
    commit_unknown: bool
    detail: str


# MySQL and MariaDB: https://mariadb.com/kb/en/mariadb-error-code-reference/
_MYSQL: dict[int, type[DatabaseError]] = {
    1062: DuplicateKey,
    1586: DuplicateKey,
    1048: IntegrityViolation,
    1216: IntegrityViolation,
    1217: IntegrityViolation,
    1364: IntegrityViolation,
    1451: IntegrityViolation,
    1452: IntegrityViolation,
    3819: IntegrityViolation,
    4025: IntegrityViolation,
    1054: NoSuchTable,
    1146: NoSuchTable,
    1205: LockTimeout,
    3572: LockTimeout,
    1969: StatementTimeout,  # MariaDB's max_statement_time
    3024: StatementTimeout,  # MySQL's max_execution_time
    1020: DeadlockDetected,
    1213: DeadlockDetected,
}
_MYSQL_LOST = frozenset(
    {
        0,
        1040,
        1042,
        1043,
        1044,
        1045,
        1049,
        1053,
        1152,
        1158,
        1159,
        1160,
        1161,
        1184,
        1189,
        1190,
        1203,
        1317,
        1927,
        3169,
    }
)
_POSTGRESQL: dict[str, type[DatabaseError]] = {
    "23505": DuplicateKey,
    "23P01": DuplicateKey,
    "42P01": NoSuchTable,
    "42703": NoSuchTable,
    "55P03": LockTimeout,
    "40001": DeadlockDetected,
    "40P01": DeadlockDetected,
    "57014": StatementTimeout,  # statement_timeout or a cancel
    "53300": DatabaseUnavailable,
    "3D000": DatabaseUnavailable,
    "28000": DatabaseUnavailable,
    "28P01": DatabaseUnavailable,
}


def driver_exception(error: BaseException) -> BaseException:
    """The driver's own exception inside SQLAlchemy's wrapper, or the exception itself."""
    return error.orig if isinstance(error, sa_exc.DBAPIError) and error.orig is not None else error


def classify(error: BaseException) -> Failure | None:
    """Understand an exception of SQLAlchemy, psycopg, PyMySQL or sqlite3; None for any other exception."""
    if isinstance(error, sa_exc.TimeoutError):
        return Failure(PoolExhausted, ends_transaction=False, commit_unknown=False, detail=str(error))
    if isinstance(error, sa_exc.StatementError) and isinstance(error.orig, CrosstieError):
        return None  # one of our column types refused a value; no statement was sent
    cause = driver_exception(error)
    root = type(cause).__module__.partition(".")[0]
    if isinstance(cause, sqlite3.Error):
        return _sqlite(cause)
    if root == "psycopg":
        return _postgresql(cause)
    if root == "pymysql":
        return _mysql(cause)
    if isinstance(error, sa_exc.DBAPIError):
        return Failure(DatabaseError, ends_transaction=True, commit_unknown=True, detail=str(cause))
    if isinstance(error, sa_exc.PendingRollbackError):
        return Failure(DatabaseUnavailable, ends_transaction=True, commit_unknown=False, detail=str(error))
    if isinstance(error, sa_exc.SQLAlchemyError):
        return Failure(DatabaseError, ends_transaction=False, commit_unknown=False, detail=str(error))
    return None


def _postgresql(cause: Any) -> Failure:
    state: str | None = getattr(cause, "sqlstate", None)
    detail = str(cause).strip()
    if state is None:
        lost = type(cause).__name__ in {"OperationalError", "InterfaceError", "ConnectionTimeout"}
        return Failure(DatabaseUnavailable if lost else DatabaseError, lost, lost, detail)
    if state in _POSTGRESQL:
        return Failure(_POSTGRESQL[state], True, False, detail)
    if state[:2] in {"08", "57", "58"} or state == "40003":
        return Failure(DatabaseUnavailable, True, True, detail)
    if state[:2] == "23":
        return Failure(IntegrityViolation, True, False, detail)
    return Failure(DatabaseError, True, state[:2] in {"53", "XX"}, detail)


def _mysql(cause: Any) -> Failure:
    number = cause.args[0] if cause.args and isinstance(cause.args[0], int) else 0
    detail = str(cause.args[1]) if len(cause.args) > 1 else str(cause)
    if number in _MYSQL_LOST or 2000 <= number < 3000:
        return Failure(DatabaseUnavailable, True, True, f"{detail} ({number})")
    kind = _MYSQL.get(number)
    if kind is None:
        kind = IntegrityViolation if type(cause).__name__ == "IntegrityError" else DatabaseError
    return Failure(kind, kind is DeadlockDetected, False, f"{detail} ({number})")


def _sqlite(cause: sqlite3.Error) -> Failure:
    code = getattr(cause, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    name = getattr(cause, "sqlite_errorname", "")
    detail = f"{cause} ({name})" if name else str(cause)
    if primary in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return Failure(LockTimeout, False, False, detail)
    if primary == sqlite3.SQLITE_INTERRUPT:  # a write that is interrupted takes its whole transaction along
        return Failure(StatementTimeout, True, False, detail)
    if primary == sqlite3.SQLITE_CONSTRAINT:
        unique = {
            sqlite3.SQLITE_CONSTRAINT_UNIQUE,
            sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
            sqlite3.SQLITE_CONSTRAINT_ROWID,
        }
        return Failure(DuplicateKey if code in unique else IntegrityViolation, False, False, detail)
    if primary in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}:
        return Failure(DatabaseUnavailable, False, False, detail)
    if primary in {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_CORRUPT}:
        return Failure(DatabaseUnavailable, True, True, detail)
    # SQLite reports a missing table and a missing column with the general code alone, so the words are all there is.
    missing = primary == sqlite3.SQLITE_ERROR and str(cause).startswith(("no such table", "no such column"))
    return Failure(NoSuchTable if missing else DatabaseError, False, False, detail)


class MappedErrors:
    """Turns what the driver raises inside a block into our errors, naming the database; the original is the cause.

    It has no state: one object serves any number of blocks, threads and levels.
    """

    __slots__ = ("_address", "_database")

    def __init__(self, database: str, address: str) -> None:
        self._database = database
        self._address = address

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Raise ours in place of an error of the driver."""
        if not isinstance(error, sa_exc.SQLAlchemyError):
            return
        # A value that a column type refused: SQLAlchemy wraps it, though no statement has reached the database.
        if isinstance(error, sa_exc.StatementError) and isinstance(error.orig, CrosstieError):
            raise error.orig from None
        failure = classify(error)
        if failure is not None:
            raise failure.error(describe(failure, self._database, self._address)) from error


def describe(failure: Failure, database: str, address: str) -> str:
    """The message of our error: which database, what happened, what to do."""
    name = f"database {database!r} ({address})"
    if failure.error is PoolExhausted:
        return (
            f"{name}: no connection became free in time. Raise pool_size or max_overflow, or hold them for less long."
        )
    if failure.error is DatabaseUnavailable:
        return f"{name} is not available: {failure.detail}. Check that it runs, and host, port and credentials."
    if failure.error is NoSuchTable:
        return f"{name}: {failure.detail}. Run the migration that adds it (`crosstie init` for crosstie's own)."
    if failure.error is DeadlockDetected:
        return f"{name} ended the transaction to resolve a conflict: {failure.detail}. Run the whole block again."
    if failure.error is StatementTimeout:
        return f"{name} cancelled a statement, or it took too long: {failure.detail}. {what_to_do()}"
    if failure.error is LockTimeout:
        return f"{name}: another transaction held a lock for too long: {failure.detail}. Run the whole block again."
    return f"{name}: {failure.detail.removesuffix('.')}."

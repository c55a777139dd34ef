"""Transactions that are prepared before they commit, and the servers' lists of those that are.

A prepared transaction outlives its connection and its server: only COMMIT or ROLLBACK by its name ends it. What goes to
the server here bypasses SQLAlchemy, which would begin a transaction around it.
https://www.postgresql.org/docs/current/sql-prepare-transaction.html, https://mariadb.com/kb/en/xa-transactions/
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Final, TypeAlias

import sqlalchemy as sa

from crosstie.orm.database import Database
from crosstie.orm.driver_errors import classify, describe
from crosstie.orm.errors import DatabaseUnavailable, LockTimeout, TransactionPoisoned
from crosstie.orm.in_transaction import in_transaction
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.pool import ENDED
from crosstie.sagas.branch_id import BranchId
from crosstie.sagas.errors import TwoPhaseUnavailable
from crosstie.sagas.record import Mode, SagaHeader

__all__ = [
    "PREPARED",
    "PreparableTransaction",
    "begin_branch",
    "finish",
    "prepared_branches",
    "prepared_header",
    "require_two_phase",
]

logger = logging.getLogger(__name__)

BeforeBegin: TypeAlias = "Callable[[sa.Connection], object] | None"
PREPARED: Final = "prepared"
"""The state of a branch that has no record yet: that comes with the commit of what is prepared."""

_NO_SUCH_NAME: Final = "42704"
_XAER_NOTA: Final = 1397
_MAY_NOT_LIST: Final = frozenset({1227, 1401})
"""MySQL's answers to XA RECOVER of a user without XA_RECOVER_ADMIN."""
_FIRST_MARIADB: Final = (10, 5)
_FIRST_MYSQL: Final = (5, 7, 7)


class PreparableTransaction(LocalTransaction):
    """A branch of a two-phase saga: it is prepared, and committed once home has decided."""

    def __init__(self, database: Database, branch: BranchId, before_begin: BeforeBegin) -> None:
        self.branch = branch
        self.is_prepared = False
        super().__init__(database, before_begin=before_begin)

    def prepare(self) -> None:
        """Have the server keep the transaction; from now on only its name ends it.

        Raises what `commit` raises; after any error the transaction may still be prepared.
        """
        self.run_before_commit()
        self.require_healthy()
        self._hide()
        # A server that ended the transaction after an error would prepare an empty one.
        if not in_transaction(self.database, self.connection.connection.dbapi_connection):
            raise TransactionPoisoned(
                f"database {self.database.name!r}: expected an open transaction to prepare and found none: the server "
                "had ended it after an error. Run the whole block again."
            )
        with _mapped(self.database):
            self._prepare()

    @abstractmethod
    def _prepare(self) -> None: ...

    @abstractmethod
    def finish(self, *, commit: bool) -> None:
        """Commit or roll back what was prepared. Raises DatabaseError; a worker can still do it then."""


class _PostgreSQLBranch(PreparableTransaction):
    def _prepare(self) -> None:
        tag = _send(self.connection, f"PREPARE TRANSACTION '{self.branch.gid()}'")
        # A failed transaction is answered with ROLLBACK, and that is no error.
        if tag != "PREPARE TRANSACTION":
            raise TransactionPoisoned(
                f"database {self.database.name!r} answered PREPARE TRANSACTION with {tag}: a statement had failed in "
                "the transaction. Run the whole block again."
            )
        self.is_prepared = True
        # The connection is free again, and COMMIT PREPARED may run on any.
        self._root.rollback()
        self.connection.info[ENDED] = True
        self._release()

    def finish(self, *, commit: bool) -> None:
        finish(self.database, self.branch, commit=commit)


class _XaBranch(PreparableTransaction):
    """The server lets no other connection end a prepared transaction while this one is there."""

    def __init__(self, database: Database, branch: BranchId, before_begin: BeforeBegin) -> None:
        self._xid = branch.xid(database)
        super().__init__(database, branch, before_begin)
        self.commits_by = (f"XA END {self._xid}", f"XA COMMIT {self._xid} ONE PHASE")
        try:
            with _mapped(database):
                _send(self.connection, f"XA START {self._xid}")
        except BaseException:
            super().rollback()
            raise

    def _prepare(self) -> None:
        _send(self.connection, f"XA END {self._xid}")
        # Set before the statement: where its answer is lost, it may have been prepared.
        self.is_prepared = True
        _send(self.connection, f"XA PREPARE {self._xid}")

    def finish(self, *, commit: bool) -> None:
        if not self.is_open:
            finish(self.database, self.branch, commit=commit)
            return
        try:
            with _mapped(self.database):
                _send(self.connection, f"XA {'COMMIT' if commit else 'ROLLBACK'} {self._xid}")
        except BaseException:
            self._let_go()
            raise
        super().rollback()

    def rollback(self) -> None:
        """Roll back; what is prepared is let go instead, because home may have committed."""
        if self.is_prepared:
            self._let_go()
            return
        try:
            # After a failed XA END, XA ROLLBACK is what is left; the other way round it is refused.
            for statement in (f"XA END {self._xid}", f"XA ROLLBACK {self._xid}"):
                _send(self.connection, statement)
        except Exception as error:
            if classify(error) is None and not isinstance(error, sa.exc.SQLAlchemyError):
                raise
            logger.debug("XA ROLLBACK on %r failed, its connection is discarded: %s", self.database.name, error)
            self.connection.invalidate()
        super().rollback()

    def _let_go(self) -> None:
        """Close the connection, so that others may end what is prepared."""
        if not self.connection.invalidated:
            self.connection.invalidate()
        super().rollback()


def begin_branch(database: Database, branch: BranchId, before_begin: BeforeBegin = None) -> LocalTransaction:
    """Begin a transaction that can be prepared; a plain one on SQLite, which knows no such thing."""
    if database.kind == "postgresql":
        return _PostgreSQLBranch(database, branch, before_begin)
    if database.kind == "sqlite":
        return LocalTransaction(database, before_begin=before_begin)
    return _XaBranch(database, branch, before_begin)


def require_two_phase(tx: LocalTransaction) -> None:
    """Raise TwoPhaseUnavailable where the transaction's server cannot keep a prepared transaction, or not for good."""
    name = tx.database.name
    if not isinstance(tx, PreparableTransaction):
        raise TwoPhaseUnavailable(
            f"database {name!r} is SQLite, which cannot prepare a transaction, so it cannot be a branch of a two-phase "
            f"saga. Nothing was committed. Make it home, saga(…, home={name!r}), if it is the only one; else leave out "
            'commit="two_phase": such a saga recovers backward, on any database.'
        )
    if tx.database.kind == "postgresql":
        with tx.mapped_errors(), tx.internal():
            allowed = tx.connection.exec_driver_sql("SHOW max_prepared_transactions").scalar_one()
        if int(allowed) == 0:
            raise TwoPhaseUnavailable(
                f"database {name!r}: its PostgreSQL server keeps no prepared transactions: max_prepared_transactions "
                "is 0, as it is by default. Nothing was committed. Set it to at least max_connections and restart the "
                f'server, make {name!r} home, or leave out commit="two_phase".'
            )
        return
    dialect: Any = tx.connection.dialect
    version = dialect.server_version_info
    first = _FIRST_MARIADB if dialect.is_mariadb else _FIRST_MYSQL
    if version < first:
        raise TwoPhaseUnavailable(
            f"database {name!r}: expected {'MariaDB' if dialect.is_mariadb else 'MySQL'} "
            f"{'.'.join(map(str, first))} or newer, and found {'.'.join(map(str, version))}, which forgets a prepared "
            'transaction together with its connection. Nothing was committed. Leave out commit="two_phase".'
        )
    if prepared_branches(tx.database) is None:
        raise TwoPhaseUnavailable(
            f"database {name!r}: its user may not list prepared transactions, so that no worker could end one after a "
            'crash. Nothing was committed. GRANT XA_RECOVER_ADMIN, or leave out commit="two_phase".'
        )


def prepared_branches(database: Database) -> list[BranchId] | None:
    """The prepared branches of sagas in this database; None where its user may not list any.

    Raises DatabaseUnavailable.
    """
    if database.kind == "sqlite":
        return []
    with _alone(database) as connection, closing(_cursor(connection)) as cursor:
        if database.kind == "postgresql":
            cursor.execute("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")
            found = [BranchId.from_gid(gid) for (gid,) in cursor.fetchall()]
        else:
            try:
                cursor.execute("XA RECOVER")
            except Exception as error:
                if _code(error) not in _MAY_NOT_LIST:
                    raise
                return None
            found = [_from_xa_row(database, *row) for row in cursor.fetchall()]
    return [one for one in found if one is not None]


def prepared_header(branch: BranchId) -> SagaHeader:
    """What the name of a prepared branch tells of its saga; each of its other branches has a name of its own."""
    return SagaHeader(branch.saga_id, "?", branch.home, (branch.home, branch.branch), Mode.TWO_PHASE)


def _from_xa_row(database: Database, number: int, gtrid: int, bqual: int, data: bytes | str) -> BranchId | None:
    text = data.decode("latin-1") if isinstance(data, bytes) else data
    return BranchId.from_xid(database, number, text[:gtrid], text[gtrid : gtrid + bqual])


def finish(database: Database, branch: BranchId, *, commit: bool) -> None:
    """End a prepared branch on a connection of its own; one that somebody else has ended is left alone.

    Raises LockTimeout where the connection that prepared it is still there, and what else the database answers.
    """
    verb = "COMMIT" if commit else "ROLLBACK"
    postgresql = database.kind == "postgresql"
    name = f"{verb} PREPARED '{branch.gid()}'" if postgresql else f"XA {verb} {branch.xid(database)}"
    with _alone(database) as connection:
        try:
            _send(connection, name)
        except Exception as error:
            if _code(error) not in {_NO_SUCH_NAME, _XAER_NOTA}:
                raise
        else:
            return
    # An XA id is unknown to other connections, though listed, as long as its own is open.
    if not postgresql and branch in (prepared_branches(database) or ()):
        raise LockTimeout(
            f"database {database.name!r}: the prepared branch of saga {branch.saga_id} still belongs to the connection "
            "that prepared it. It can be ended once that is closed; a worker will."
        )


@contextmanager
def _alone(database: Database) -> Iterator[sa.Connection]:
    with database.mapped_errors(), database.autocommit.connect() as connection:
        try:
            with _mapped(database):
                yield connection
        except DatabaseUnavailable:
            connection.invalidate()  # SQLAlchemy has not seen that it is lost
            raise


@contextmanager
def _mapped(database: Database) -> Iterator[None]:
    """What `mapped_errors` does, for the driver's own exceptions."""
    try:
        yield
    except Exception as error:
        failure = None if isinstance(error, sa.exc.SQLAlchemyError) else classify(error)
        if failure is None:
            raise
        raise failure.error(describe(failure, database.name, database.settings.address())) from error


def _cursor(connection: sa.Connection) -> Any:
    return connection.connection.cursor()


def _send(connection: sa.Connection, statement: str) -> str | None:
    """The tag that PostgreSQL answers with."""
    with closing(_cursor(connection)) as cursor:
        cursor.execute(statement)
        return getattr(cursor, "statusmessage", None)


def _code(error: Exception) -> object:
    return getattr(error, "sqlstate", None) or (error.args[0] if error.args else None)

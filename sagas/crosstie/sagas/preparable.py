"""Transactions that are prepared before they commit, and the servers' lists of those that are.

A prepared transaction outlives its connection and its server: only COMMIT or ROLLBACK by its name ends it. What goes to
the server here bypasses SQLAlchemy, which would begin a transaction around it.
https://www.postgresql.org/docs/current/sql-prepare-transaction.html, https://mariadb.com/kb/en/xa-transactions/
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, Final, TypeAlias

import sqlalchemy as sa

from crosstie.orm.commit import can_depart, depart, end_on_our_side
from crosstie.orm.database import Database
from crosstie.orm.driver_errors import classify, describe
from crosstie.orm.errors import DatabaseUnavailable, LockTimeout, TransactionPoisoned
from crosstie.orm.in_transaction import in_transaction
from crosstie.orm.joint_commit import Request
from crosstie.orm.local_transaction import LocalTransaction
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
        """Whether the server keeps it, or may: true from when it is asked to, and until it says no."""
        super().__init__(database, before_begin=before_begin)

    def make_ready_to_prepare(self) -> None:
        """Run what comes before PREPARE and cannot be sent with it; after an error the transaction is still open."""
        self.run_before_commit(final=False)
        self.require_healthy()
        # A server that ended the transaction after an error would prepare an empty one.
        if not in_transaction(self.database, self.bare.connection.dbapi_connection):
            raise TransactionPoisoned(
                f"database {self.database.name!r}: expected an open transaction to prepare and found none: the server "
                "had ended it after an error. Run the whole block again."
            )
        final = self._final
        along = final is not None and final.commits_on(self.database, self.bare)
        if not (along and can_depart(self.database, self.bare)):
            self.run_final()

    def preparation(self) -> Request:
        """Has the server keep the transaction, which is ready; from then on only its name ends it.

        Raises what `commit` raises; the transaction has ended on this side then, and may be prepared all the same.
        """
        return Request(self, self._depart_to_prepare, self._prepare)

    def ending(self, *, commit: bool) -> Request:
        """Commits or rolls back what is prepared, and rolls back what is not.

        Raises DatabaseError; a worker can still do it then.
        """
        return Request(self, partial(self._depart_to_end, commit), partial(self._end, commit))

    def _depart_to_prepare(self) -> Callable[[], None] | None:
        if not can_depart(self.database, self.bare):
            return None
        self._hide()
        with self._preparing():
            if self._final is not None:
                answer = self._final.depart(self.database, self.bare, self._prepares_by())
            else:
                (statement,) = self._prepares_by()
                answer = depart(self.database, self.bare, statement)

        def arrive() -> None:
            with self._preparing():
                told = answer()
                self._require_prepared(told.tag)
            if self._final is not None:
                self._final.then(told)

        return arrive

    def _prepare(self) -> None:
        self._hide()
        (statement,) = self._prepares_by()
        with self._preparing():
            self._require_prepared(_send(self.bare, statement))

    def _depart_to_end(self, commit: bool) -> Callable[[], None] | None:
        if not (self.is_prepared and self.is_open and can_depart(self.database, self.bare)):
            return None
        with self._letting_go():
            answer = depart(self.database, self.bare, _ends_by(self.database, self.branch, commit=commit))

        def arrive() -> None:
            with self._letting_go():
                try:
                    answer()
                except Exception as error:
                    if _code(error) != _NO_SUCH_NAME:  # else somebody has ended it already
                        raise
                if commit:
                    end_on_our_side(self.bare, self.bare.connection.dbapi_connection)
            if commit:
                self._end_committed(None)
            else:
                LocalTransaction.rollback(self)

        return arrive

    @abstractmethod
    def _end(self, commit: bool) -> None: ...

    @abstractmethod
    def _prepares_by(self) -> Sequence[str]:
        """What the server is told, after a last statement if there is one; without one it is one statement."""

    def _require_prepared(self, tag: str | None) -> None:
        # A failed transaction is answered with ROLLBACK, and that is no error.
        if tag and tag != "PREPARE TRANSACTION":
            raise TransactionPoisoned(
                f"database {self.database.name!r} answered PREPARE TRANSACTION with {tag}: a statement had failed in "
                "the transaction. Run the whole block again."
            )

    @contextmanager
    def _preparing(self) -> Iterator[None]:
        with self._letting_go():
            # Set before the statement: where its answer is lost, it may have been prepared.
            self.is_prepared = True
            try:
                yield
            except Exception as error:
                failure = classify(error)
                if isinstance(error, TransactionPoisoned) or (failure is not None and not failure.commit_unknown):
                    self.is_prepared = False
                raise

    @contextmanager
    def _letting_go(self) -> Iterator[None]:
        """After an error nothing here keeps others from ending what may be prepared."""
        try:
            with _mapped(self.database):
                yield
        except BaseException:
            self.rollback()
            raise


class _PostgreSQLBranch(PreparableTransaction):
    def _prepares_by(self) -> Sequence[str]:
        return (f"PREPARE TRANSACTION '{self.branch.gid()}'",)

    def _end(self, commit: bool) -> None:
        if self.is_open:
            self.rollback()  # what is prepared is not on the connection any more, and may be ended on any
        if self.is_prepared:
            finish(self.database, self.branch, commit=commit)


class _XaBranch(PreparableTransaction):
    """The server lets no other connection end a prepared transaction while this one is there."""

    def __init__(self, database: Database, branch: BranchId, before_begin: BeforeBegin) -> None:
        self._xid = branch.xid(database)
        self._has_ended = False
        super().__init__(database, branch, before_begin)
        self.commits_by = (f"XA END {self._xid}", f"XA COMMIT {self._xid} ONE PHASE")
        try:
            with _mapped(database):
                _send(self.bare, f"XA START {self._xid}")
        except BaseException:
            super().rollback()
            raise

    def make_ready_to_prepare(self) -> None:
        """Send XA END, too, where it cannot be in one request with XA PREPARE."""
        super().make_ready_to_prepare()
        if self._final is None:
            with _mapped(self.database):
                _send(self.bare, f"XA END {self._xid}")
            self._has_ended = True

    def _prepares_by(self) -> Sequence[str]:
        prepare = f"XA PREPARE {self._xid}"
        return (prepare,) if self._has_ended else (f"XA END {self._xid}", prepare)

    def _end(self, commit: bool) -> None:
        if self.is_open and self.is_prepared:
            with self._letting_go():
                _send(self.bare, _ends_by(self.database, self.branch, commit=commit))
            super().rollback()
        elif self.is_open:
            self.rollback()
        elif self.is_prepared:
            finish(self.database, self.branch, commit=commit)

    def rollback(self) -> None:
        """Roll back; what is prepared is let go instead, because home may have committed."""
        if not self.is_open:
            return
        if self.is_prepared:
            self._let_go()
            return
        try:
            # After a failed XA END, XA ROLLBACK is what is left; the other way round it is refused.
            for statement in (f"XA END {self._xid}", f"XA ROLLBACK {self._xid}")[self._has_ended :]:
                _send(self.bare, statement)
        except Exception as error:
            if classify(error) is None and not isinstance(error, sa.exc.SQLAlchemyError):
                raise
            logger.debug("XA ROLLBACK on %r failed, its connection is discarded: %s", self.database.name, error)
            self.bare.invalidate()
        super().rollback()

    def _let_go(self) -> None:
        """Close the connection, so that others may end what is prepared."""
        if not self.bare.invalidated:
            self.bare.invalidate()
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
    dialect: Any = tx.bare.dialect
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
    with _alone(database) as connection:
        try:
            _send(connection, _ends_by(database, branch, commit=commit))
        except Exception as error:
            if _code(error) not in {_NO_SUCH_NAME, _XAER_NOTA}:
                raise
        else:
            return
    # An XA id is unknown to other connections, though listed, as long as its own is open.
    if database.kind != "postgresql" and branch in (prepared_branches(database) or ()):
        raise LockTimeout(
            f"database {database.name!r}: the prepared branch of saga {branch.saga_id} still belongs to the connection "
            "that prepared it. It can be ended once that is closed; a worker will."
        )


def _ends_by(database: Database, branch: BranchId, *, commit: bool) -> str:
    verb = "COMMIT" if commit else "ROLLBACK"
    return f"{verb} PREPARED '{branch.gid()}'" if database.kind == "postgresql" else f"XA {verb} {branch.xid(database)}"


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

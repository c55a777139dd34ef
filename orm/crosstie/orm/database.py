"""A configured database: its two engines, and what its dialect can do.

`engine` runs transactions; `autocommit` runs single statements and saves them BEGIN and COMMIT round trips. Both are
made on first use and never shared with a forked child.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from crosstie.orm.answer import Answer
from crosstie.orm.configuration import ConnectionSettings
from crosstie.orm.driver_errors import MappedErrors
from crosstie.orm.liveness import Liveness
from crosstie.orm.lock_wait import bound_every_wait, watch_sessions
from crosstie.orm.pool import ENDED, RestingPool, pool_of
from crosstie.orm.prepared import Prepared
from crosstie.orm.statement_limit import watch_statements

__all__ = ["Capabilities", "Database"]

_AUTOCOMMIT: Final = "crosstie_autocommit"
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Capabilities:
    """What differs between dialects, by name."""

    insert_returning: bool
    lastrowid: bool
    """The driver tells the number that an INSERT of one row was given, which costs less than RETURNING."""
    update_returning: bool
    force_constraints: bool
    """SET CONSTRAINTS ALL IMMEDIATE checks deferred constraints before COMMIT does."""
    transactional_ddl: bool
    storage_engines: bool
    """Tables may live in an engine that cannot roll back (MyISAM, Aria)."""
    parameter_limit: int
    """How many bound values one statement may carry."""
    on_conflict: bool = True
    """An insert can name the unique constraint whose conflict it answers; MySQL's takes any."""
    array_parameters: bool = False
    """A list of any length is one bound value."""
    bounds_lock_waits: Literal["query", "session"] | None = None
    """What can bound how long a transaction waits for a lock, from within."""
    one_writer: bool = False
    """An open transaction keeps every other from beginning."""
    shows_before_durable: bool = False
    """Others may see a transaction that its server, should it die now, will not find again."""


_CAPABILITIES: Final = {
    "sqlite": Capabilities(True, True, True, False, True, False, 32_000, one_writer=True, bounds_lock_waits="session"),
    "postgresql": Capabilities(
        True, False, True, True, True, False, 65_000, array_parameters=True, bounds_lock_waits="query"
    ),
    "mariadb": Capabilities(
        True, True, False, False, False, True, 65_000, on_conflict=False,
        bounds_lock_waits="session", shows_before_durable=True,
    ),
    "mysql": Capabilities(
        False, True, False, False, False, True, 65_000, on_conflict=False,
        bounds_lock_waits="session", shows_before_durable=True,
    ),
}  # fmt: skip


class Database:
    """One configured connection name; safe to share between threads.

    `on_engine` are called with each engine before its first use: layers above listen to its events.
    """

    on_engine: ClassVar[list[Callable[[Database, sa.Engine], None]]] = []

    def __init__(self, name: str, settings: ConnectionSettings) -> None:
        self.name = name
        self.settings = settings
        self.kind: str = settings.driver
        self.capabilities = _CAPABILITIES[settings.driver]
        self.liveness = Liveness()
        self._mapped_errors = MappedErrors(name, settings.address())
        self._lock = threading.Lock()
        self._engine: sa.Engine | None = None
        self._autocommit: sa.Engine | None = None

    def __repr__(self) -> str:
        return f"Database({self.name!r}, {self.settings.address()})"

    @property
    def engine(self) -> sa.Engine:
        """The engine for transactions."""
        if self._engine is None:
            with self._lock:
                if (engine := self._engine) is None:
                    engine = self._engine = self._create(autocommit=False)
            return engine
        return self._engine

    @property
    def autocommit(self) -> sa.Engine:
        """The engine whose statements each commit by themselves."""
        if self._autocommit is None:
            with self._lock:
                if (engine := self._autocommit) is None:
                    engine = self._autocommit = self._create(autocommit=True)
            return engine
        return self._autocommit

    @property
    def dialect(self) -> sa.Dialect:
        """The SQLAlchemy dialect; known without a connection."""
        return self.engine.dialect

    def mapped_errors(self) -> MappedErrors:
        """A context manager that turns driver errors into ours, naming this database."""
        return self._mapped_errors

    def take(self) -> sa.Connection:
        """A connection for one transaction, for `give_back` once that has ended. Raises SQLAlchemy's errors."""
        engine = self.engine
        return pool_of(engine).take(engine, not_since=self.liveness.lost_at)

    def give_back(self, connection: sa.Connection, *, shown: bool = False) -> None:
        """Close a connection that was taken, or let the next who takes one have it, unless a caller was `shown` it."""
        pool_of(connection.engine).give_back(connection, shown=shown)

    @contextmanager
    def alone(self) -> Iterator[sa.Connection]:
        """A connection for a statement that commits by itself. Raises DatabaseUnavailable, and what it refuses."""
        engine = self.autocommit
        with self._mapped_errors:
            connection = pool_of(engine).take(engine, not_since=self.liveness.lost_at)
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            self.give_back(connection)

    def ping(self) -> float:
        """Ask the database a trivial question on a fresh or tested connection; returns the seconds that it took.

        Raises DatabaseUnavailable.
        """
        start = time.perf_counter()
        with self.mapped_errors(), self.autocommit.connect() as connection:
            connection.execute(sa.select(1)).scalar_one()
        return time.perf_counter() - start

    def rows(self, query: sa.Executable, values: Mapping[str, Any] | None = None) -> list[sa.Row[*tuple[Any, ...]]]:
        """What a query answers outside any transaction. Raises DatabaseUnavailable, and what the database refuses."""
        with self.mapped_errors(), self.autocommit.connect() as connection:
            return list(connection.execute(query, values).all())

    def prepared(self, statement: Prepared, values: Mapping[str, Any], *, returns: bool = True) -> Answer:
        """Run a prepared statement by itself; `returns` says that it returns rows. Raises as `rows` does."""
        with self.alone() as connection:
            return statement.fetch(connection, values) if returns else statement.run(connection, values)

    def dispose(self, *, close: bool = True) -> None:
        """Close pooled connections; `close=False` in a forked child, whose parent still owns the sockets."""
        for engine in (self._engine, self._autocommit):  # without the lock, which a forked child may find locked
            if engine is not None:
                if not close:
                    pool_of(engine).abandon()
                engine.dispose(close=close)
        if not close:
            self._lock = threading.Lock()
            self._engine = self._autocommit = None

    @staticmethod
    def is_autocommit(engine: sa.Engine) -> bool:
        """Whether each statement of this engine commits by itself."""
        return bool(engine.get_execution_options().get(_AUTOCOMMIT, False))

    def engines(self) -> list[sa.Engine]:
        """Those made so far, which `on_engine` may not have been called with if it was added meanwhile."""
        with self._lock:  # one that is being made is waited for
            return [engine for engine in (self._engine, self._autocommit) if engine is not None]

    def _create(self, *, autocommit: bool) -> sa.Engine:
        settings = self.settings
        arguments: dict[str, Any] = {
            "pool_size": settings.pool_size,
            "max_overflow": settings.max_overflow,
            "pool_timeout": settings.pool_timeout_s,
            "pool_recycle": settings.pool_recycle_s,
            "poolclass": RestingPool,
            "pool_reset_on_return": None,  # see _reset_unless_ended
            "hide_parameters": True,
            "execution_options": {_AUTOCOMMIT: autocommit},
            "logging_name": self.name,
            "connect_args": _connect_arguments(settings),
            # Without it each single statement costs MySQL a ROLLBACK round trip with nothing to roll back.
            "skip_autocommit_rollback": autocommit,
        }
        if settings.driver != "sqlite":
            # One default everywhere: MySQL's own, REPEATABLE READ, takes gap locks and reads old snapshots.
            arguments["isolation_level"] = "AUTOCOMMIT" if autocommit else "READ COMMITTED"
        engine = sa.create_engine(settings.url(), **arguments)
        if settings.driver == "sqlite":
            _prepare_sqlite(engine, settings, autocommit=autocommit)
        elif settings.driver == "postgresql":
            from crosstie.orm.array_dumper import write_arrays_at_once  # needs the driver, which others do without

            write_arrays_at_once(engine)
        else:
            _lift_read_timeout(engine, settings)
        if settings.driver != "sqlite":
            bound_every_wait(engine, settings.lock_timeout_s)
        if not autocommit:
            _reset_unless_ended(engine)
        self.liveness.watch(engine)
        if autocommit:
            watch_statements(engine, self.kind)
        if not autocommit and self.capabilities.bounds_lock_waits == "session":
            watch_sessions(engine)
        for listener in self.on_engine:
            listener(self, engine)
        pool_of(engine).expect_listeners()
        return engine


def _reset_unless_ended(engine: sa.Engine) -> None:
    """Roll a returned connection back, but not one whose transaction was just ended: that is a round trip on MySQL."""

    def reset(dbapi_connection: DBAPIConnection, entry: ConnectionPoolEntry, state: sa.pool.PoolResetState) -> None:
        if not entry.info.pop(ENDED, False) and not state.transaction_was_reset:
            dbapi_connection.rollback()

    event.listen(engine, "reset", reset)


def _connect_arguments(settings: ConnectionSettings) -> dict[str, Any]:
    if settings.driver == "sqlite":
        return {"check_same_thread": False, "timeout": settings.busy_timeout_s, **settings.options}
    if settings.driver == "postgresql":
        defaults: dict[str, Any] = {"connect_timeout": settings.connect_timeout_s, "options": "-c timezone=UTC"}
    else:
        defaults = {
            "connect_timeout": settings.connect_timeout_s,
            # PyMySQL's connect timeout ends with the TCP handshake, and a server may accept and never say a word.
            "read_timeout": settings.connect_timeout_s,
            "charset": "utf8mb4",
            "init_command": "SET time_zone = '+00:00'",
        }
        if settings.host in _LOOPBACK and not any(option.startswith("ssl") for option in settings.options):
            # A TLS context costs each new connection some 20 ms, and there is no network to be protected from.
            defaults["ssl_disabled"] = True
    return defaults | settings.options


def _lift_read_timeout(engine: sa.Engine, settings: ConnectionSettings) -> None:
    """Once connected, a query may take as long as it takes, unless the configuration says otherwise."""

    def connected(dbapi_connection: Any, _: ConnectionPoolEntry) -> None:
        dbapi_connection._read_timeout = settings.options.get("read_timeout")

    event.listen(engine, "connect", connected)


def _prepare_sqlite(engine: sa.Engine, settings: ConnectionSettings, *, autocommit: bool) -> None:
    def connected(dbapi_connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        # sqlite3's own transaction handling begins late and never for SELECT; BEGIN IMMEDIATE below replaces it.
        dbapi_connection.isolation_level = None
        cursor = dbapi_connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(settings.busy_timeout_s * 1000)}")
        if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal" and not settings.read_only:
            cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.close()

    def begun(connection: sa.Connection) -> None:
        # A deferred transaction that reads first and writes later fails at once with SQLITE_BUSY where another wrote.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "connect", connected)
    if not autocommit:
        event.listen(engine, "begin", begun)

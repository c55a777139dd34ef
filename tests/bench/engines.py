"""The three kinds of database as the bench reaches them: raw driver connections, CREATE and DROP DATABASE."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from typing import Any, Final, Literal

import psycopg
import pymysql
from psycopg import sql
from pymysql.constants import CLIENT, ER
from sqlalchemy.engine import make_url

__all__ = [
    "KINDS",
    "LOCK_TIMEOUT_S",
    "DatabaseKind",
    "ServedKind",
    "admin_of",
    "connect",
    "create",
    "disconnect",
    "drop",
    "hang_up",
    "server_config",
    "sessions",
]

ServedKind = Literal["postgresql", "mariadb"]
DatabaseKind = Literal["sqlite", "postgresql", "mariadb"]
KINDS: Final[tuple[DatabaseKind, ...]] = ("sqlite", "postgresql", "mariadb")
CONNECT_TIMEOUT_S: Final = 30
"""A server that is up and answers late is no error of a test; on a machine with much to do it may be that late."""
LOCK_TIMEOUT_S: Final = 10

_admins: Final[dict[tuple[object, ...], Any]] = {}


def server_config(kind: ServedKind, url: str) -> dict[str, Any]:
    """The connection to the server's own database, from which others are created and dropped."""
    where = make_url(url)
    return {
        "driver": kind,
        "host": where.host or "127.0.0.1",
        "port": where.port or {"postgresql": 5432, "mariadb": 3306}[kind],
        "database": {"postgresql": "postgres", "mariadb": "mysql"}[kind],
        "username": where.username or "root",
        "password": where.password or "",
    }


def connect(config: Mapping[str, Any], *, client_flag: int = 0) -> Any:
    """A raw DBAPI connection in autocommit; the caller closes it."""
    if config["driver"] == "sqlite":
        return sqlite3.connect(config["database"], isolation_level=None, timeout=LOCK_TIMEOUT_S)
    if config["driver"] == "postgresql":
        return psycopg.connect(
            host=config["host"],
            port=config["port"],
            dbname=config["database"],
            user=config["username"],
            password=config["password"] or None,
            connect_timeout=CONNECT_TIMEOUT_S,
            autocommit=True,
        )
    return pymysql.connect(
        host=config["host"],
        port=config["port"],
        database=config["database"],
        user=config["username"],
        password=config["password"],
        connect_timeout=CONNECT_TIMEOUT_S,
        autocommit=True,
        charset="utf8mb4",
        ssl_disabled=True,  # trying TLS reads all of the system's certificates, 20 ms each time
        client_flag=client_flag,
    )


def admin_of(server: Mapping[str, Any]) -> Any:
    """This process's one connection to the server's own database: PostgreSQL takes ten milliseconds to make one.

    On MariaDB it takes several statements at once.
    """
    key = _key(server)
    if key not in _admins:
        _admins[key] = connect(server, client_flag=CLIENT.MULTI_STATEMENTS)
    return _admins[key]


def hang_up(server: Mapping[str, Any] | None = None) -> None:
    """Close that connection, or those to all servers; the next call of `admin_of` makes another."""
    for key in [_key(server)] if server else [key for key in _admins if key[0] == os.getpid()]:
        if key in _admins:
            _admins.pop(key).close()


def _key(server: Mapping[str, Any]) -> tuple[object, ...]:
    return (os.getpid(), *sorted(server.items()))  # a fork must not talk over its parent's


def create(kind: ServedKind, admin: Any, name: str) -> None:
    """Create an empty database that holds any Unicode text."""
    with closing(admin.cursor()) as cursor:
        if kind == "postgresql":
            # template0: nobody can be connected to it, which would make CREATE DATABASE fail.
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'")
            cursor.execute(statement.format(sql.Identifier(name)))
        else:
            cursor.execute(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")


def drop(kind: ServedKind, admin: Any, name: str) -> None:
    """Drop a database, whoever is still connected to it."""
    if kind == "postgresql":
        _drop_postgresql(admin, name)
    else:
        _drop_mariadb(admin, name)


def _drop_postgresql(admin: psycopg.Connection[Any], name: str) -> None:
    # FORCE came with PostgreSQL 13; before it, the connections are ended by hand.
    force = sql.SQL(" WITH (FORCE)") if admin.info.server_version >= 130_000 else sql.SQL("")
    if not force.as_string():
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
    admin.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)) + force)


def _drop_mariadb(admin: pymysql.Connection[Any], name: str) -> None:
    # A transaction left open holds metadata locks, for which DROP would wait a day by default.
    disconnect(admin, name)
    with closing(admin.cursor()) as cursor:
        cursor.execute(f"SET SESSION lock_wait_timeout = {LOCK_TIMEOUT_S}")
        cursor.execute(f"DROP DATABASE IF EXISTS `{name}`")


def sessions(admin: pymysql.Connection[Any], name: str) -> list[int]:
    """Who is connected to a database of MariaDB."""
    with closing(admin.cursor()) as cursor:
        cursor.execute("SELECT id FROM information_schema.processlist WHERE db = %s", [name])
        return [int(row[0]) for row in cursor.fetchall()]


def disconnect(admin: pymysql.Connection[Any], name: str) -> None:
    """End all connections to a database of MariaDB but the one that asks."""
    for connection_id in set(sessions(admin, name)) - {admin.thread_id()}:
        try:
            admin.kill(connection_id)
        except pymysql.err.OperationalError as error:
            if error.args[0] != ER.NO_SUCH_THREAD:  # it left by itself between the two statements
                raise

"""Databases are made like new and used again: making one, with crosstie's tables, takes most of the time of most tests.

There are empty ones (on PostgreSQL; MariaDB makes those in a millisecond) and furnished ones, which have crosstie's
tables. A database is used again only where that cannot be noticed: nobody is connected any more or has a prepared
transaction, and it looks as it did when it was made, its rows and counters too. Otherwise it is dropped.

PostgreSQL's get a new name, under which nobody who still has the old one can reach them. MariaDB would have to move
each table, which takes longer than to make them, so there they keep their name. Who might still have it: processes of
the test, which are killed before it is given back; pools, which are closed by then, and would be seen connected;
crosstie's caches, which belong to a configuration, and never to a name. And the name still tells whose the database is
(leftovers.py), because only the process that made it uses it again.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal

import psycopg
import pymysql

from bench import engines, recycling_mariadb, recycling_postgresql, schema
from bench.leftovers import owner_pid, unique_name

__all__ = ["drop_idle", "give_back", "take"]

State = Literal["empty", "furnished"]

_idle: Final[list[tuple[dict[str, Any], State, str]]] = []
_looks: Final[dict[str, Any]] = {}
"""How furnished databases looked when they were made, by name."""


def take(server: dict[str, Any], *, furnished: bool = False) -> str:
    """Return the name of a database that nobody else has; it is empty, or has crosstie's tables alone."""
    with _admin_of(server) as admin:
        name = (furnished and _used_again(admin, server, "furnished")) or _used_again(admin, server, "empty")
        if not name:
            name = unique_name()
            engines.create(server["driver"], admin, name)
        if furnished and name not in _looks:
            try:
                schema.fill(server | {"database": name})
                _looks[name] = _look(admin, server, name)
            except BaseException:
                _drop(admin, server, name)
                raise
        return name


def give_back(server: dict[str, Any], name: str) -> None:
    """Keep the database for another test if it can be made like new; drop it otherwise."""
    try:
        with _admin_of(server) as admin:
            state = _made_like_new(admin, server, name)
    except (psycopg.Error, pymysql.MySQLError):
        state = None
    if state != "furnished":
        _looks.pop(name, None)
    if state is not None:
        _idle.append((server, state, name))
        return
    with _admin_of(server) as admin:
        _drop(admin, server, name)


@atexit.register
def drop_idle() -> None:
    """Drop what this process keeps; a fork's copy of the list is not its own."""
    while _idle:
        server, _, name = _idle.pop()
        if owner_pid(name) == os.getpid():
            with _admin_of(server) as admin:
                _drop(admin, server, name)
    engines.hang_up()


@contextmanager
def _admin_of(server: dict[str, Any]) -> Iterator[Any]:
    try:
        yield engines.admin_of(server)
    except (psycopg.Error, pymysql.MySQLError):
        engines.hang_up(server)  # nobody knows what its session has locked, or whether there is one
        raise


def _used_again(admin: Any, server: dict[str, Any], state: State) -> str | None:
    for idle in [one for one in reversed(_idle) if one[:2] == (server, state) and owner_pid(one[2]) == os.getpid()]:
        _idle.remove(idle)
        old = idle[2]
        if server["driver"] == "mariadb":
            if not engines.sessions(admin, old):
                return old
        else:
            new = unique_name()
            if recycling_postgresql.renamed(admin, old, new):
                if old in _looks:
                    _looks[new] = _looks.pop(old)
                return new
        _drop(admin, server, old)  # a leaked pool has connected to it again
    return None


def _made_like_new(admin: Any, server: dict[str, Any], name: str) -> State | None:
    look = _looks.get(name)
    if server["driver"] == "mariadb":
        return "furnished" if look and recycling_mariadb.restored(admin, name, look) else None
    if not recycling_postgresql.deserted(admin, name):
        return None
    if look and recycling_postgresql.restored(server | {"database": name}, look):
        return "furnished"
    return "empty" if recycling_postgresql.emptied(server | {"database": name}) else None


def _look(admin: Any, server: dict[str, Any], name: str) -> Any:
    if server["driver"] == "mariadb":
        return recycling_mariadb.look(admin, name)
    return recycling_postgresql.look(server | {"database": name})


def _drop(admin: Any, server: dict[str, Any], name: str) -> None:
    _looks.pop(name, None)
    engines.drop(server["driver"], admin, name)

"""Statements that would end a branch's transaction behind the saga's back, refused before they run.

On MySQL and MariaDB every DDL statement commits what came before it.
https://dev.mysql.com/doc/refman/8.4/en/implicit-commit.html
"""

from __future__ import annotations

import re
from weakref import WeakSet

import sqlalchemy as sa

from crosstie.orm.local_transaction import LocalTransaction, current
from crosstie.orm.prepared import guard_statements
from crosstie.orm.transaction import active_unit
from crosstie.sagas.errors import SagaNotUndoable

__all__ = ["commits_implicitly", "refuse_implicit_commits"]

_FIRST_WORDS = re.compile(r"(?:\s+|/\*.*?\*/|--[^\n]*\n|#[^\n]*\n)*(\w+)(?:\s+(\w+))?", re.DOTALL)
_ENDS_ANYWHERE = frozenset({"BEGIN", "COMMIT", "END", "ROLLBACK", "START"})
_ENDS_ON_MYSQL = frozenset(
    {
        "ALTER", "ANALYZE", "CACHE", "CREATE", "DROP", "FLUSH", "GRANT", "INSTALL", "LOAD", "LOCK", "OPTIMIZE",
        "RENAME", "REPAIR", "RESET", "REVOKE", "TRUNCATE", "UNINSTALL", "UNLOCK",
    }
)  # fmt: skip


def commits_implicitly(statement: str, kind: str) -> str | None:
    """The word that makes a statement end the transaction it runs in, or None."""
    words = _FIRST_WORDS.match(statement)
    if words is None:
        return None
    first, second = words[1].upper(), (words[2] or "").upper()
    if first in _ENDS_ANYWHERE:
        return None if first == "ROLLBACK" and second == "TO" else first
    if (first, second) == ("PREPARE", "TRANSACTION") or (first == "XA" and kind in {"mysql", "mariadb"}):
        return first
    if kind in {"mysql", "mariadb"} and first in _ENDS_ON_MYSQL and second != "TEMPORARY":
        return first
    return None


def refuse_implicit_commits(tx: LocalTransaction) -> None:
    """From now on, refuse such statements on this database's connections while a saga holds them."""
    engine = tx.bare.engine
    if engine in _guarded:
        return
    _guarded.add(engine)
    name = tx.database.name

    def refuse(connection: sa.Connection, statement: str) -> None:
        tx = current(name)
        if active_unit() is None or tx is None or tx.bare is not connection:
            return
        word = commits_implicitly(statement, tx.database.kind)
        if word is not None:
            raise SagaNotUndoable(
                f"{word} on database {name!r} inside a saga would commit what the saga has written so far. It was not "
                "run; run it outside the saga."
            )

    guard_statements(engine, refuse)


_guarded: WeakSet[sa.Engine] = WeakSet()

"""What was read, made sure to outlive the server that was read from, before anything elsewhere follows from it.

InnoDB lets others see a transaction before its log is on disk: it commits in memory, and only then waits for the disk
with its answer. A server that dies in between has never heard of it when it comes back. Within that database nothing
follows: whatever was built upon it stands behind it in the log, and is lost together with it. An event that was
delivered to another database is not, nor is a branch that was settled because its home said `committed`.

The log is one, and is written in order. So what was read is durable once the log is flushed as far as it was when the
reading had ended, and whoever commits something there after it has flushed it. Servers with a binary log have written
it before anybody sees the transaction, and rebuild from it; PostgreSQL and SQLite flush first, too.
"""

from __future__ import annotations

from secrets import SystemRandom
from typing import Final
from weakref import WeakKeyDictionary

import sqlalchemy as sa

from crosstie.orm.database import Database
from crosstie.orm.prepared import Prepared
from crosstie.outbox.tables import flush as flushes
from crosstie.outbox.upsert import insert_if_absent

__all__ = ["await_durable"]

SLOTS: Final = 16
"""Rows of crosstie_flush: whoever has to commit something there seldom waits for another."""
_random: Final = SystemRandom()
_logs_first: WeakKeyDictionary[Database, bool] = WeakKeyDictionary()


def await_durable(database: Database) -> None:
    """Return once all that this process has read from the database would be found again after its server had died.

    One query where the log is flushed already, else one durable commit more; nothing but on MySQL and MariaDB without
    a binary log. As durable as the server makes commits: with innodb_flush_log_at_trx_commit = 0 that is not at all.
    Raises DatabaseUnavailable.
    """
    if not database.capabilities.shows_before_durable or _has_binary_log(database) or _is_flushed(database):
        return
    slot = _random.randrange(SLOTS)
    if database.prepared(_COMMIT, {"of_slot": slot}, returns=False).rowcount == 0:
        with database.mapped_errors(), database.autocommit.connect() as connection:
            insert_if_absent(connection, flushes, {"slot": slot, "turn": 0})
        database.prepared(_COMMIT, {"of_slot": slot}, returns=False)


def _has_binary_log(database: Database) -> bool:
    if database not in _logs_first:
        _logs_first[database] = bool(database.prepared(_BINARY_LOG, {}).rows[0][0])
    return _logs_first[database]


def _is_flushed(database: Database) -> bool:
    """Whether the log was flushed as far as it went when this was asked; False where the server does not tell."""
    told = {name.lower(): int(value) for name, value in database.prepared(_LSN, {}).rows}
    current, flushed = (told.get(f"innodb_lsn_{which}") for which in ("current", "flushed"))
    return current is not None and flushed is not None and flushed >= current


_BINARY_LOG: Final = Prepared(sa.text("SELECT @@GLOBAL.log_bin"))
_LSN: Final = Prepared(
    sa.text("SHOW GLOBAL STATUS WHERE Variable_name IN ('Innodb_lsn_current', 'Innodb_lsn_flushed')")
)
_COMMIT: Final = Prepared(
    sa.update(flushes).where(flushes.c.slot == sa.bindparam("of_slot")).values(turn=flushes.c.turn + 1)
)

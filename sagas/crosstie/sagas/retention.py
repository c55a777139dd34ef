"""When the records of a finished saga may go.

A record is a register that somebody slow may still want to write. `done` says no more than its absence, so it goes
after the retention. `committed` goes when no branch is left to ask for it. A tombstone (`refused`, `undone`, and
home's `finished`) goes only when no transaction older than it is open on the participant: that transaction could be
the saga's own original, stopped for an hour, and its commit must still meet the tombstone.

Where a saga recovers forward, a branch's record is the barrier before a second redo. It stays as long as home says
`owed`; a redoer that comes later finds that home does not.

Effects upon which nobody has to act any more go after the retention, too. Home's record outlives the others.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import CrosstieError, DatabaseError
from crosstie.orm.transaction import detached_transaction
from crosstie.outbox.batch import home_states
from crosstie.outbox.durability import await_durable
from crosstie.outbox.tables import effect as effects
from crosstie.outbox.tables import saga as records
from crosstie.sagas.effect import UNFINISHED
from crosstie.sagas.preparable import prepared_branches
from crosstie.sagas.record import Mode, SagaRecord

__all__ = ["prune"]

logger = logging.getLogger(__name__)


def prune(database_name: str, *, limit: int = 1000) -> int:
    """Delete records and effects of this database that nobody can need any more; returns how many rows went.

    `saga.retention_s` says how long they stay at least. Raises DatabaseUnavailable for this database.
    """
    database = ConnectionManager.get(database_name)
    old_ms = now_ms() - int(ConnectionManager.settings().saga.retention_s * 1000)
    deleted = _delete_effects(database, effects.c.updated_at_ms < old_ms, limit)
    unfinished = sa.select(effects.c.step).where(
        effects.c.saga_id == records.c.saga_id, effects.c.state.in_(UNFINISHED)
    )
    age = sa.and_(records.c.updated_at_ms < old_ms, ~unfinished.exists())
    deleted += _delete(database, _paid(_ids(database, age, ["done"], limit)), ["done"])
    committed = _ids(database, age, ["committed"], limit)
    settled = [one for one in committed if _no_branch(one, "applied") and _none_prepared(one)]
    deleted += _delete(database, settled, ["committed"])
    oldest_ms = _oldest_transaction_ms(database)
    if oldest_ms is not None:
        safe = sa.and_(age, records.c.updated_at_ms < oldest_ms)
        tombstones = ["refused", "undone"]
        deleted += _delete(database, _paid(_ids(database, safe, tombstones, limit)), tombstones)
        finished = _ids(database, safe, ["finished"], limit)
        deleted += _delete(database, [one for one in finished if _no_branch(one, *tombstones)], ["finished"])
    return deleted


def _ids(database: Database, condition: sa.ColumnElement[bool], states: list[str], limit: int) -> list[SagaRecord]:
    query = sa.select(records).where(records.c.state.in_(states), condition).limit(limit)
    with database.mapped_errors(), database.autocommit.connect() as connection:
        return [SagaRecord.from_row(row) for row in connection.execute(query)]


def _paid(found: list[SagaRecord]) -> list[SagaRecord]:
    """Without those of sagas whose homes may say `owed`; a home that cannot be asked counts as one that does."""
    by_home: dict[str, set[str]] = defaultdict(set)
    for one in found:
        if one.header.mode is Mode.FORWARD:
            by_home[one.header.home].add(one.header.saga_id)
    stay: set[str] = set()
    for home, saga_ids in by_home.items():
        try:
            states = home_states(ConnectionManager.get(home), saga_ids)
        except CrosstieError as error:
            logger.info("records of %d saga(s) of home %r stay: %s", len(saga_ids), home, error)
            stay |= saga_ids
        else:
            stay |= {saga_id for saga_id, state in states.items() if state == "owed"}
    return [one for one in found if one.header.saga_id not in stay]


def _no_branch(found: SagaRecord, *states: str) -> bool:
    """Whether no branch of this saga is in one of these states; a branch that cannot be asked counts as one that is."""
    saga_id = found.header.saga_id
    return all(
        _ask(branch, saga_id, lambda present: not set(present) & set(states)) for branch in found.header.branches
    )


def _none_prepared(found: SagaRecord) -> bool:
    """Whether no branch of this saga is prepared and has yet to ask home; one that cannot be asked counts as if."""
    if found.header.mode is not Mode.TWO_PHASE:
        return True
    try:
        listed = [prepared_branches(ConnectionManager.get(branch)) for branch in found.header.branches]
    except CrosstieError as error:
        logger.info("records of saga %s stay: %s", found.header.saga_id, error)
        return False
    return all(ids is not None and all(one.saga_id != found.header.saga_id for one in ids) for ids in listed)


def _ask(participant: str, saga_id: str, question: Callable[[list[str]], bool]) -> bool:
    try:
        database = ConnectionManager.get(participant)
        query = sa.select(records.c.state).where(records.c.saga_id == saga_id, records.c.participant == participant)
        found = [row.state for row in database.rows(query)]
        await_durable(database)
        return question(found)
    except CrosstieError as error:
        logger.info("records of saga %s stay: %s", saga_id, error)
        return False


def _delete(database: Database, found: list[SagaRecord], states: list[str]) -> int:
    if not found:
        return 0
    with detached_transaction(database.name) as tx:
        deleted = tx.connection.execute(
            sa.delete(records).where(
                records.c.saga_id.in_([one.header.saga_id for one in found]),
                records.c.participant == database.name,
                records.c.state.in_(states),
            )
        ).rowcount
        if deleted:
            tx.mark_written()
    return deleted


def _delete_effects(database: Database, age: sa.ColumnElement[bool], limit: int) -> int:
    ended = sa.and_(effects.c.state.not_in(UNFINISHED), age)
    found = {row.saga_id for row in database.rows(sa.select(effects.c.saga_id).where(ended).limit(limit))}
    if not found:
        return 0
    with detached_transaction(database.name) as tx:
        tx.mark_written()
        return tx.connection.execute(sa.delete(effects).where(effects.c.saga_id.in_(found), ended)).rowcount


_OLDEST = {
    # A session whose start we may not see counts as one that has been open for ever.
    "postgresql": "SELECT min(CASE WHEN query = '<insufficient privilege>' THEN 0"
    " ELSE CAST(extract(epoch FROM xact_start) * 1000 AS BIGINT) END) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    "mysql": "SELECT MIN(UNIX_TIMESTAMP(trx_started)) * 1000 FROM information_schema.innodb_trx"
    " WHERE trx_mysql_thread_id <> CONNECTION_ID()",
}
_PREPARED = {
    "postgresql": "SELECT min(CAST(extract(epoch FROM prepared) * 1000 AS BIGINT)) FROM pg_prepared_xacts"
    " WHERE database = current_database()",
}


def _oldest_transaction_ms(database: Database) -> int | None:
    """When the oldest open transaction here began, by the database's clock; now, if none is open; None if unknown.

    SQLite has one writer at a time, and its transactions begin by becoming the writer: a tombstone that is there was
    written while no other was open.
    """
    kind = "mysql" if database.kind == "mariadb" else database.kind
    try:
        with database.mapped_errors(), database.autocommit.connect() as connection:
            found: list[int | None] = [connection.execute(sa.select(now_ms())).scalar_one()]
            questions = [queries[kind] for queries in (_OLDEST, _PREPARED) if kind in queries]
            found += [connection.execute(sa.text(question)).scalar() for question in questions]
    except DatabaseError as error:
        logger.info("tombstones of %r stay: its open transactions cannot be seen: %s", database.name, error)
        return None
    return min(int(one) for one in found if one is not None)

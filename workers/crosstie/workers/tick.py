"""A scheduled job runs once per slot, however many beats and sweepers find it due.

A slot is a number that grows with time: the minutes or hours since the epoch at which a job is due. The row of
`crosstie_tick` is claimed by compare-and-set under a lease of the database's clock.

Invariant: whoever finishes or renews a slot says `WHERE epoch = mine`, so a holder whose lease lapsed changes nothing.
A holder that crashes keeps its slot until the lease has run out, and then the slot is claimed again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.database import Database
from crosstie.orm.errors import DuplicateKey
from crosstie.outbox.tables import tick as ticks
from crosstie.workers.errors import TickLost
from crosstie.workers.lease_keeper import LeaseKeeper

__all__ = ["Tick", "claim", "finish", "release", "renew", "running"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tick:
    """One slot of one job, held by this process until its lease runs out."""

    database: Database
    name: str
    slot: int
    epoch: int
    lease_s: float


def claim(
    database: Database, name: str, slot: int, *, owner: str, lease_s: float, already_done_slot: int = -1
) -> Tick | None:
    """Claim a slot for `lease_s` seconds; None where it is done, or somebody holds this job now.

    `already_done_slot` counts as done for a job that this database has never seen. Raises DatabaseUnavailable,
    NoSuchTable.
    """
    columns = ticks.c
    with database.mapped_errors(), database.autocommit.connect() as connection:
        query = sa.select(columns.epoch, columns.done_slot).where(columns.name == name)
        row = connection.execute(query).first()
        if row is None:
            _create(connection, database, name, already_done_slot)
            row = connection.execute(query).one()
        if row.done_slot >= slot:
            return None
        claimed = connection.execute(
            sa.update(ticks)
            .where(
                columns.name == name,
                columns.epoch == row.epoch,
                # Asked again here: the holder may have finished since the row was read, and that changes no epoch.
                columns.done_slot < slot,
                columns.lease_until_ms <= now_ms(),
            )
            .values(
                slot=slot, epoch=columns.epoch + 1, owner=owner[:120], lease_until_ms=now_ms() + int(lease_s * 1000)
            )
        )
        if claimed.rowcount != 1:
            return None
    return Tick(database, name, slot, row.epoch + 1, lease_s)


def _create(connection: sa.Connection, database: Database, name: str, done_slot: int) -> None:
    try:
        with database.mapped_errors():
            connection.execute(sa.insert(ticks).values(name=name, done_slot=done_slot))
    except DuplicateKey:
        logger.debug("another process has just created the tick %r of %r", name, database.name)


def renew(tick: Tick) -> None:
    """Prolong the lease to its full length from now. Raises TickLost, DatabaseUnavailable."""
    _update(tick, lease_until_ms=now_ms() + int(tick.lease_s * 1000))


def finish(tick: Tick) -> None:
    """Mark the slot done, for good. Raises TickLost where the lease had run out and another process has the job."""
    _update(tick, done_slot=tick.slot, lease_until_ms=0)


def release(tick: Tick) -> None:
    """Let others claim the same slot at once; nothing happens where they could already."""
    try:
        _update(tick, lease_until_ms=0)
    except TickLost as error:
        logger.debug("%s", error)


def _update(tick: Tick, **values: object) -> None:
    with tick.database.mapped_errors(), tick.database.autocommit.connect() as connection:
        updated = connection.execute(
            sa.update(ticks).where(ticks.c.name == tick.name, ticks.c.epoch == tick.epoch).values(**values)
        )
    if updated.rowcount != 1:
        raise TickLost(
            f"database {tick.database.name!r}: the lease of job {tick.name!r} for slot {tick.slot} ran out after "
            f"{tick.lease_s:g} s, and another process has claimed it. What this one did stands; it is not counted."
        )


@contextmanager
def running(tick: Tick) -> Iterator[None]:
    """Keep the lease alive while the block runs, and finish the slot after it.

    An exception leaves the slot undone: it is tried again when the lease has run out. Raises what `finish` raises.
    """
    with LeaseKeeper(f"tick-{tick.name}", partial(renew, tick), lease_s=tick.lease_s):
        yield
    finish(tick)

"""Jobs that run by the clock, once per slot: pruning, subscriptions, audits.

Every sweeper looks for due jobs, so no beat is needed; a beat's message finds the slot taken, or takes it first. Slots
are computed from the database's clock: a machine whose clock is wrong can neither skip a slot nor run one twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from celery.schedules import ParseException, crontab

from crosstie.orm.clock import database_now_ms
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import ConfigurationError
from crosstie.workers import tick

__all__ = ["Cron", "Every", "Job", "run_if_due"]

CATCH_UP: Final = timedelta(days=1)
"""A slot that passed while no worker ran is made up for within this time."""
MINUTE: Final = timedelta(minutes=1)


@dataclass(frozen=True)
class Every:
    """A slot every so many seconds; the first is due at once."""

    seconds: int

    def last_slot(self, at_ms: int) -> int | None:
        """The number of the latest slot at this time."""
        return at_ms // (self.seconds * 1000)

    def already_done_slot(self, at_ms: int) -> int:
        """What counts as done for a job that has never run."""
        return -1


@dataclass(frozen=True)
class Cron:
    """The five fields of a cron line, in a time zone; a slot is its minute since the epoch.

    A day must satisfy both day fields, as Celery reads them. A minute that the clocks skip falls to the first one after
    the gap; of those that they repeat, the first counts. A job that has never run waits for its next slot. `setting` is
    where the line stands. Raises ConfigurationError where it cannot be read.
    """

    line: str
    timezone: str = "UTC"
    setting: str = "audit.schedule"

    def __post_init__(self) -> None:
        self._fields()

    def _fields(self) -> Any:
        parts = self.line.split()
        try:
            minute, hour, day, month, weekday = parts
            return crontab(minute, hour, weekday, day, month)
        except (ValueError, ParseException) as error:
            raise ConfigurationError(
                f"{self.setting}: expected the five fields of a cron line, such as '30 3 * * *' for half past three "
                f"every night ({self.timezone}); found {self.line!r} ({error})."
            ) from None

    def last_slot(self, at_ms: int) -> int | None:
        """The latest minute at or before this time that the line matches; None where a day has none."""
        fields, zone = self._fields(), ZoneInfo(self.timezone)
        moment = datetime.fromtimestamp(at_ms / 1000, UTC).replace(second=0, microsecond=0)
        oldest = moment - CATCH_UP
        while moment > oldest:
            if any(_matches(fields, local) for local in _local_minutes(moment, zone)):
                return int(moment.timestamp()) // 60
            moment -= MINUTE
        return None

    def already_done_slot(self, at_ms: int) -> int:
        """What counts as done for a job that has never run: all that was due before it was configured."""
        return at_ms // 60_000


def _local_minutes(moment: datetime, zone: ZoneInfo) -> Iterator[datetime]:
    """The minutes on a clock of the zone that this minute stands for: none if they are repeated, more after a gap."""
    local = moment.astimezone(zone)
    if local.fold:
        return
    shown, before = local.replace(tzinfo=None), (moment - MINUTE).astimezone(zone).replace(tzinfo=None)
    while shown > before:
        yield shown
        shown -= MINUTE


def _matches(fields: Any, local: datetime) -> bool:
    return (
        local.minute in fields.minute
        and local.hour in fields.hour
        and local.day in fields.day_of_month
        and local.month in fields.month_of_year
        and local.isoweekday() % 7 in fields.day_of_week
    )


@dataclass(frozen=True)
class Job:
    """Something to run once per slot of `schedule`; `lease_s` after a crash it is tried again."""

    name: str
    schedule: Every | Cron
    run: Callable[[], object]
    lease_s: float = 60.0


def run_if_due(job: Job, database_name: str, *, owner: str) -> bool:
    """Run the job if its latest slot is not done and nobody is at it; returns whether it ran.

    The slot is claimed in this database. Raises DatabaseUnavailable, NoSuchTable, and what the job raises; a job that
    raised is tried again when its lease has run out.
    """
    database = ConnectionManager.get(database_name)
    at_ms = database_now_ms(database)
    slot = job.schedule.last_slot(at_ms)
    if slot is None:
        return False
    held = tick.claim(
        database,
        job.name,
        slot,
        owner=owner,
        lease_s=job.lease_s,
        already_done_slot=job.schedule.already_done_slot(at_ms),
    )
    if held is None:
        return False
    with tick.running(held):
        job.run()
    return True

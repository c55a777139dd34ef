"""Slots are computed from a time that is handed in, and mean the same minute to every process."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from bench.databases import Solo, TestDatabase
from bench.guard import configured_databases
from crosstie.orm.errors import ConfigurationError
from crosstie.workers.deployment import claiming_database, deployment_jobs
from crosstie.workers.schedule import Cron, Every, Job, run_if_due


def at(text: str) -> int:
    """Milliseconds since the epoch of a UTC time."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def slot(text: str) -> int:
    """The slot of a minute in UTC."""
    return at(text) // 60_000


@pytest.mark.parametrize(
    ("line", "now", "expected"),
    [
        ("* * * * *", "2026-11-24 07:00:59", "2026-11-24 07:00"),
        ("*/15 * * * *", "2026-11-24 07:44:00", "2026-11-24 07:30"),
        ("30 3 * * *", "2026-11-24 03:30:00", "2026-11-24 03:30"),
        ("30 3 * * *", "2026-11-24 03:29:59", "2026-11-23 03:30"),
        ("0 0 1 * *", "2027-03-01 00:05:00", "2027-03-01 00:00"),
        ("0 0 29 2 *", "2028-02-29 13:00:00", "2028-02-29 00:00"),
        ("0 6 * * mon", "2026-11-23 06:00:01", "2026-11-23 06:00"),
        ("0 6 * * 0", "2026-11-22 06:00:01", "2026-11-22 06:00"),
        ("15 8-10 * jan,nov 1-5", "2026-11-24 23:59:00", "2026-11-24 10:15"),
        (" 0  4 * *  * ", "2026-11-24 04:10:00", "2026-11-24 04:00"),
    ],
)
def test_a_cron_lines_slot_is_the_latest_minute_that_it_names(line: str, now: str, expected: str) -> None:
    """In UTC, whatever the time zone of the machine or of the Celery app."""
    assert Cron(line).last_slot(at(now)) == slot(expected)


def test_a_slot_that_passed_more_than_a_day_ago_is_not_made_up_for() -> None:
    """A worker that starts on Wednesday does not run Monday's audit."""
    assert Cron("0 6 * * mon").last_slot(at("2026-11-24 05:59:00")) == slot("2026-11-23 06:00")
    assert Cron("0 6 * * mon").last_slot(at("2026-11-24 06:01:00")) is None


@pytest.mark.parametrize("line", ["", "* * * *", "60 * * * *", "every day", "0 0 31 2 *"])
def test_a_line_that_cannot_be_read_is_refused_with_an_example(line: str) -> None:
    """Before anything runs, not at the hour for which somebody waits."""
    with pytest.raises(ConfigurationError, match=r"audit\.schedule: expected the five fields .* found"):
        Cron(line)


def test_an_interval_has_one_slot_per_interval() -> None:
    """Counted from the epoch, so that all processes count alike."""
    assert Every(60).last_slot(119_999) == 1
    assert Every(60).last_slot(120_000) == 2


def test_a_new_schedule_waits_for_its_next_slot(configured_database: TestDatabase) -> None:
    """Configuring an audit at night for the afternoon does not start yesterday afternoon's."""
    ran: list[int] = []
    job = Job("audit", Cron("* * * * *"), lambda: ran.append(1))
    assert not run_if_due(job, "default", owner="first")
    configured_database.execute("UPDATE crosstie_tick SET done_slot = done_slot - 1")
    assert run_if_due(job, "default", owner="first")
    assert ran == [1]


def test_the_scheduled_audit_exists_only_if_asked_for(
    configured_database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is claimed in one database of the deployment, the same one for every worker."""
    assert deployment_jobs() == []
    monkeypatch.setenv("CROSSTIE_AUDIT__SCHEDULE", "30 3 * * *")
    with configured_databases(Solo(configured_database)):
        (job,) = deployment_jobs()
        assert (job.name, job.schedule) == ("audit", Cron("30 3 * * *"))
        assert claiming_database() == "default"

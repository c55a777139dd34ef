"""Audits by the clock: lines beside models and in settings, in a time zone, each slot once whoever finds it due."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import datetime
from typing import ClassVar
from zoneinfo import ZoneInfo

import pytest

from bench.databases import Pair
from crosstie.orm import ActiveRecord, ConnectionManager
from crosstie.orm.errors import ConfigurationError
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.integrity import UnknownReference
from crosstie.orm.registry import registry
from crosstie.orm.relation import BelongsTo
from crosstie.workers import audit, tasks
from crosstie.workers.deployment import claiming_database, deployment_jobs
from crosstie.workers.schedule import Cron, run_if_due

OWN = "secondary.nests.tree_id -> default.trees.id"
OTHER = "secondary.leaves.tree_id -> default.trees.id"
BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture
def grove(configured: Pair) -> Iterator[Pair]:
    """Two references, one of them with a line of its own."""
    with registry.isolated():
        registry._models.clear()
        registry.generation += 1

        class Tree(IntegerPKMixin, ActiveRecord):
            __table_name__ = "trees"
            __connection__ = "default"

            id: int | None = None

        class Nest(IntegerPKMixin, ActiveRecord):
            __table_name__ = "nests"
            __connection__ = "secondary"

            id: int | None = None
            tree_id: int | None = None

            tree: ClassVar[BelongsTo[Tree]] = BelongsTo(foreign_key="tree_id", audit="* * * * *")

        class Leaf(IntegerPKMixin, ActiveRecord):
            __table_name__ = "leaves"
            __connection__ = "secondary"

            id: int | None = None
            tree_id: int | None = None

            tree: ClassVar[BelongsTo[Tree]] = BelongsTo(foreign_key="tree_id")

        for model in (Tree, Nest, Leaf):
            model.create_table()
        yield configured


def configure(pair: Pair, monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    """Set these settings of audits."""
    for name, value in settings.items():
        monkeypatch.setenv(f"CROSSTIE_AUDIT__{name.upper()}", value)
    ConnectionManager.configure(pair.configuration)


ONE = pytest.mark.parametrize("pair", [("sqlite", "sqlite")], indirect=True, ids="-".join)


@ONE
def test_lines_of_models_and_of_settings_are_jobs(grove: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting goes before the model, and the general line means what has none of its own."""
    assert {job.name: job.schedule for job in deployment_jobs()} == {
        f"audit {OWN}": Cron("* * * * *", "UTC", f"grove.<locals>.Nest: audit= of {OWN}")
    }
    lines = {"nests.tree_id": "0 4 * * *"}
    configure(grove, monkeypatch, schedule="30 3 * * *", timezone="Europe/Berlin", schedules=json.dumps(lines))
    jobs = {job.name: job for job in deployment_jobs()}
    assert jobs[f"audit {OWN}"].schedule == Cron("0 4 * * *", "Europe/Berlin", "audit.schedules['nests.tree_id']")
    asked: list[object] = []
    monkeypatch.setattr(audit, "run_scheduled_audit", lambda names, **_: asked.append(names))
    jobs["audit"].run()
    jobs[f"audit {OWN}"].run()
    assert asked == [[OTHER], (OWN,)]


@ONE
def test_what_cannot_be_meant_is_refused_at_the_start(grove: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line, a name, a zone: each with what was expected."""
    configure(grove, monkeypatch, schedules=json.dumps({"nests.tree": "0 4 * * *"}))
    with pytest.raises(UnknownReference, match=r"Did you mean 'nests\.tree_id'"):
        deployment_jobs()
    configure(grove, monkeypatch, schedules=json.dumps({"leaves.tree_id": "at four"}))
    with pytest.raises(ConfigurationError, match=r"audit\.schedules\['leaves\.tree_id'\]: expected the five fields"):
        deployment_jobs()
    with pytest.raises(ConfigurationError, match=r"audit\.timezone: .*such as Europe/Berlin"):
        configure(grove, monkeypatch, timezone="Europe/Nowhere")


def test_a_slot_is_audited_once_by_however_many(grove: Pair) -> None:
    """Four sweepers and two beats find it due at the same time; the row of its tick decides."""
    (job,) = deployment_jobs()
    database = claiming_database()
    assert database is not None
    assert not run_if_due(job, database, owner="first")  # a new schedule waits for its next slot
    grove.by_name[database].execute("UPDATE crosstie_tick SET done_slot = done_slot - 1, slot = slot - 1")
    start = threading.Barrier(6)
    errors: list[BaseException] = []

    def look(number: int) -> None:
        try:
            start.wait(60)
            tasks.audit() if number < 2 else run_if_due(job, database, owner=str(number))
        except BaseException as error:  # noqa: BLE001 - shown by the test
            errors.append(error)

    threads = [threading.Thread(target=look, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    runs = grove.second.rows("SELECT reference, state FROM crosstie_audit_run")
    assert runs == [(OWN, "ok")] * len(runs)
    assert len(runs) in {1, 2}  # two where the minute has changed meanwhile
    ticks = grove.by_name[database].rows("SELECT epoch FROM crosstie_tick WHERE name = %s", (f"audit {OWN}",))
    assert ticks == [(len(runs),)]


@pytest.mark.parametrize(
    ("line", "now", "expected"),
    [
        ("30 3 * * *", "2026-07-01 12:00", "2026-07-01 03:30"),
        ("30 3 * * *", "2026-12-01 12:00", "2026-12-01 03:30"),
        ("30 2 * * *", "2026-03-29 12:00", "2026-03-29 03:00"),  # two o'clock was skipped
        ("30 3 * * *", "2026-03-29 12:00", "2026-03-29 03:30"),
        ("30 2 * * *", "2026-10-25 12:00", "2026-10-25 02:30"),  # half past two came twice: the first
        ("0 9 * * mon", "2026-11-23 09:00", "2026-11-23 09:00"),
    ],
)
def test_a_line_is_in_its_time_zone(line: str, now: str, expected: str) -> None:
    """In summer and in winter, and on the days between."""

    def minute(text: str) -> int:
        return int(datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()) // 60

    assert Cron(line, "Europe/Berlin").last_slot(minute(now) * 60_000) == minute(expected)

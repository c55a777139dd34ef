"""A user's own Celery app serves crosstie, and stays the user's."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.schedules import crontab

from crosstie.workers import app as own_app
from crosstie.workers import doorbell, install
from crosstie.workers.bootstep import SweeperStep
from crosstie.workers.tasks import TASK_NAMES


@pytest.fixture
def users_app() -> Iterator[Celery]:
    """An app with settings and a schedule of its own."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update(
        accept_content=["json", "yaml"],
        task_default_queue="shop",
        task_time_limit=7,
        task_acks_late=True,
        worker_prefetch_multiplier=9,
        beat_schedule={
            "nightly": {"task": "shop.nightly", "schedule": crontab(hour="3", minute="0")},
            "crosstie-prune": {"task": "crosstie.prune", "schedule": 3600.0},
        },
    )
    before = doorbell._bell.send
    yield app
    doorbell.use_sender(before)
    del app
    gc.collect()


def settings_of(app: Celery) -> dict[str, Any]:
    """What the user has set, schedule aside."""
    names = ("accept_content", "task_default_queue", "task_time_limit", "task_acks_late", "worker_prefetch_multiplier")
    return {name: app.conf[name] for name in (*names, "broker_url", "task_serializer", "timezone")}


@pytest.mark.usefixtures("configured_database")
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
class TestInstalled:
    """What an installed app is like."""

    def test_its_settings_are_untouched(self, users_app: Celery) -> None:
        """Whatever ours would be."""
        before = settings_of(users_app)
        install(users_app)
        assert settings_of(users_app) == before

    def test_its_schedule_keeps_its_entries_and_gets_the_missing_ones(self, users_app: Celery) -> None:
        """An entry with one of our names is the user's decision about our job."""
        install(users_app)
        schedule = users_app.conf.beat_schedule
        assert schedule["nightly"]["schedule"] == crontab(hour="3", minute="0")
        assert schedule["crosstie-prune"]["schedule"] == 3600.0
        assert set(schedule) == {"nightly", "crosstie-prune", "crosstie-sync_routes", "crosstie-audit"}

    def test_its_tasks_are_ours_with_options_of_their_own(self, users_app: Celery) -> None:
        """Late acknowledgement and short limits of the app's other tasks do not reach a doorbell."""
        install(users_app)
        assert set(TASK_NAMES) <= set(users_app.tasks)
        drain: Any = users_app.tasks["crosstie.drain"]
        assert (drain.acks_late, drain.max_retries, drain.ignore_result, drain.serializer) == (False, 0, True, "json")
        assert drain.soft_time_limit < drain.time_limit

    def test_its_workers_sweep(self, users_app: Celery) -> None:
        """The net comes with the app, not with a command of ours."""
        install(users_app)
        assert SweeperStep in users_app.steps["worker"]

    def test_the_sweeper_is_forked_before_anything_else_starts(self, users_app: Celery) -> None:
        """Before the pool has threads and pipes that a fork would copy."""
        install(users_app)
        worker: Any = users_app.WorkController(pool_cls="solo")
        assert isinstance(worker.steps[0], SweeperStep)
        assert len(worker.steps) > 2

    def test_its_broker_carries_the_doorbells(self, users_app: Celery) -> None:
        """Workers that listen at the user's broker are the ones that exist."""
        install(users_app)
        sender: Any = doorbell._bell.send
        assert sender.app is users_app

    def test_installing_twice_changes_nothing(self, users_app: Celery) -> None:
        """Two modules of a project may both see to it."""
        install(users_app)
        before = (dict(users_app.conf.beat_schedule), set(users_app.tasks), set(users_app.steps["worker"]))
        sender = doorbell._bell.send
        assert install(users_app) is users_app
        assert before == (dict(users_app.conf.beat_schedule), set(users_app.tasks), set(users_app.steps["worker"]))
        assert doorbell._bell.send is sender

    def test_a_configuration_that_is_loaded_after_it_is_respected(self, users_app: Celery) -> None:
        """Celery reads an app's configuration late, and may read another one later still."""
        late = Celery("late", set_as_current=False)
        install(late)
        late.config_from_object(
            {"beat_schedule": {"mine": {"task": "x", "schedule": 1.0}}, "task_default_queue": "late"}
        )
        assert {"mine", "crosstie-prune", "crosstie-audit"} <= set(late.conf.beat_schedule)
        late.config_from_object({"beat_schedule": {"other": {"task": "x", "schedule": 1.0}}}, force=True)
        assert {"other", "crosstie-prune"} <= set(late.conf.beat_schedule)
        assert "mine" not in late.conf.beat_schedule


def test_importing_crosstie_gives_no_task_to_other_apps() -> None:
    """A project may have several Celery apps, and only the installed ones serve crosstie."""
    own_app.finalize(auto=True)
    stranger = Celery("stranger", broker="memory://", set_as_current=False)
    assert not set(TASK_NAMES) & set(stranger.tasks)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_our_own_app_can_be_trusted(configured_database: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON only, one message at a time, results nowhere, and a broker waited for however long it is away."""
    conf = own_app.conf
    assert conf.accept_content == ["json"]
    assert (conf.task_serializer, conf.result_serializer) == ("json", "json")
    assert (conf.worker_prefetch_multiplier, conf.task_acks_late, conf.task_ignore_result) == (1, False, True)
    assert (conf.broker_connection_retry_on_startup, conf.broker_connection_max_retries) == (True, None)
    assert conf.task_default_queue == "crosstie"

"""Workers run declared sagas by themselves, and `crosstie runs …` shows and decides what waits for a person."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from bench.databases import Pair
from bench.faults import crash_env
from bench.processes import Spawner
from bench.waiting import eventually
from crosstie.sagas.declared import definition, run_steps, step
from crosstie.sagas.declared.definition import Saga, StepFailed
from sagas.trips import BOOKED, BookTrip, create_trips, rows

SWEEP = ("-m", "crosstie.workers", "sweep", "-i", "sagas.trips")


@pytest.fixture
def trips(configured_crash_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """Databases that commands find, with the tables of trips."""
    monkeypatch.setenv("CROSSTIE_CONNECTIONS", json.dumps(configured_crash_pair.configuration))
    monkeypatch.setattr(definition, "_classes", dict(definition._classes))
    create_trips()
    return configured_crash_pair


def status(run_id: str) -> str:
    """Of a run, as a program asks for it."""
    run = BookTrip.find_run(run_id)
    return run.status if run else "unknown"


def test_a_worker_runs_what_another_left_when_it_was_killed(trips: Pair, spawn: Spawner) -> None:
    """No message tells it to: it finds the step by its lease, which has run out."""
    environment = trips.environment | {"CROSSTIE_SWEEP_INTERVAL_S": "0.05"}
    run_id = BookTrip(trip="t").start()
    spawn.python(*SWEEP, environment=environment | crash_env("steps.worked", 2), name="first").wait_killed()
    assert status(run_id) == "running"
    trips.first.execute("UPDATE crosstie_run_step SET lease_until_ms = 0")
    spawn.python(*SWEEP, environment=environment, name="second")
    eventually(lambda: status(run_id) == "done", describe="the run ends")
    assert rows(trips) == BOOKED


def test_an_operator_sees_and_decides(trips: Pair, cli: Callable) -> None:
    """A quarantined compensation is an exit status; skipped, the run goes on; a finished one cannot be cancelled."""

    class Sticky(Saga):
        """Its compensation is stuck."""

        __home__ = "default"
        secret: str = "hidden"

        @step
        def one(self) -> None:
            """Done."""

        @one.compensation
        def not_one(self) -> None:
            """Fails for good."""
            raise StepFailed("stuck")

        @step
        def two(self) -> None:
            """The reason."""
            raise StepFailed("no")

    waiting = BookTrip(trip="t").start()
    assert cli("runs", "list")[0] == 0
    run_id = Sticky().start()
    run_steps("default", owner="test")
    code, out, _ = cli("runs", "list")
    assert code == 1
    assert "quarantined" in out
    assert "StepFailed: stuck" in out
    code, out, _ = cli("runs", "list", "--json")
    (found,) = [one for one in json.loads(out)["runs"] if one["run_id"] == run_id]
    assert (code, found["status"], "data" in found) == (1, "compensating", False)

    code, out, _ = cli("runs", "show", run_id)
    assert "turned round by step 'two': StepFailed: no" in out
    assert "hidden" not in out
    assert "secret = 'hidden'" in cli("runs", "show", run_id, "--show-values")[1]
    code, out, _ = cli("runs", "retry", run_id)
    assert (code, "one undo" in out) == (0, True)
    run_steps("default", owner="test")
    code, out, _ = cli("runs", "skip", run_id, "--yes")
    assert (code, "compensated (one undone, two failed)" in out) == (0, True)
    code, _, err = cli("runs", "cancel", run_id, "--yes")
    assert code != 0
    assert "is compensated: it cannot be turned round any more" in err
    assert status(waiting) == "done"
    again = Sticky().start()
    run_steps("default", owner="test")
    assert status(again) == "compensating"
    (default, secondary) = json.loads(cli("status", "--json")[1])["databases"]
    assert default["unfinished_runs"] == {"running": 0, "compensating": 0, "quarantined": 1}
    assert secondary["unfinished_runs"] == {"running": 0, "compensating": 0, "quarantined": 0}
    assert 'crosstie_runs{source="default",state="quarantined"} 1.0' in cli("metrics", "--once")[1]
    code, _, err = cli("runs", "show", "nobody")
    assert code != 0
    assert "no database that answers has a run 'nobody'" in err


def test_a_run_is_cancelled_by_its_id_alone(trips: Pair, cli: Callable) -> None:
    """Whichever database keeps it."""
    run_id = BookTrip(trip="t").start()
    run_steps("default", owner="test", limit_s=0.0)
    code, out, _ = cli("runs", "cancel", run_id, "--yes", "--reason", "the flight was full")
    assert (code, "compensating" in out) == (0, True)
    run_steps("default", owner="test")
    assert status(run_id) == "compensated"
    assert "turned round by the flight was full" in cli("runs", "show", run_id)[1]


def test_runs_that_ended_long_ago_are_deleted(trips: Pair) -> None:
    """Their steps with them; those that run stay, however old."""
    from crosstie.sagas.declared import prune_runs

    ended = BookTrip(trip="t").start()
    run_steps("default", owner="test")
    running = BookTrip(trip="u").start()
    assert prune_runs("default") == 0
    trips.first.execute("UPDATE crosstie_run SET updated_at_ms = 1")
    assert prune_runs("default") == 1
    assert (status(ended), status(running)) == ("unknown", "running")
    assert trips.first.scalar("SELECT count(*) FROM crosstie_run_step WHERE run_id = %s", (ended,)) == 0

"""A declared saga ends as it says, on every pair of databases, whatever fails and whoever dies."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest

from bench.databases import Pair
from bench.faults import crash_env
from bench.processes import Spawner
from crosstie.orm import transaction
from crosstie.orm.errors import DatabaseUnavailable
from crosstie.orm.faults import armed
from crosstie.sagas import SagaAborted, saga, sweep_sagas
from crosstie.sagas.declared import (
    RunState,
    Saga,
    SagaDefinitionError,
    StepFailed,
    UnknownRun,
    definition,
    run_steps,
    step,
)
from crosstie.sagas.declared.plan import Step
from crosstie.sagas.errors import SagaError, SagaOperationRefused
from sagas.trips import BOOKED, CANCELLED, BookTrip, Flight, Room, create_trips, rows

PROGRAM = Path(__file__).with_name("trips.py")


@pytest.fixture
def own_sagas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget at the end which sagas the test has declared."""
    monkeypatch.setattr(definition, "_classes", dict(definition._classes))


@pytest.fixture
def trips(configured: Pair) -> Pair:
    """A pair with the tables of trips."""
    create_trips()
    return configured


@pytest.fixture
def crash_trips(configured_crash_pair: Pair) -> Pair:
    """The same, for tests with processes."""
    create_trips()
    return configured_crash_pair


def hurry(pair: Pair) -> None:
    """Let pauses and leases be over."""
    pair.first.execute(
        "UPDATE crosstie_run_step SET lease_until_ms = 0, next_at_ms = 0 WHERE state IN ('ready', 'undo')"
    )


def drive(pair: Pair, tries: int = 30) -> None:
    """Look again and again, without the pauses, until nothing is due."""
    for _ in range(tries):
        report = run_steps("default", owner="test")
        if not (report.done or report.undone or report.failed):
            return
        hurry(pair)
    raise AssertionError("it never ends")


def found(run_id: str) -> RunState:
    """The run, as it is kept."""
    run = BookTrip.find_run(run_id)
    assert run is not None
    return run


def test_steps_run_in_order_and_the_state_goes_from_one_to_the_next(trips: Pair) -> None:
    """Each step sees what the ones before it have noted in the fields."""
    run_id = BookTrip(trip="t").start()
    assert rows(trips) == []
    drive(trips)
    run = found(run_id)
    assert (run.status, run.data["paid"], rows(trips)) == ("done", True, BOOKED)
    assert [(one.name, one.state) for one in run.steps] == [
        ("book_flight", "done"),
        ("book_room", "done"),
        ("pay", "done"),
        ("send_ticket", "done"),
    ]


@pytest.mark.parametrize(("where", "left"), [("flight", []), ("room", ["cancelled"]), ("money", CANCELLED)])
def test_a_step_that_fails_turns_the_run_round(trips: Pair, where: str, left: list[str]) -> None:
    """What was done is compensated, the last first; what failed has left nothing; the reason is kept."""
    run_id = BookTrip(trip="t", fails_at=where).start()
    drive(trips)
    run = found(run_id)
    assert (run.status, rows(trips)) == ("compensated", left)
    assert f"no {where} to be had" in str(run.error)
    assert {one.state for one in run.steps} <= {"undone", "failed"}


def test_a_start_belongs_to_its_transaction(trips: Pair) -> None:
    """Rolled back, there is no run; committed, there is; a known id starts nothing."""
    with pytest.raises(KeyError), transaction("default"):
        run_id = BookTrip(trip="t").start()
        raise KeyError
    assert BookTrip.find_run(run_id) is None
    with transaction("default"):
        Flight(trip="other").save()
        assert BookTrip(trip="t").start(run_id="mine") == "mine"
    assert BookTrip(trip="again").start(run_id="mine") == "mine"
    drive(trips)
    assert rows(trips) == BOOKED
    assert rows(trips, "again") == []


def test_a_start_in_a_saga_waits_for_its_outcome(trips: Pair) -> None:
    """Home of the runs is a branch here: between its commit and the decision a worker sees the run, and leaves it."""
    with pytest.raises(SagaAborted), armed("saga.branch-committed"), saga("outer", home="secondary"):
        Room(trip="x").save()
        lost = BookTrip(trip="t").start()
    assert BookTrip.find_run(lost) is None

    def look() -> None:
        assert run_steps("default", owner="test").done == 0

    with armed("saga.branch-committed", look), saga("outer", home="secondary"):
        Room(trip="x").save()
        kept = BookTrip(trip="t").start()
    assert found(kept).steps[0].state == "ready"
    sweep_sagas("default")
    drive(trips)
    assert (found(kept).status, rows(trips)) == ("done", BOOKED)


@pytest.mark.parametrize("point", ["steps.claimed", "steps.worked", "steps.committed"])
@pytest.mark.parametrize("nth", [1, 2, 4])
def test_a_worker_killed_in_a_step_changes_nothing_about_the_outcome(
    crash_trips: Pair, spawn: Spawner, point: str, nth: int
) -> None:
    """The lease runs out, and the next worker does the step, once."""
    run_id = BookTrip(trip="t").start()
    environment = crash_trips.environment | crash_env(point, nth)
    spawn.python(PROGRAM, environment=environment).wait_killed()
    hurry(crash_trips)
    drive(crash_trips)
    assert (found(run_id).status, rows(crash_trips)) == ("done", BOOKED)


@pytest.mark.parametrize("point", ["steps.claimed", "steps.worked", "steps.committed", "saga.branch-committed"])
def test_a_crash_while_compensating_is_finished(trips: Pair, point: str) -> None:
    """Each compensation happens once as well."""
    run_id = BookTrip(trip="t", fails_at="money").start()
    run_steps("default", owner="test")
    hurry(trips)
    assert found(run_id).status in {"running", "compensating", "compensated"}
    for name in ("default", "secondary"):
        sweep_sagas(name)
    with armed(point):
        run_steps("default", owner="test")
    hurry(trips)
    for name in ("default", "secondary"):
        sweep_sagas(name)
    drive(trips)
    assert (found(run_id).status, rows(trips)) == ("compensated", CANCELLED)


def test_a_worker_that_lost_its_lease_changes_nothing(trips: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """Another one may have done the step meanwhile: the late one's room is taken back, and it is told why."""
    run_id = BookTrip(trip="t").start()

    def overtake() -> None:
        trips.first.execute("UPDATE crosstie_run_step SET epoch = epoch + 1, lease_until_ms = 0 WHERE state = 'ready'")

    with caplog.at_level("INFO"), armed("steps.worked", overtake, nth=2):
        run_steps("default", owner="late")
    assert "step 'book_room' was taken over by another worker" in caplog.text
    drive(trips)
    assert (found(run_id).status, rows(trips)) == ("done", BOOKED)
    assert {one.name: one.attempts for one in found(run_id).steps}["book_room"] == 2


def test_cancelling_compensates_until_the_pivot(trips: Pair) -> None:
    """After it, it is refused, and nothing is changed."""
    run_id = BookTrip(trip="t").start()
    run_steps("default", owner="test", limit_s=0.0)
    BookTrip.cancel(run_id, "the customer changed her mind")
    drive(trips)
    run = found(run_id)
    assert (run.status, run.error) == ("compensated", "the customer changed her mind")
    assert set(rows(trips)) <= {"cancelled"}
    with pytest.raises(SagaOperationRefused, match="is compensated: it cannot be turned round"):
        BookTrip.cancel(run_id)
    done = BookTrip(trip="u").start()
    drive(trips)
    with pytest.raises(SagaOperationRefused, match="has passed its pivot"):
        BookTrip.cancel(done)
    with pytest.raises(UnknownRun, match="has no run 'nobody'"):
        BookTrip.cancel("nobody")


def test_a_deadline_turns_a_run_round(trips: Pair) -> None:
    """One that has not passed its pivot in time."""
    run_id = BookTrip(trip="t").start(deadline_s=0)
    trips.first.execute("UPDATE crosstie_run SET deadline_ms = 1")
    drive(trips)
    assert (found(run_id).status, rows(trips)) == ("compensated", [])
    assert "the deadline of the run has passed" in str(found(run_id).error)


def test_signals_timers_groups_and_retries(trips: Pair, own_sagas: None) -> None:
    """A group's steps all end before the next begins; a signal may come early; a timer delays; a step is retried."""
    seen: list[str] = []

    class Order(Saga):
        """All that a step can be."""

        __home__ = "default"
        left: int = 0
        right: int = 0
        answer: int = 0

        @step(group="both", nothing_to_undo=True)
        def go_left(self) -> None:
            """Independent of the other."""
            self.left = 1

        @step(group="both", nothing_to_undo=True, retries=2)
        def go_right(self) -> None:
            """Fails twice."""
            seen.append("right")
            if len(seen) < 3:
                raise KeyError("not yet")
            self.right = 1

        @step(waits_for="paid", nothing_to_undo=True)
        def paid(self, signal: dict[str, int]) -> None:
            """Takes what the signal has brought."""
            assert (self.left, self.right) == (1, 1)
            self.answer = signal["amount"]

        @step(waits_for="sent", wait_s=3600, nothing_to_undo=True)
        def sent(self) -> None:
            """The signal comes before anybody waits for it."""

        @step(delay_s=3600)
        def later(self) -> None:
            """The timer."""
            seen.append("later")

    run_id = Order().start()
    Order.signal(run_id, "sent")
    drive(trips)
    states = {one.name: one.state for one in found(run_id).steps}
    assert states == {"go_left": "done", "go_right": "done", "paid": "waiting"}
    Order.signal(run_id, "paid", {"amount": 7})
    Order.signal(run_id, "paid", {"amount": 8})
    run_steps("default", owner="test")
    run = found(run_id)
    assert {one.name: one.state for one in run.steps}["later"] == "ready"
    assert "later" not in seen
    hurry(trips)
    drive(trips)
    run = found(run_id)
    assert (run.status, run.data) == ("done", {"left": 1, "right": 1, "answer": 7})
    assert seen == ["right"] * 3 + ["later"]


def test_a_signal_that_does_not_come_in_time_turns_the_run_round(trips: Pair, own_sagas: None) -> None:
    """And one inside a saga block is refused, since the block may be undone."""

    class Waits(Saga):
        """For nothing."""

        __home__ = "default"

        @step(waits_for="never", wait_s=0.001, nothing_to_undo=True)
        def wait(self) -> None:
            """Not reached."""
            raise AssertionError

        @step
        def after(self) -> None:
            """Nor this."""

    run_id = Waits().start()
    trips.first.execute("UPDATE crosstie_run_step SET next_at_ms = 1")
    drive(trips)
    assert found(run_id).status == "compensated"
    assert "no signal 'never' came in time" in str(found(run_id).error)
    with pytest.raises(SagaError, match="signal inside a saga block"), saga("block"):
        Waits.signal(run_id, "never")


def test_after_the_pivot_a_step_is_tried_until_it_succeeds(trips: Pair, own_sagas: None) -> None:
    """However often it fails; and a database that is away counts for nothing before it."""
    trouble = {"before": 10, "after": 10}

    class Stubborn(Saga):
        """One step on each side of the pivot."""

        __home__ = "default"

        @step(retries=0, nothing_to_undo=True)
        def before(self) -> None:
            """Meets a database that is down."""
            trouble["before"] -= 1
            if trouble["before"]:
                raise DatabaseUnavailable("it is down")

        @step(pivot=True)
        def pivot(self) -> None:
            """The point of no return."""

        @step(retries=0)
        def after(self) -> None:
            """Fails by its own doing."""
            trouble["after"] -= 1
            if trouble["after"]:
                raise StepFailed("not now")

    run_id = Stubborn().start()
    drive(trips)
    assert found(run_id).status == "done"
    assert {one.name: one.attempts for one in found(run_id).steps} == {"before": 10, "pivot": 1, "after": 10}


def test_a_compensation_that_keeps_failing_waits_for_an_operator(trips: Pair, own_sagas: None) -> None:
    """Quarantined, it holds the earlier ones back, so that the order stays; retried, the run goes on."""
    broken = [True]

    class Sticky(Saga):
        """Its second compensation fails."""

        __home__ = "default"

        @step
        def one(self) -> None:
            """Done."""

        @one.compensation
        def not_one(self) -> None:
            """Runs last."""
            Flight(trip="t", state="one undone").save()

        @step
        def two(self) -> None:
            """Done."""

        @two.compensation
        def not_two(self) -> None:
            """Fails."""
            if broken[0]:
                raise KeyError("stuck")

        @step
        def three(self) -> None:
            """The reason."""
            raise StepFailed("no")

    from crosstie.sagas.declared import control

    run_id = Sticky().start()
    drive(trips)
    assert {one.name: one.state for one in found(run_id).steps}["two"] == "quarantined"
    assert "stuck" in str([one.error for one in found(run_id).steps])
    assert rows(trips) == []
    broken[0] = False
    assert control.retry("default", run_id) == 1
    drive(trips)
    assert (found(run_id).status, rows(trips)) == ("compensated", ["one undone"])
    with pytest.raises(SagaOperationRefused, match="none of its steps is quarantined"):
        control.retry("default", run_id)


def test_runs_end_with_the_version_they_began_with(
    trips: Pair, own_sagas: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker without that version leaves them alone, and says so."""
    run_id = BookTrip(trip="t").start()
    with monkeypatch.context() as without:
        without.setattr(definition, "_classes", {})
        report = run_steps("default", owner="old")
        assert (report.undeployed, report.done) == (1, 0)
    assert "no worker knows step 'book_flight' of version 1" in str(found(run_id).steps[0].error)
    hurry(trips)
    drive(trips)
    assert (found(run_id).status, rows(trips)) == ("done", BOOKED)


def _declare(where: str = __name__, **members: Any) -> type[Saga]:
    return types.new_class(
        "Declared", (Saga,), exec_body=lambda body: body.update({"__module__": where, "__home__": "default", **members})
    )


def _method(self: Saga) -> None:
    """Nothing."""


async def _coroutine(self: Saga) -> None:
    """Not a plain function."""


def _greedy(self: Saga, more: int) -> None:
    """Wants what nobody gives it."""


def _undone() -> object:
    made = step(_method)
    made.compensation(_method)
    return made


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "expected at least one method with @step, found none"),
        ({"__home__": "", "a": step(_method)}, "expected __home__ to name the database"),
        ({"a": step(_method), "b": step(_method)}, "nothing takes this one back"),
        ({"a": step(group="g")(_method), "b": step(group="g")(_method)}, "nothing takes this one back"),
        ({"a": step(_coroutine)}, "is a coroutine function"),
        ({"a": step(_greedy)}, r"expected the parameters \(self\), found"),
        ({"a": step(pivot=True)(_method), "b": step(pivot=True)(_method)}, "expected one pivot at most, found 2"),
        ({"a": step(pivot=True)(_method), "b": _undone()}, "would never run"),
        ({"a": step(pivot=True, group="g")(_method), "b": step(group="g")(_method)}, "must stand alone"),
        ({"a": step(retries=-1)(_method)}, "expected retries to be at least 0, found -1"),
        ({"a": step(wait_s=1)(_method)}, "no waits_for says for what"),
        (
            {"a": step(pivot=True)(_method), "b": step(waits_for="x", wait_s=1)(_method)},
            "comes after the pivot, so there is no way back",
        ),
    ],
)
def test_a_saga_that_could_get_stuck_is_refused_where_it_is_declared(
    own_sagas: None, members: dict[str, Any], message: str
) -> None:
    """At import, with the name of the step and the way out."""
    for number, one in enumerate(members.values()):
        if isinstance(one, Step):
            one.name = f"step_{number}"
    with pytest.raises(SagaDefinitionError, match=message):
        _declare(**members)


def test_two_classes_of_one_name_and_version_are_refused(own_sagas: None) -> None:
    """A run could not tell which one it began with."""
    _declare(a=step(_method))
    with pytest.raises(SagaDefinitionError, match=r"both are version 1 of saga 'Declared'"):
        _declare("elsewhere", a=step(_method))


def test_steps_are_methods_for_whoever_calls_them(own_sagas: None) -> None:
    """A unit test needs no database for what a step decides."""
    trip = BookTrip(trip="t")
    trip.pay()
    assert trip.paid
    assert json.loads(trip.model_dump_json())["trip"] == "t"

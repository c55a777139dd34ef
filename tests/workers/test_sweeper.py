"""The sweeping threads: one database's trouble is its own, is told once, and never ends the sweep."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench.waiting import eventually
from crosstie.orm import ConnectionManager
from crosstie.orm.errors import DatabaseUnavailable
from crosstie.outbox import operation, subscriber, sync_routes
from crosstie.workers import doorbell, sweeper
from crosstie.workers.outages import Outages
from crosstie.workers.schedule import Every, Job
from crosstie.workers.sweeper import DatabaseLoop, run_sweeper
from workers import depot as shop
from workers.conftest import Depot


class Wakeup:
    """Stands for the signals of a sweeper that runs in a thread of the test."""

    def __init__(self) -> None:
        self.stopping = False
        self._told = threading.Event()

    def wait(self, timeout_s: float) -> None:
        """Return soon, so that a test need not wait a second for each look."""
        self._told.wait(min(timeout_s, 0.02))

    def stop(self) -> None:
        """As SIGUSR2 does."""
        self.stopping = True
        self._told.set()


@pytest.fixture
def sweeping(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Wakeup, Callable[[], int]]]]:
    """Start a sweeper in a thread; returns its signals and what waits for its exit code."""
    monkeypatch.setattr(sweeper, "JOIN_TIMEOUT_S", 5.0)
    running: list[tuple[Wakeup, threading.Thread]] = []

    def start(jobs: list[Job] | None = None) -> tuple[Wakeup, Callable[[], int]]:
        wakeup: Any = Wakeup()
        codes: list[int] = []
        thread = threading.Thread(
            target=lambda: codes.append(run_sweeper(lambda: jobs or [], wakeup=wakeup, watch_parent=False))
        )
        running.append((wakeup, thread))
        thread.start()

        def end() -> int:
            thread.join(60)
            assert not thread.is_alive()
            return codes[0]

        return wakeup, end

    yield start
    for wakeup, thread in running:
        wakeup.stop()
        thread.join(60)
    doorbell.deliver_locally(lambda _: None)


def closed_port() -> int:
    """A port where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_what_a_handler_publishes_is_delivered_without_waiting_for_a_sweep(
    depot: Depot, sweeping: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There and back, with a sweep that comes once an hour and no broker: the sweeper rings at itself."""
    monkeypatch.setenv("CROSSTIE_SWEEP_INTERVAL_S", "3600")
    ConnectionManager.configure(depot.databases.configuration)
    shop.publish(1)
    wakeup, end = sweeping()
    eventually(lambda: depot.numbers("receipts") == [1])
    shop.publish(2)  # by this process, whose rings are the sweeper's
    eventually(lambda: depot.numbers("receipts") == [1, 2])
    wakeup.stop()
    assert end() == 0


def test_a_database_that_is_down_is_told_once_and_delays_no_other(
    depot: Depot, sweeping: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked again and again meanwhile."""
    monkeypatch.setenv("CROSSTIE_SWEEP_INTERVAL_S", "0.01")
    down = {"driver": "postgresql", "database": "x", "host": "127.0.0.1", "port": closed_port()}
    ConnectionManager.configure(depot.databases.configuration | {"aside": down})
    rounds: list[int] = []
    look = operation.routes_of

    def counting(name: str) -> Any:
        if name == "aside":
            rounds.append(1)
        return look(name)

    monkeypatch.setattr(operation, "routes_of", counting)
    wakeup, end = sweeping()
    eventually(lambda: len(rounds) > 5)
    shop.publish(1)
    eventually(lambda: depot.numbers("receipts") == [1])
    wakeup.stop()
    assert end() == 0
    told = [record for record in caplog.records if "aside" in record.message and record.levelno >= logging.WARNING]
    assert len(told) == 1
    assert "the sweep of database 'aside' fails, and is tried again" in told[0].message


def test_an_outage_is_told_when_it_begins_and_when_it_is_over(
    depot: Depot, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A defect comes with its traceback, a database that is down without one."""
    caplog.set_level(logging.INFO)
    outages = Outages(logging.getLogger("test"))
    loop = DatabaseLoop("default", 0.01, outages)
    errors: list[Exception | None] = [
        DatabaseUnavailable("gone"), DatabaseUnavailable("gone still"), ValueError("a defect"), None,
    ]  # fmt: skip

    def failing(*_: Any, **__: Any) -> Any:
        error = errors.pop(0)
        if not errors:
            loop.stop()
        if error is not None:
            raise error
        return False

    monkeypatch.setattr(loop, "round", failing)
    loop.thread.start()
    loop.thread.join(60)
    assert [(record.levelname, bool(record.exc_info)) for record in caplog.records if record.name == "test"] == [
        ("WARNING", False),
        ("ERROR", True),
        ("INFO", False),
    ]


@pytest.mark.parametrize("depot", [("postgresql", "mariadb")], indirect=True, ids="-".join)
def test_a_slow_subscriber_of_one_route_delays_no_other(
    depot: Depot, sweeping: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it delay events that are published while it works, in a route that the running sweeper came to know."""
    monkeypatch.setenv("CROSSTIE_SWEEP_INTERVAL_S", "0.2")  # a ring may be missed, a sweep is not
    ConnectionManager.configure(depot.databases.configuration)
    wakeup, end = sweeping()
    shop.publish(1)
    eventually(lambda: depot.numbers("arrivals") == [1])
    slow, let_go = threading.Event(), threading.Event()
    taken: list[int] = []

    def dawdle(event: shop.ParcelSent) -> None:
        slow.set()
        assert let_go.wait(60)
        taken.append(event.number)

    subscriber(shop.ParcelSent, database="default")(dawdle)
    assert not sync_routes().failed
    shop.publish(2)
    try:
        assert slow.wait(60)
        for number in (3, 4):
            shop.publish(number)
            eventually(lambda: depot.numbers("arrivals")[-1] == number)  # noqa: B023 - called at once
        assert taken == []
    finally:
        let_go.set()
    eventually(lambda: sorted(taken) == [2, 3, 4])
    wakeup.stop()
    assert end() == 0


def test_a_busy_route_is_looked_at_without_waiting_for_the_next_sweep(
    depot: Depot, sweeping: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a sweep once an hour and every doorbell lost: while events flow, the next look is a moment away."""
    monkeypatch.setenv("CROSSTIE_SWEEP_INTERVAL_S", "3600")
    monkeypatch.setattr(sweeper, "BUSY_FOR_S", 60.0)
    ConnectionManager.configure(depot.databases.configuration)
    shop.publish(1)
    wakeup, end = sweeping()
    eventually(lambda: depot.numbers("arrivals") == [1])
    doorbell.deliver_locally(lambda _: None)
    shop.publish(2)
    eventually(lambda: depot.numbers("arrivals") == [1, 2])
    wakeup.stop()
    assert end() == 0


def test_a_handler_that_hangs_ends_the_sweeper_so_that_it_is_started_again(
    depot: Depot, sweeping: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A sweeper that looks alive and sweeps nothing would be worse than none."""
    monkeypatch.setattr(sweeper, "STALL_S", 0.1)
    monkeypatch.setattr(sweeper, "LEASES_TO_STALL", 0)
    let_go = threading.Event()
    monkeypatch.setattr(sweeper, "sweep_sagas", lambda *_, **__: let_go.wait(60))
    try:
        _, end = sweeping()
        assert end() != 0
    finally:
        let_go.set()
        for thread in threading.enumerate():  # those that hung; in use the process would have ended with them
            if thread.name.startswith("crosstie-the sweep"):
                thread.join(60)
    assert "'default'" in caplog.text
    assert "has hung for 0.1 s" in caplog.text


def test_a_job_of_the_deployment_is_run_without_any_beat_and_by_one_sweeper(
    depot: Depot, sweeping: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sweepers find it due, and it may take its time without being taken for a hang."""
    monkeypatch.setattr(sweeper, "JOBS_INTERVAL_S", 0.02)
    ran: list[int] = []
    done = threading.Event()

    def work() -> None:
        ran.append(1)
        assert done.wait(60)

    job = Job("nightly", Every(100_000_000), work)
    (first, first_end), (second, second_end) = sweeping([job]), sweeping([job])
    eventually(lambda: ran)
    done.set()
    finished = "SELECT count(*) FROM crosstie_tick WHERE name = 'nightly' AND done_slot >= 0"
    eventually(lambda: depot.databases.first.scalar(finished) == 1)
    eventually(lambda: depot.databases.second.scalar("SELECT count(*) FROM crosstie_tick WHERE name = 'prune'") == 1)
    first.stop()
    second.stop()
    assert (first_end(), second_end()) == (0, 0)
    assert ran == [1]


def test_subscriptions_of_this_process_are_written_by_its_first_sweep(
    depot: Depot, sweeping: Callable[..., Any]
) -> None:
    """A producer that has not imported a subscriber feeds it from then on."""
    for database in depot.databases.databases:
        database.execute("DELETE FROM crosstie_route")
    sweeping()
    routes = "SELECT route, event_type FROM crosstie_route"
    eventually(lambda: depot.databases.first.rows(routes) and depot.databases.second.rows(routes))
    assert ("secondary", "depot.parcel-sent") in depot.databases.first.rows(routes)

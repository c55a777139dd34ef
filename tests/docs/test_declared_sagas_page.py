"""The examples of docs/declared-sagas.md run, and do what the page says."""

from __future__ import annotations

from types import ModuleType

import pytest

from bench.databases import Pair
from bench.documents import run_document
from crosstie.sagas.declared import definition, run_steps


@pytest.fixture
def page(configured_crash_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the examples, with its tables."""
    monkeypatch.setattr(definition, "_classes", {})
    module = run_document("docs/declared-sagas.md", name="declared_sagas_page")
    module.Flight.create_table()
    module.Room.create_table()
    return module


def test_a_trip_is_booked_once_its_payment_has_come(page: ModuleType, configured_crash_pair: Pair) -> None:
    """Until then it waits; nobody is asked."""
    run_id = page.book("Ann")
    run_steps("default", owner="test")
    run = page.BookTrip.find_run(run_id)
    assert (run.status, run.steps[-1].name, run.steps[-1].state) == ("running", "confirm", "waiting")

    page.payment_arrived(run_id, 900)
    run_steps("default", owner="test")
    assert page.BookTrip.find_run(run_id).status == "done"
    assert configured_crash_pair.first.rows("SELECT state FROM flights") == [("paid 900",)]
    assert configured_crash_pair.second.rows("SELECT state FROM rooms") == [("paid",)]


def test_a_trip_without_a_room_is_released(page: ModuleType, configured_crash_pair: Pair) -> None:
    """At once: no retry would find one."""
    for _ in range(10):
        page.Room(customer="somebody").save()
    run_id = page.book("Ann")
    run_steps("default", owner="test")
    run = page.BookTrip.find_run(run_id)
    assert (run.status, configured_crash_pair.first.rows("SELECT state FROM flights")) == (
        "compensated",
        [("released",)],
    )
    assert "no room is left" in run.error


def test_the_new_version_runs_beside_the_old(page: ModuleType, configured_crash_pair: Pair) -> None:
    """Each run with its own."""
    page.BookTripWithoutRoom(customer="Bob").start()
    page.book("Ann")
    run_steps("default", owner="test")
    assert sorted(configured_crash_pair.first.rows("SELECT customer FROM flights")) == [("Ann",), ("Bob",)]
    assert configured_crash_pair.second.rows("SELECT customer FROM rooms") == [("Ann",)]

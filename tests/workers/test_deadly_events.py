"""An event that ends the process of whoever applies it: real workers find it out, park it, and go on."""

from __future__ import annotations

import json

import pytest

from bench.waiting import eventually
from workers.conftest import Depot

DEADLY = 4
ONE_LANE = {"CROSSTIE_OUTBOX__LANES": "1", "CROSSTIE_OUTBOX__SQLITE_LANES": "1"}
SETTINGS = ONE_LANE | {
    "CROSSTIE_IMPORTS": json.dumps(["workers.depot_deadly"]),
    "CROSSTIE_SWEEP_INTERVAL_S": "0.2",
    "CROSSTIE_OUTBOX__LEASE_S": "1",
    "DEPOT_DEADLY": str(DEADLY),
}


@pytest.fixture(autouse=True)
def _one_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ONE_LANE.items():
        monkeypatch.setenv(name, value)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("depot", [("postgresql", "mariadb")], indirect=True, ids="-".join)
def test_workers_that_an_event_kills_one_after_another_park_it_and_deliver_the_rest(depot: Depot) -> None:
    """One lane, two workers, each restarted whenever it dies; nothing arrives twice."""
    others = [number for number in range(10) if number != DEADLY]
    depot.business("publish", "0", "10").wait_ok()
    for _ in range(2):
        depot.worker(environment=SETTINGS)
    eventually(lambda: depot.numbers("arrivals") == others, within_s=120, describe="all but the deadly event arrive")
    ((payload, state, attempts, deaths, error),) = depot.databases.first.rows(
        "SELECT payload, state, attempts, deaths, error FROM crosstie_parked"
    )
    assert (json.loads(payload)["number"], state, attempts) == (DEADLY, "failing", 1)
    assert deaths >= 5
    assert f"{deaths} workers died while they applied it" in error
    depot.business("publish", "10", "2").wait_ok()
    eventually(lambda: depot.numbers("arrivals") == [*others, 10, 11])
    eventually(lambda: depot.databases.first.rows("SELECT route FROM crosstie_lane WHERE deaths > 0") == [])

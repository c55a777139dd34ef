"""Prometheus metrics: what waits is read from the databases, what is done is counted over all processes of a worker."""

from __future__ import annotations

import json
import re
import socket
import sys
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bench.databases import Pair
from bench.processes import Spawner
from bench.waiting import eventually
from crosstie.orm.cache.tally import CacheCounters, counters, tally
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.faults import armed
from crosstie.outbox import measure, sweep_lanes
from crosstie.outbox.lane import lanes_with_work
from crosstie.outbox.relay import drain_lane
from crosstie.workers import metrics
from outbox import bank
from workers.conftest import Depot

Samples = dict[tuple[str, str, str], float]


def samples(text: str) -> Samples:
    """Value by name, source and route."""
    return {
        (one.name, one.labels.get("source", ""), one.labels.get("route", "")): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
        if "le" not in one.labels
    }


def here() -> Samples:
    """As this process would be scraped."""
    return samples(metrics.exposition().decode())


@pytest.fixture
def measured(
    configured_crash_pair: Pair, monkeypatch: pytest.MonkeyPatch, own_registries: None, no_hurry: None
) -> Pair:
    """This process counts what it does."""
    monkeypatch.setattr(measure, "_meters", [])
    monkeypatch.setattr(metrics, "_prepared", [])
    monkeypatch.setattr(tally, "listeners", [])
    monkeypatch.setenv("CROSSTIE_METRICS__PORT", "0")
    monkeypatch.delenv(metrics.DIRECTORY, raising=False)
    ConnectionManager.configure(configured_crash_pair.configuration)
    metrics.prepare()
    return configured_crash_pair


def test_gauges_say_what_waits(measured: Pair) -> None:
    """Depth and age, parked and dead, by source and route; 0 where nothing waits."""
    bank.subscribe(bank.poisoned_by(1))
    bank.open_bank()
    bank.transfer("a", times=2)
    sweep_lanes("default", owner="one")
    measured.first.execute("UPDATE crosstie_parked SET created_at_ms = created_at_ms - 60000")
    bank.transfer("b")
    route = ("default", "secondary")
    found = here()
    assert found["crosstie_database_up", "default", ""] == 1
    assert found["crosstie_outbox_depth", *route] == 1
    assert found["crosstie_outbox_parked_events", *route] == 2
    assert found["crosstie_outbox_parked_keys", *route] == 1
    assert found["crosstie_outbox_dead_events", *route] == 0
    assert 60 <= found["crosstie_outbox_oldest_unsent_seconds", *route] < 180
    measured.first.execute("DELETE FROM crosstie_parked")
    measured.first.execute("DELETE FROM crosstie_outbox")
    assert here()["crosstie_outbox_oldest_unsent_seconds", *route] == 0


def test_a_database_that_cannot_be_read_is_down_and_the_others_are_shown(measured: Pair) -> None:
    """No figures are made up for it."""
    bank.open_bank()
    measured.second.execute("ALTER TABLE crosstie_parked RENAME TO hidden")
    found = here()
    assert (found["crosstie_database_up", "default", ""], found["crosstie_database_up", "secondary", ""]) == (1, 0)
    assert ("crosstie_outbox_depth", "secondary", "secondary") not in found


def test_the_time_from_commit_to_effect_is_measured_for_each_event(measured: Pair) -> None:
    """By the source's clock: an event that has waited for a minute is one of a minute."""
    bank.open_bank()
    bank.transfer("a", times=3)
    measured.first.execute("UPDATE crosstie_outbox SET created_at_ms = created_at_ms - 60000")
    assert sweep_lanes("default", owner="one") == 3
    name = "crosstie_outbox_commit_to_applied_seconds"
    found = here()
    assert found[f"{name}_count", "default", "secondary"] == 3
    assert 180 <= found[f"{name}_sum", "default", "secondary"] < 400


def test_steals_and_fence_rejections_are_counted(measured: Pair) -> None:
    """An owner stands still, another takes its lane, and the first one is refused."""
    bank.open_bank()
    bank.transfer("a", times=2)

    def take_over() -> None:
        bank.ready_now(measured.first)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(sweep_lanes, "default", owner="next").result() == 0

    (candidate,) = lanes_with_work(ConnectionManager.get("default"))
    with armed("relay.target-committed", take_over):
        assert drain_lane("default", candidate, owner="one", out_of_time=lambda: False).ending == "lost"
    found = here()
    assert found["crosstie_outbox_lease_steals_total", "default", "secondary"] == 1
    assert found["crosstie_outbox_fence_rejections_total", "default", "secondary"] == 1


def test_what_the_cache_does_is_counted(measured: Pair) -> None:
    """Every counter of the tally is a metric, from 0 on."""
    names = [one.name for one in fields(CacheCounters)]
    assert {name: here()[f"crosstie_cache_{name}_total", "", ""] for name in names} == dict.fromkeys(names, 0)
    for number, name in enumerate(names, start=1):
        tally.add(**{name: number})
        tally.add(**{name: number})
    assert {name: here()[f"crosstie_cache_{name}_total", "", ""] for name in names} == {
        name: 2 * number for number, name in enumerate(names, start=1)
    }


def test_a_meter_of_the_cache_that_fails_does_not_disturb_lookups(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and counted all the same."""

    def fail(counts: Mapping[str, int]) -> None:
        raise RuntimeError(f"no room for {counts}")

    monkeypatch.setattr(tally, "listeners", [fail])
    before = counters().hits
    tally.add(hits=1)
    assert counters().hits == before + 1
    assert "no room" in caplog.text


def test_a_meter_that_fails_does_not_disturb_the_relay(measured: Pair) -> None:
    """It is logged, and the others still count."""

    class Broken:
        def applied(self, *_: object) -> None:
            raise ZeroDivisionError

        fenced = stolen = applied

    stop = measure.on_measure(Broken())
    bank.open_bank()
    bank.transfer("a")
    assert sweep_lanes("default", owner="one") == 1
    stop()
    assert here()["crosstie_outbox_commit_to_applied_seconds_count", "default", "secondary"] == 1


def free_port() -> int:
    """A port where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scrape(port: int) -> str:
    """As Prometheus does."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        return str(answer.read().decode())


def test_a_worker_serves_what_all_its_processes_have_done(depot: Depot) -> None:
    """Tasks of the prefork pool and the sweeper apply events; together they are all of them."""
    port = free_port()
    worker = depot.worker(environment={"CROSSTIE_METRICS__PORT": str(port)})
    worker.wait_for_line(f"metrics are served at http://127.0.0.1:{port}/metrics")
    depot.business("--ringing", "publish", "1", "10").wait_ok()
    depot.business("publish", "11", "10").wait_ok()
    count = "crosstie_outbox_commit_to_applied_seconds_count"

    def counted() -> bool:
        found = samples(scrape(port))
        return (found.get((count, "default", "secondary")), found.get((count, "secondary", "default"))) == (20, 20)

    eventually(counted, describe="all events are counted")
    assert sorted(depot.numbers("receipts")) == list(range(1, 21))
    worker.stop()


def test_a_worker_whose_port_is_taken_works_all_the_same(depot: Depot) -> None:
    """The metrics are the lesser good."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        worker = depot.worker(environment={"CROSSTIE_METRICS__PORT": str(port)})
        worker.wait_for_line(rf"metrics cannot be served at 127\.0\.0\.1:{port}")
        depot.business("publish", "1", "1").wait_ok()
        eventually(lambda: depot.numbers("receipts") == [1])
        worker.stop()


def test_the_command_serves_the_gauges_without_a_worker(configured_crash_pair: Pair, spawn: Spawner) -> None:
    """To this machine alone, until it is told to stop."""
    child = spawn.worker(
        ("-m", "crosstie.workers", "metrics", "--port", "0"),
        environment=configured_crash_pair.environment,
        ready="metrics are served at",
    )
    match = re.search(r"http://127\.0\.0\.1:(\d+)/metrics", child.output)
    assert match is not None
    assert samples(scrape(int(match[1])))["crosstie_database_up", "default", ""] == 1
    child.stop()


def test_the_command_can_write_them_once(cli: Callable, configured_crash_pair: Pair) -> None:
    """For a textfile collector."""
    status, out, _ = cli("metrics", "--once", configuration=configured_crash_pair.configuration)
    assert status == 0
    assert samples(out)["crosstie_database_up", "secondary", ""] == 1


def test_without_the_library_the_remedy_is_told(
    cli: Callable, configured_crash_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an extra."""
    monkeypatch.setenv("CROSSTIE_CONNECTIONS", json.dumps(configured_crash_pair.configuration))
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    status, _, err = cli("metrics", "--once")
    assert status == 2
    assert "install crosstie[metrics]" in " ".join(err.split())

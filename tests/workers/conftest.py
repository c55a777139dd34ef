"""A depot in two databases, and brokers with a queue of the test's own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis
from kombu import Connection, Exchange, Queue

from bench.databases import DatabaseKind, Pair, TestDatabase, fresh_database
from bench.guard import configured_databases, release
from bench.leftovers import unique_name
from bench.processes import Child, Spawner, Worker
from crosstie.orm import ConnectionManager
from crosstie.orm.registry import registry
from crosstie.outbox import event as events
from crosstie.outbox import subscriber, subscription, sync_routes
from crosstie.workers import embedded
from crosstie.workers.cli import main
from workers import depot as depot_module

PROGRAM = Path(__file__).with_name("depot.py")


@dataclass
class Depot:
    """Both databases, and how processes are started that work on them."""

    databases: Pair
    spawn: Spawner
    broker_url: str
    queue: str = field(default_factory=lambda: unique_name().replace("_", "-"))

    @property
    def environment(self) -> dict[str, str]:
        """Of every process of the depot."""
        return self.databases.environment | {
            "CROSSTIE_IMPORTS": json.dumps(["workers.depot_subscribers"]),
            "CROSSTIE_BROKER_URL": self.broker_url,
            "CROSSTIE_QUEUE": self.queue,
        }

    def business(self, *arguments: str, environment: dict[str, str] | None = None) -> Child:
        """A business process; see depot.py."""
        return self.spawn.python(PROGRAM, *arguments, environment=self.environment | (environment or {}))

    def worker(
        self,
        *arguments: str,
        ready: str = "crosstie worker ready",
        environment: dict[str, str] | None = None,
        celery: bool = False,
    ) -> Worker:
        """A worker of our own app, with a node name of its own: RabbitMQ lets no other have it."""
        name = f"{self.queue}-{len(self.spawn.children)}"
        ours = ("-m", "crosstie.workers", "worker", "--concurrency", "1", "--name", name)
        celerys = ("-m", "celery", "-A", "crosstie.workers", "worker", "-c", "1", "-l", "INFO", "-n", f"{name}@%h")
        command = (*(celerys if celery else ours), *arguments)
        return self.spawn.worker(command, ready=ready, environment=self.environment | (environment or {}))

    def numbers(self, table: str) -> list[int]:
        """The numbers in a table, each as often as it is there."""
        home = {"parcels": 0, "receipts": 0, "shelves": 1, "arrivals": 1}[table]
        database: TestDatabase = self.databases.databases[home]
        return [int(number) for (number,) in database.rows(f"SELECT number FROM {table} ORDER BY number")]

    def unresolved(self) -> list[str]:
        """The states of saga records that a worker must still act upon, in both databases."""
        query = "SELECT state FROM crosstie_saga WHERE state IN ('applied', 'aborted')"
        return [str(state) for one in self.databases.databases for (state,) in one.rows(query)]

    def waiting(self) -> int:
        """Events in both outboxes."""
        return sum(int(one.scalar("SELECT count(*) FROM crosstie_outbox")) for one in self.databases.databases)


def kinds(request: pytest.FixtureRequest) -> tuple[DatabaseKind, DatabaseKind]:
    """The parameter of the fixture, or two SQLite files."""
    given: tuple[DatabaseKind, DatabaseKind] = getattr(request, "param", ("sqlite", "sqlite"))
    return given


@pytest.fixture
def broker_url(tmp_path: Path) -> str:
    """The broker of the depot; tests override it."""
    return embedded.embedded_url(tmp_path)


@pytest.fixture
def depot(
    request: pytest.FixtureRequest, tmp_path: Path, spawn: Spawner, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Depot]:
    """A depot over two fresh databases, of two kinds that an indirect parameter may name."""
    with ExitStack() as stack:
        pair = Pair(*(stack.enter_context(fresh_database(kind, tmp_path, furnished=True)) for kind in kinds(request)))
        stack.callback(release)
        stack.callback(spawn.close)  # before the databases are given back: the next test may have them
        stack.enter_context(configured_databases(pair))
        # Other tests define events and subscribers of their own, and forget all at their end.
        wanted = {"depot.parcel-sent": depot_module.ParcelSent, "depot.parcel-arrived": depot_module.ParcelArrived}
        monkeypatch.setattr(events, "_classes", dict(events._classes) | wanted)
        monkeypatch.setattr(subscription, "_subscriptions", {})
        subscriber(depot_module.ParcelSent, database="secondary")(depot_module.arrive)
        subscriber(depot_module.ParcelArrived, database="default")(depot_module.receive)
        depot_module.create_depot()
        sync_routes()
        made = Depot(pair, spawn, broker_url)
        yield made
        spawn.close()
        forget_queue(made)


def forget_queue(depot: Depot) -> None:
    """Take the queue from the broker, which other tests share."""
    if ":9/" in depot.broker_url:  # the port where nothing listens
        return
    if depot.broker_url.startswith("redis"):
        with redis.Redis.from_url(depot.broker_url) as client:  # kombu itself leaves the bindings behind
            bindings = ("_kombu.binding", "_kombu.binding_permanent")
            client.delete(depot.queue, *(f"{binding}.{depot.queue}" for binding in bindings))
    if not depot.broker_url.startswith("amqp"):
        return
    with Connection(depot.broker_url) as connection, connection.channel() as channel:
        Queue(depot.queue, Exchange(depot.queue), routing_key=depot.queue)(channel).delete()
        Exchange(depot.queue)(channel).delete()


@pytest.fixture
def models_of_workers_alone(request: pytest.FixtureRequest, own_registries: None) -> Iterator[None]:
    """Hide the models of other folders, whose references would be followed into databases that are not configured."""
    with registry.isolated():
        registry._models = {
            (module, name): model
            for (module, name), model in registry._models.items()
            if module == request.module.__name__ or module.startswith(("sagas.shop", "workers.depot"))
        }
        registry.generation += 1
        yield


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    models_of_workers_alone: None,
) -> Iterator[Callable]:
    """Run a command in an empty folder; returns (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("CROSSTIE_IMPORTS", "[]")  # so that what the command puts there is taken back
    modules = set(sys.modules)

    def run(*arguments: str, configuration: Mapping[str, object] | None = None) -> tuple[int, str, str]:
        if configuration is not None:
            monkeypatch.setenv("CROSSTIE_CONNECTIONS", json.dumps(configuration))
        ConnectionManager.dispose()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(ended.value.code or 0), out, err

    yield run
    for name in set(sys.modules) - modules:
        if name.startswith("shop_"):
            del sys.modules[name]

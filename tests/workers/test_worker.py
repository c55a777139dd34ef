"""Real workers on real brokers, and without any: what a crash leaves is finished, and nothing happens twice."""

from __future__ import annotations

import os
import pickle
import re
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from kombu import Connection, Exchange, Producer, Queue

from bench.faults import HANGING, crash_env, hang_env
from bench.processes import Spawner
from bench.waiting import eventually
from crosstie.workers import embedded
from workers.conftest import Depot
from workers.test_keeper import alive, pids

HOURLY = {"CROSSTIE_SWEEP_INTERVAL_S": "3600"}
OFTEN = {"CROSSTIE_SWEEP_INTERVAL_S": "0.2"}
DEAD = "redis://:s3cret@127.0.0.1:9/0"
SWEEPING = r"crosstie sweeper \d+ sweeps"


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.path), "w"))


def send_pickle(depot: Depot, trap: Path) -> None:
    """What somebody could send who can reach the broker, but no database."""
    embedded.register()
    with Connection(depot.broker_url) as connection, connection.channel() as channel:
        queue = Queue(depot.queue, Exchange(depot.queue), routing_key=depot.queue)
        Producer(channel).publish(
            pickle.dumps(((), {}, Trap(trap))),
            exchange=queue.exchange,
            routing_key=depot.queue,
            declare=[queue],
            content_type="application/x-python-serialize",
            content_encoding="binary",
            headers={"task": "crosstie.sweep", "id": "1", "lang": "py"},
        )


def arrive_by_ringing(depot: Depot, expected: list[int]) -> None:
    """Wait until answers have come; a ring that is lost because the broker stalls for a second is rung again."""
    for _ in range(3):
        with suppress(AssertionError):
            eventually(lambda: depot.numbers("receipts") == expected, within_s=20)
            break
        depot.business("--ringing", "ring").wait_ok()
    assert depot.numbers("receipts") == expected


@pytest.mark.parametrize(
    ("broker", "depot"),
    [
        ("embedded", ("sqlite", "sqlite")),
        ("redis", ("postgresql", "mariadb")),
        ("rabbitmq", ("mariadb", "postgresql")),
    ],
    indirect=["depot"],
)
class TestDoorbells:
    """On each broker, with a sweep that comes once an hour."""

    @pytest.fixture
    def broker_url(self, broker: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
        """The broker of this run."""
        return embedded.embedded_url(tmp_path) if broker == "embedded" else request.getfixturevalue(f"{broker}_url")

    def test_an_event_arrives_by_its_doorbell_and_a_pickled_message_is_refused(
        self, broker: str, depot: Depot, tmp_path: Path
    ) -> None:
        """No sweep could have found it; and what is not JSON is never looked into."""
        worker = depot.worker(environment=HOURLY, celery=broker == "rabbitmq")
        trap = tmp_path / "sprung"
        send_pickle(depot, trap)
        for number in range(3):  # the first may be found by the sweep with which every worker begins
            depot.business("--ringing", "publish", str(number), "1").wait_ok()
            arrive_by_ringing(depot, list(range(number + 1)))
        assert depot.numbers("arrivals") == [0, 1, 2]
        assert not trap.exists()
        assert "ContentDisallowed" in worker.output or "Refusing to deserialize" in worker.output
        log = worker.stop()
        assert ":guest@" not in log
        assert "killed" not in log  # the sweeper and its keeper stopped when they were told to
        ready = next(line for line in log.splitlines() if "crosstie worker ready" in line)
        assert all(
            part in ready
            for part in ("broker ", "databases default (", "secondary (", "imports workers.depot_subscribers")
        )


@pytest.mark.parametrize(
    ("pool", "depot"),
    [
        ("prefork", ("postgresql", "mariadb")),
        ("solo", ("mariadb", "postgresql")),
        ("threads", ("sqlite", "sqlite")),
    ],
    indirect=["depot"],
)
class TestNoMessages:
    """Every Celery message is lost: where the broker should be, nothing listens."""

    @pytest.fixture
    def broker_url(self) -> str:
        """A port that refuses."""
        return DEAD

    def test_the_sweeper_alone_finishes_everything(self, pool: str, depot: Depot) -> None:
        """A saga that was killed between its commits is undone, and events go there and back, each once."""
        depot.business("saga", "1", environment=crash_env("saga.branch-committed")).wait_killed()
        depot.business("saga", "2").wait_ok()
        depot.business("--ringing", "publish", "10", "20").wait_ok()
        worker = depot.worker("--pool", pool, ready=SWEEPING, environment=OFTEN)
        expected = [0, 1, *range(10, 30)]
        eventually(lambda: depot.numbers("receipts") == expected)
        eventually(lambda: not depot.unresolved() and not depot.waiting())
        assert depot.numbers("arrivals") == expected
        assert depot.numbers("parcels") == depot.numbers("shelves") == [0, 1]
        assert worker.exit_code is None
        assert "s3cret" not in worker.output


@pytest.mark.parametrize("depot", [("postgresql", "mariadb")], indirect=True)
def test_a_worker_that_is_killed_inside_a_delivery_is_replaced_by_another(depot: Depot) -> None:
    """It had applied events and not committed them; the next worker applies them, and each took effect once."""
    short = OFTEN | {"CROSSTIE_OUTBOX__LEASE_S": "1"}
    depot.business("publish", "0", "30").wait_ok()
    first = depot.worker(ready=SWEEPING, environment=short | hang_env("relay.applied"))
    first.wait_for_line(HANGING)
    first.kill()
    assert (depot.waiting(), depot.numbers("arrivals")) == (30, [])
    depot.worker(ready=SWEEPING, environment=short)
    eventually(lambda: depot.numbers("receipts") == list(range(30)))
    assert depot.numbers("arrivals") == list(range(30))


USERS_APP = """
from celery import Celery
from crosstie.orm import ConnectionManager
from crosstie.workers import install

app = Celery("shop", broker="{broker}", include=["workers.depot_subscribers"])
app.conf.task_default_queue = "{queue}"
app.conf.task_ignore_result = True
ConnectionManager.configure({configuration})
install(app)

@app.task
def greet(name):
    open("greeting", "w").write("hello " + name)
"""


def test_a_users_own_app_gets_a_sweeper_that_is_always_there(depot: Depot, spawn: Spawner, tmp_path: Path) -> None:
    """Beside the user's tasks; killed, it is started again; and it dies with the worker, even by SIGKILL."""
    text = USERS_APP.format(broker=depot.broker_url, queue=depot.queue, configuration=depot.databases.configuration)
    (tmp_path / "shop_app.py").write_text(text)
    worker = spawn.worker(
        ("-m", "celery", "-A", "shop_app", "worker", "-P", "solo", "-l", "INFO", "-n", f"{depot.queue}@%h"),
        environment=OFTEN,
        ready="crosstie worker ready",
    )
    (first,) = pids(worker, "crosstie sweeper")
    os.kill(first, signal.SIGKILL)
    second = pids(worker, "crosstie sweeper", 2)[1]
    assert f"the sweeper (pid {first}) ended by SIGKILL; another is started" in worker.output
    depot.business("publish", "0", "5").wait_ok()
    eventually(lambda: depot.numbers("receipts") == [0, 1, 2, 3, 4])
    spawn.code("import shop_app; shop_app.greet.delay('world')").wait_ok()
    eventually((tmp_path / "greeting").exists)
    keeper = int(Path(f"/proc/{second}/stat").read_text().rpartition(")")[2].split()[1])
    assert alive(keeper)
    worker.signal(signal.SIGKILL)
    eventually(lambda: not alive(second) and not alive(keeper), describe="the death of sweeper and keeper")
    assert re.search(r"\[tasks\](.|\n)*crosstie\.drain(.|\n)*shop_app\.greet", worker.output)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sweeping_needs_no_celery_at_all(depot: Depot, number: signal.Signals) -> None:
    """`crosstie sweep` works in the foreground until it is told to stop."""
    sweep = depot.spawn.python("-m", "crosstie.workers", "sweep", environment=depot.environment | OFTEN)
    sweep.wait_for_line(SWEEPING)
    depot.business("publish", "0", "3").wait_ok()
    eventually(lambda: depot.numbers("receipts") == [0, 1, 2])
    sweep.signal(number)
    sweep.wait_ok()


def test_one_sweep_by_cron_is_enough_for_what_is_there(depot: Depot) -> None:
    """`crosstie sweep --once` delivers, says so, and ends."""
    depot.business("publish", "0", "3").wait_ok()
    sweep = depot.spawn.python("-m", "crosstie.workers", "sweep", "--once", environment=depot.environment)
    assert (
        "default: sagas settled 0, aborted 0, deferred 0, quarantined 0; events delivered 3; effects "
        in sweep.wait_ok()
    )
    assert depot.numbers("arrivals") == [0, 1, 2]


def test_a_beat_starts_with_our_schedule(depot: Depot) -> None:
    """Optional, since sweepers do what is due; two of them are harmless, since slots are claimed."""
    beat = depot.spawn.python("-m", "crosstie.workers", "beat", "-l", "debug", environment=depot.environment)
    beat.wait_for_line("beat: Waking up")
    assert all(f"crosstie.{job}()" in beat.output for job in ("prune", "sync_routes", "audit"))
    beat.signal(signal.SIGTERM)
    beat.wait_ok()

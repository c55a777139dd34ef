"""Events from database to database while everything fails: none is lost, none is applied twice, none overtakes another.

Producers and workers are killed and stopped, connections are cut and go deaf, COMMITs lose their answers, servers are
killed, and the broker is a folder with a gremlin in it. The seed is printed; `CROSSTIE_STORM_SEED` repeats a run's
choices. The long form is `make storm`; in CI fewer pairs of databases take more events each.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.databases import KINDS, DatabaseKind, TestDatabase
from bench.guard import configured_databases
from bench.processes import Child, Spawner
from bench.servers import in_ci
from bench.waiting import eventually
from storm.gremlin import Gremlin
from storm.stage import LONG, Stage, seed_of_run
from storm.stream import MODELS, STREAMS, Counted, Stream
from storm.verdict import judge

Kinds = tuple[DatabaseKind, DatabaseKind]

ALL_PAIRS: list[Kinds] = [(first, second) for first in KINDS for second in KINDS if first != second]
CI_PAIRS: list[Kinds] = [("postgresql", "mariadb")]
PAIRS = CI_PAIRS if in_ci() and not LONG else ALL_PAIRS
EVENTS = 100_000 if LONG else 3_000 // len(PAIRS)
PER_SECOND = 200 if LONG else 100
"""By each producer, as far as the machine and the storm allow."""
FAULTS, DESTRUCTION = (300, 30) if LONG else (12, 1)
KILLS = {"server": 20, "worker": 30} if LONG else {"server": 1, "worker": 1}
PRODUCERS, WORKERS = 6, 2
SETTINGS = {
    "CROSSTIE_SWEEP_INTERVAL_S": "0.5",
    "CROSSTIE_OUTBOX__LEASE_S": "0.5",
    "CROSSTIE_OUTBOX__LANES": "4",
    "CROSSTIE_OUTBOX__BATCH_SIZE": "50",
    "CROSSTIE_IMPORTS": json.dumps(["storm.stream_worker"]),
}


class _Storm:
    """A stage with producers of events and workers that apply them, and a gremlin in their broker."""

    def __init__(self, kinds: Kinds, folder: Path, spawn: Spawner, seed: int, stack: ExitStack) -> None:
        self.stage = Stage(kinds, folder, spawn, stack, seed=seed)
        self.source, self.target = self.stage.databases.databases
        with configured_databases(self.stage.databases):  # no longer: no connection of this process could die
            for model in MODELS:
                model.create_table()
            Stream.bulk_create([Stream() for _ in range(STREAMS)])
            Counted.bulk_create([Counted() for _ in range(STREAMS + 1)])
        broker = folder / "broker"
        for part in ("messages", "control", "processed"):
            (broker / part).mkdir(parents=True)
        choose = self.stage.choose
        self.gremlin = Gremlin(broker / "messages", choose.randrange(2**32), destruction=DESTRUCTION)
        self.stage.fill(WORKERS, self._worker, self._mill, SETTINGS | {"STREAM_BROKER": str(broker)})
        self.stage.make_weather(KILLS)

    def rage(self) -> None:
        """Until enough was written and enough has struck."""
        with self.gremlin:
            self.stage.rage(self.written, self.applied, until=EVENTS, faults=FAULTS)

    def calm(self) -> float:
        """How long it took until everything was applied."""
        return self.stage.calm(
            [
                "SELECT count(*) FROM crosstie_outbox",
                "SELECT count(*) FROM crosstie_parked",
                "SELECT count(*) FROM crosstie_saga WHERE state IN ('applied', 'aborted')",
            ]
        )

    def written(self) -> int:
        """How many events were committed, those of sagas apart."""
        return int(self.source.scalar("SELECT sum(number) FROM stream_streams"))

    def applied(self) -> int:
        """About how many have taken effect."""
        return int(self.target.scalar("SELECT max(id) FROM stream_applied") or 0)

    def steps(self, database: TestDatabase, table: str) -> list[tuple[str, int]]:
        """The events in a table, in the order in which they came into it."""
        return [(str(stream), int(n)) for stream, n in database.rows(f"SELECT stream, number FROM {table} ORDER BY id")]

    def _mill(self) -> Child:
        eventually(
            lambda: self.source.scalar("SELECT count(*) FROM crosstie_route") == 2,
            within_s=60,
            describe="a worker has told of its subscribers",
        )
        call = f"produce({PRODUCERS}, {self.stage.choose.randrange(2**32)}, {PER_SECOND})"
        return self.stage.start_writers(f"from storm.stream import produce; {call}")

    def _worker(self, place: int) -> Child:
        return self.stage.start_worker("storm.stream_worker", place)


@pytest.fixture
def storm(request: pytest.FixtureRequest, tmp_path: Path, spawn: Spawner) -> Iterator[_Storm]:
    """A storm over one pair of databases, about to begin."""
    with ExitStack() as stack:
        made = _Storm(request.param, tmp_path, spawn, seed_of_run(), stack)
        stack.callback(spawn.close)
        yield made


@pytest.mark.storm
@pytest.mark.timeout(3600 if LONG else 720)
@pytest.mark.parametrize("storm", PAIRS, ids="-".join, indirect=True)
def test_every_event_is_applied_once_and_in_order(storm: _Storm) -> None:
    """0 lost, 0 applied twice, 0 out of order in their stream, 0 that were rolled back; no event is parked."""
    began_s = time.monotonic()
    storm.rage()
    raged_s = time.monotonic() - began_s
    calm_s = storm.calm()

    written = storm.steps(storm.source, "stream_written")
    applied = storm.steps(storm.target, "stream_applied")
    stage = storm.stage
    errors = Counter(re.findall(r"^producer .*: (.*)$", stage.mill.output, re.MULTILINE))
    sys.stdout.write(
        f"{len(written)} events in {raged_s:.0f} s; calm after {calm_s:.1f} s; faults {dict(stage.weather.faults)}; "
        f"broker {dict(storm.gremlin.acts)}; workers replaced {stage.workers.replaced}; "
        f"errors of producers {dict(errors)}\n"
    )
    verdict = judge(written, applied)
    assert verdict.is_right, verdict
    assert sum(steps for (steps,) in storm.target.rows("SELECT events FROM stream_counted")) == len(applied)
    assert len(written) >= EVENTS

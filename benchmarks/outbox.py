"""What the outbox carries, what it costs, and how long an event takes: PostgreSQL to MariaDB, two worker processes.

1. *throughput*: a committed backlog is applied, by crosstie and by others, which take turns in rounds. The rate is that
   of the last 95 % of the events, so that no start of a process counts. The ratio is to one Celery task per event over
   Redis in the same round. All write the same row of the same table, and may do it twice without harm.
2. *cost*: what publishing adds to a transaction of the ORM, in percent; and what the same statements add to one by the
   driver alone.
3. *backlog*: a long one, in rates relative to a short one; once more while a session keeps an old snapshot open.
4. *latency*: from before the commit to the subscriber, with doorbells and with every doorbell lost.

    python benchmarks/outbox.py [--parts throughput,cost,backlog,latency] [--scale 1.0] [--rounds 3]
                                [--backlog 1000000] [--carriers crosstie,celery,procrastinate,dbos]

CROSSTIE_BENCH_POSTGRESQL_URL and CROSSTIE_BENCH_MARIADB_URL name servers on which a database crosstie_bench_outbox (or
CROSSTIE_BENCH_DATABASE) may be made and dropped, CROSSTIE_BENCH_REDIS_URL a Redis in which queues of that name may be
made.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Final

import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).parent))

from carriers import place
from carriers.carrier import Carrier
from carriers.celery_carrier import CeleryTasks
from carriers.crosstie_carrier import Crosstie
from carriers.dbos_carrier import Dbos
from carriers.procrastinate_carrier import Procrastinate
from versions import versions

from crosstie.orm.connection import ConnectionManager
from crosstie.outbox import create_tables, sync_routes

EVENTS: Final = 6000
WITHIN_S: Final = 900
PARTS: Final = ("throughput", "cost", "backlog", "latency")
SET_BASED: Final = "crosstie, a subscriber of many events"
EACH: Final = "crosstie, a subscriber of each event"


def main() -> None:
    """Measure and print."""
    options = _options()
    place.create_databases()
    os.environ.update(place.environment())
    try:
        ConnectionManager.configure()
        for name in ConnectionManager.names():
            create_tables(ConnectionManager.get(name))
        from carriers import workload  # noqa: F401 - declares the subscription

        assert not sync_routes().failed
        print(versions("sqlalchemy", "psycopg", "PyMySQL", "celery", "redis", "procrastinate", "dbos"))
        for part in options.parts.split(","):
            print(f"\n## {part}\n", flush=True)
            _RUN[part](options)
    finally:
        ConnectionManager.dispose()
        place.drop_databases()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--carriers", default="crosstie,celery,procrastinate,dbos")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--backlog", type=int, default=200_000)
    return parser.parse_args()


# -- throughput -------------------------------------------------------------------------------------------------------


def throughput(options: argparse.Namespace) -> None:
    """Each carrier in each round."""
    carriers: dict[str, list[Carrier]] = {
        "celery": [CeleryTasks()],
        "crosstie": [Crosstie(SET_BASED, "batch", 10.0), Crosstie(EACH, "each", 2.0)],
        "procrastinate": [Procrastinate()],
        "dbos": [Dbos()],
    }
    chosen = [one for name in ("celery", *options.carriers.split(",")) for one in carriers.pop(name, [])]
    rates: dict[str, list[float]] = {one.name: [] for one in chosen}
    for _ in range(options.rounds):
        for one in chosen:
            if one.name not in rates:
                continue
            try:
                rates[one.name].append(_rate(one, max(200, int(EVENTS * options.scale * one.share))))
            except (ImportError, TimeoutError) as error:
                print(f"left out: {one.name} ({error})\n{one.output()}")
                del rates[one.name]
    baseline = rates[chosen[0].name]
    for name, measured in rates.items():
        ratio = statistics.median(rate / base for rate, base in zip(measured, baseline, strict=True))
        print(f"{ratio:6.2f}  {statistics.median(measured):7.0f} /s  {name}")


def _rate(carrier: Carrier, count: int, *, watch: Callable[[Carrier], None] | None = None) -> float:
    """Events per second over the last 95 %."""
    progress = place.Progress()
    progress.clear()
    carrier.load(count)
    carrier.start()
    try:
        poll_s = max(0.02, count / 1_000_000)
        first = count // 20
        begun_s = progress.wait_for(first, within_s=WITHIN_S, poll_s=poll_s)
        first = progress.count()
        if watch is not None:
            watch(carrier)
        ended_s = progress.wait_for(count, within_s=WITHIN_S, poll_s=poll_s)
        if watch is not None:
            watch(carrier)
        return (count - first) / max(ended_s - begun_s, 1e-9)
    finally:
        carrier.stop()


# -- cost -------------------------------------------------------------------------------------------------------------


def cost(options: argparse.Namespace) -> None:
    """What publishing adds to a transaction, on both databases."""
    from carriers.writer import RawWriter, write

    rounds = max(3, int(15 * options.scale))
    for name in ("source", "target"):
        for rows, events in ((1, 1), (100, 1), (100, 100)):
            times = max(2, int((200 if rows == 1 else 8) * options.scale))
            measured: dict[int, list[float]] = {0: [], events: []}
            for turn in range(rounds + 1):
                for published in (0, events) if turn % 2 else (events, 0):
                    begun_s = time.perf_counter()
                    for _ in range(times):
                        write(name, rows, events=published)
                    if turn:  # the first warms up
                        measured[published].append((time.perf_counter() - begun_s) / times * 1000)
            without, with_them = measured[0], measured[events]
            added = statistics.median(more / less - 1 for more, less in zip(with_them, without, strict=True))
            print(
                f"{added:+7.1%}  {statistics.median(without):8.2f} ms without, {statistics.median(with_them):8.2f} ms "
                f"with: {rows} row(s) and {events} event(s) on {ConnectionManager.get(name).kind}"
            )
        raw: dict[int, list[float]] = {0: [], 1: []}
        times = max(2, int(200 * options.scale))
        with RawWriter(name) as writer:
            for turn in range(rounds + 1):
                for published in (0, 1) if turn % 2 else (1, 0):
                    begun_s = time.perf_counter()
                    for _ in range(times):
                        writer.write(events=published)
                    if turn:
                        raw[published].append((time.perf_counter() - begun_s) / times * 1000)
        added = statistics.median(more / less - 1 for more, less in zip(raw[1], raw[0], strict=True))
        print(
            f"{added:+7.1%}  {statistics.median(raw[0]):8.2f} ms without, {statistics.median(raw[1]):8.2f} ms with: "
            f"1 row(s) and 1 event(s) on {ConnectionManager.get(name).kind}, by the driver alone"
        )
        with ConnectionManager.get(name).autocommit.connect() as connection:
            connection.execute(sa.text("DELETE FROM crosstie_outbox"))


# -- backlog ----------------------------------------------------------------------------------------------------------


def backlog(options: argparse.Namespace) -> None:
    """A long one, and a long one beside an old snapshot, each between two short ones."""
    count = max(1000, min(options.backlog // 10, 60_000))
    before = _rate(Crosstie(SET_BASED, "batch", 1.0), count)
    for pinned in (False, True):
        memory: list[list[float]] = []
        with _old_snapshots() if pinned else nullcontext():
            rate = _rate(Crosstie(SET_BASED, "batch", 1.0), options.backlog, watch=partial(_note_memory, memory))
        after = _rate(Crosstie(SET_BASED, "batch", 1.0), count)
        short, before = statistics.mean((before, after)), after
        print(f"  1.00  {short:7.0f} /s  {count:,} events, before and after")
        told = f"{options.backlog:,} events" + (", while a session keeps an old snapshot" if pinned else "")
        grown = ", ".join(f"{begun:.0f} → {ended:.0f} MB" for begun, ended in zip(*memory, strict=True))
        print(f"{rate / short:6.2f}  {rate:7.0f} /s  {told}; memory of the workers at 5 % and at the end: {grown}")


def _note_memory(memory: list[list[float]], carrier: Carrier) -> None:
    memory.append([_rss_mb(one.pid) for one in carrier.workers])


@contextmanager
def _old_snapshots() -> Iterator[None]:
    """Sessions that see both databases as they are now."""
    source = sa.create_engine(
        place.source_url().set(drivername="postgresql+psycopg"), isolation_level="REPEATABLE READ"
    )
    target = place.target_engine().execution_options(isolation_level="REPEATABLE READ")
    with source.connect() as one, target.connect() as other:
        one.execute(sa.text("SELECT count(*) FROM crosstie_lane"))
        other.execute(sa.text("SELECT count(*) FROM crosstie_inbox"))
        yield


def _rss_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return float(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


# -- latency ----------------------------------------------------------------------------------------------------------


class Lossy(Crosstie):
    """No process rings, and nobody would hear it."""


class Rung(Crosstie):
    """A Celery worker with two processes, for which commits ring."""

    def start(self) -> None:
        """With its sweeper."""
        options = ("worker", "--concurrency", "2", "--loglevel", "WARNING", "--without-gossip", "--without-mingle")
        self.run("-m", "celery", "-A", "crosstie.workers", *options, CROSSTIE_IMPORTS='["carriers.workload"]')


def latency(options: argparse.Namespace) -> None:
    """A hundred transactions per second, one event each."""
    from carriers import workload

    seconds = max(2.0, 20 * options.scale)
    for told, carrier, rings in (
        ("every doorbell lost, two sweepers", Lossy(SET_BASED, "each", 1.0), False),
        ("with doorbells over Redis, a Celery worker", Rung(SET_BASED, "each", 1.0), True),
    ):
        progress = place.Progress()
        progress.clear()
        with _doorbells() if rings else nullcontext():
            carrier.start()
            try:
                workload.publish(0, 10)
                progress.wait_for(10, within_s=60, poll_s=0.05)
                progress.clear()
                count = 0
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    workload.publish(1000 + count, 1)
                    count += 1
                    time.sleep(0.01)
                progress.wait_for(count, within_s=60, poll_s=0.05)
            finally:
                carrier.stop()
        waits = progress.waits_ms()
        p50, p99 = (waits[int(len(waits) * share)] for share in (0.5, 0.99))
        print(f"p50 {p50:6.0f} ms, p99 {p99:6.0f} ms, longest {waits[-1]:6.0f} ms: {told} ({count} events)")


@contextmanager
def _doorbells() -> Iterator[None]:
    """Commits of this process ring while the block runs."""
    from crosstie.outbox import doorbell as outbox_doorbell
    from crosstie.workers import app, doorbell

    app.control.purge()
    stop = outbox_doorbell.on_ring(doorbell.ring_for_drain)
    try:
        yield
    finally:
        stop()
        outbox_doorbell._listeners.clear()


_RUN: Final = {"throughput": throughput, "cost": cost, "backlog": backlog, "latency": latency}

if __name__ == "__main__":
    main()

"""What a saga costs: one row in each of two databases, against two local transactions that nothing protects.

1. *cost*: the floor (1.00, and higher is faster) is the fastest that the drivers can do: a transaction by psycopg and
   one by PyMySQL, a row each, with no undo and no record. Beside it, through the drivers as well, what people write who
   need the protection: two-phase commit with a row that holds the decision, and a saga by hand with three commits; and
   DBOS with a step for each database. All take turns in small rounds, with one thread and with eight, each on rows of
   its own; the median of the rounds' ratios is printed.
2. *single*: a block that writes to one database, against a transaction of the ORM.
3. *recovery*: sagas that died between their commits, undone by the sweep of one process and of two.

    python benchmarks/sagas.py [--parts cost,single,recovery] [--threads 1,8] [--rounds 15] [--crashed 10000]
                               [--round-trip-ms 0]

`--round-trip-ms` puts a way between this process and the servers, as a network does; on one machine there is none.

CROSSTIE_BENCH_POSTGRESQL_URL and CROSSTIE_BENCH_MARIADB_URL name servers on which a database crosstie_bench_sagas may
be made and dropped. Two-phase commit is left out where PostgreSQL has max_prepared_transactions = 0.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parent))

from versions import versions

os.environ.setdefault("CROSSTIE_BENCH_DATABASE", "crosstie_bench_sagas")

from carriers import place
from carriers.distance import at_distance
from rivals import blocks
from rivals.raw import HandWritten, RawTransactions, TwoPhase

from crosstie.orm import ConnectionManager
from crosstie.outbox import create_tables
from crosstie.sagas import sweep_sagas

PARTS: Final = ("cost", "single", "recovery")
BLOCKS: Final = 96
WITHIN_S: Final = 900

Work = Callable[[int], Callable[[], None]]
"""Makes the block that a thread of this number repeats."""


def main() -> None:
    """Measure and print."""
    options = _options()
    with at_distance(options.round_trip_ms):
        _measure(options)


def _measure(options: argparse.Namespace) -> None:
    place.create_databases()
    os.environ.update(place.environment())
    try:
        ConnectionManager.configure()
        for name in ConnectionManager.names():
            create_tables(ConnectionManager.get(name))
        blocks.create(rows=max(map(int, options.threads.split(","))))
        print(versions("sqlalchemy", "psycopg", "PyMySQL", "dbos"))
        if options.round_trip_ms:
            print(f"a way to the servers and back takes {options.round_trip_ms:g} ms longer than on this machine")
        for part in options.parts.split(","):
            print(f"\n## {part}\n", flush=True)
            _RUN[part](options)
    finally:
        ConnectionManager.dispose()
        place.drop_databases()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--threads", default="1,8")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--crashed", type=int, default=10_000)
    parser.add_argument("--round-trip-ms", type=float, default=0.0)
    return parser.parse_args()


# -- cost -------------------------------------------------------------------------------------------------------------


def cost(options: argparse.Namespace) -> None:
    """Every way, with few and with many threads."""
    for threads in map(int, options.threads.split(",")):
        ways: dict[str, Work] = {
            "two raw transactions, unprotected (psycopg, PyMySQL)": RawTransactions,
            "two-phase commit with a decision row (raw drivers)": TwoPhase,
            "a saga by hand, three commits (raw drivers)": HandWritten,
            "two ORM transactions, unprotected": blocks.orm_transactions,
            "saga, an increment in each database": blocks.increments,
            "saga, an update in each database": blocks.updates,
            "saga, an insert in each database": blocks.inserts,
        }
        if TwoPhase.is_switched_off():
            del ways["two-phase commit with a decision row (raw drivers)"]
            print("left out: two-phase commit, because PostgreSQL has max_prepared_transactions = 0")
        print(f"{threads} thread(s)")
        with ThreadPoolExecutor(threads) as pool:
            _compare(ways, pool, threads, options.rounds)
        if (rate := _rate_of_dbos(threads)) is not None:
            name, told = rate
            print(f"       {told:6.0f} /s  {name}, after the others")


def _compare(ways: dict[str, Work], pool: ThreadPoolExecutor, threads: int, rounds: int) -> None:
    rates: dict[str, list[float]] = {name: [] for name in ways}
    made = {name: [work(number) for number in range(threads)] for name, work in ways.items()}
    for turn in range(rounds + 1):
        for name, repeated in made.items():
            start = time.perf_counter()
            list(pool.map(lambda block: _repeat(block, BLOCKS // threads), repeated))
            if turn:  # the first warms up
                rates[name].append(BLOCKS // threads * threads / (time.perf_counter() - start))
        for name in ConnectionManager.names():  # the records of what was committed are not part of the next round
            while sweep_sagas(name).settled:
                pass
    floor = next(iter(rates.values()))
    for name, measured in rates.items():
        ratio = statistics.median(one / other for one, other in zip(measured, floor, strict=True))
        print(f"{ratio:6.2f}  {statistics.median(measured):6.0f} /s  {name}", flush=True)


def _repeat(block: Callable[[], None], times: int) -> None:
    for _ in range(times):
        block()


def _rate_of_dbos(threads: int) -> tuple[str, float] | None:
    """In a process of its own, whose threads begin to work before they are measured."""
    try:
        version("dbos")
    except PackageNotFoundError:
        print("left out: DBOS, which is not installed")
        return None
    command = [sys.executable, "-m", "rivals.dbos_steps", str(threads)]
    told = subprocess.run(command, env=place.environment(), check=True, capture_output=True, text=True)
    return "DBOS, a step for each database", float(told.stdout.split("per second:")[1])


# -- single -----------------------------------------------------------------------------------------------------------


def single(options: argparse.Namespace) -> None:
    """Both write the same row."""
    ways = {"a transaction of the ORM": blocks.one_transaction, "a saga that writes one database": blocks.one_database}
    with ThreadPoolExecutor(1) as pool:
        _compare(ways, pool, 1, max(options.rounds, 30))


# -- recovery ---------------------------------------------------------------------------------------------------------


def recovery(options: argparse.Namespace) -> None:
    """Each saga has committed its branch and not its home."""
    for processes in (1, 2):
        before = blocks.crash(options.crashed)
        left = blocks.unfinished()
        assert left == options.crashed, f"{left} unfinished sagas"
        command = [sys.executable, "-m", "rivals.sweep"]
        start = time.perf_counter()
        workers = [subprocess.Popen(command, env=place.environment()) for _ in range(processes)]
        for worker in workers:
            assert worker.wait(timeout=WITHIN_S) == 0
        took_s = time.perf_counter() - start
        assert blocks.unfinished() == 0
        assert blocks.written() == before, f"{blocks.written() - before} increments of crashed sagas are left"
        print(f"{left / took_s:7.0f} /s  {left:,} sagas undone by {processes} process(es)", flush=True)


_RUN: Final = {"cost": cost, "single": single, "recovery": recovery}

if __name__ == "__main__":
    main()

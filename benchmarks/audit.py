"""What an audit between two databases costs, beside PostgreSQL's own NOT EXISTS with both tables in it, and others.

Each way runs in a process of its own, all of them in turns in each round. Printed is the median of the rounds' ratios
to NOT EXISTS in the same round (1.00), the memory that the process has taken beyond what it had with everything
imported, and for crosstie the bytes that its databases sent for each distinct key. Each way has to find every planted
orphan. `crosstie-changes` looks at 10,000 children that were added since the audit before. What is not installed, or
cannot do a case, is said to be left out.

    python benchmarks/audit.py [--sizes 1000000,5000000,20000000] [--rounds 3]
                               [--cases integer,integer-mariadb,uuid,no-index]
                               [--ways crosstie,crosstie-words,crosstie-changes,duckdb,connectorx,reladiff]

CROSSTIE_BENCH_POSTGRESQL_URL and CROSSTIE_BENCH_MARIADB_URL name servers on which a database crosstie_bench_audit (or
CROSSTIE_BENCH_DATABASE) may be made and dropped.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))

from auditors import tables
from auditors.tables import CASES, Case
from auditors.ways import IMPORTS, PREPARATIONS, WAYS
from versions import versions

BASELINE: Final = "not-exists"
WITHIN_S: Final = 3600


def main() -> None:
    """Measure and print, or run one way in this process."""
    options = _options()
    if options.one:
        print(json.dumps(run_one(*options.one.split(","))))
        return
    if options.prepare:
        way, name = options.prepare.split(",")
        print(json.dumps({"prepared": PREPARATIONS[way](CASES[name])}))
        return
    chosen = [CASES[name] for name in options.cases.split(",")]
    print(
        versions("sqlalchemy", "psycopg", "PyMySQL", "numpy", "pyroaring", "duckdb", "connectorx", "polars", "reladiff")
    )
    for size in map(int, options.sizes.split(",")):
        try:
            tables.create(size, {case.kind for case in chosen})
            for name in options.cases.split(","):
                measure(name, size, [BASELINE, *options.ways.split(",")], options.rounds)
        finally:
            tables.drop()


def measure(name: str, size: int, ways: list[str], rounds: int) -> None:
    """One case at one size: a line for each way."""
    case = CASES[name]
    with tables.engine("postgresql").connect() as connection:
        orphans = connection.exec_driver_sql(tables.anti_join(case, "count(DISTINCT c.fk)")).scalar_one()
    print(f"\n## {case.title}, {size:,} children, {orphans:,} orphaned keys (promised: below {case.promised:.2f})\n")
    answers: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in [way for way in ways if way in answers]:
            answer = _in_process_of_its_own("--prepare", way, name) if way in PREPARATIONS else {}
            if "error" not in answer:
                answer = _in_process_of_its_own("--one", way, name)
            if "error" in answer:
                print(f"  left out: {way} ({answer['error']})")
                del answers[way]
            else:
                assert way == BASELINE or answer["keys"] == orphans, f"{way} found {answer['keys']} of {orphans}"
                answers[way].append(answer)
    for way, found in answers.items():
        ratios = [one["seconds"] / base["seconds"] for one, base in zip(found, answers[BASELINE], strict=True)]
        megabytes = max(one["megabytes"] for one in found)
        wire = f"{found[0]['bytes_per_key']:6.1f} bytes per key" if found[0]["bytes_per_key"] else ""
        print(f"{statistics.median(ratios):6.2f} {megabytes:8.0f} MB  {way:16} {wire}", flush=True)


def run_one(way: str, name: str) -> dict[str, Any]:
    """Run a way in this process; what went wrong is said in the answer."""
    work: Callable[[Case], int] = WAYS[way]
    wire = _Wire()
    try:
        for module in IMPORTS.get(way, ()):
            importlib.import_module(module)
        before = _megabytes()
        start = time.perf_counter()
        keys = work(CASES[name])
    except Exception as error:  # noqa: BLE001 - said and left out; the others go on
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"}
    seconds = time.perf_counter() - start
    megabytes = _megabytes() - before
    return {"keys": keys, "seconds": seconds, "megabytes": megabytes, "bytes_per_key": wire.bytes_per_key()}


class _Wire:
    """Counts what crosstie's pages are made of: the bytes of packed values, and the child's distinct keys."""

    def __init__(self) -> None:
        from crosstie.orm.integrity import packing, pipeline, uuids

        self.bytes = 0
        self.keys = 0
        whole, compared = packing.whole, pipeline.Compared

        def counted(data: bytes | None, *rest: Any) -> bytes:
            self.bytes += len(data or b"")
            return whole(data, *rest)

        def told(tile: Any, *rest: Any) -> Any:
            self.keys += tile.keys
            return compared(tile, *rest)

        for module in (packing, uuids):
            setattr(module, "whole", counted)  # noqa: B010 - it is imported there, and no part of the module's interface
        pipeline.Compared = told  # type: ignore[assignment,misc]

    def bytes_per_key(self) -> float:
        """0 where nothing was packed."""
        return self.bytes / self.keys if self.keys else 0.0


def _megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _in_process_of_its_own(what: str, way: str, name: str) -> dict[str, Any]:
    command = [sys.executable, __file__, what, f"{way},{name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WITHIN_S, env=os.environ)
    if done.returncode != 0:
        return {"error": " ".join(done.stderr.split())[-150:]}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--ways", default=",".join(way for way in WAYS if way != BASELINE))
    parser.add_argument("--one", metavar="WAY,CASE", help="run one way in this process, on tables that are there")
    parser.add_argument("--prepare", metavar="WAY,CASE", help="do what comes before a way, on tables that are there")
    return parser.parse_args()


if __name__ == "__main__":
    main()

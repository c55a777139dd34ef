"""DBOS: a workflow with a step for each database, its state in PostgreSQL. As a program: `dbos_steps.py THREADS`."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

from carriers.place import source_url

from rivals.raw import LEFT, RIGHT, RawTransactions

BLOCKS = 240


def main(threads: int) -> None:
    """Print workflows per second, of which each thread runs one after the other."""
    from dbos import DBOS

    DBOS(
        config={
            "name": "bench",
            "system_database_url": source_url().render_as_string(hide_password=False),
            "log_level": "WARNING",
        }
    )
    held = [RawTransactions(number) for number in range(threads)]

    @DBOS.step()
    def write_left(thread: int) -> None:
        with held[thread].left.cursor() as cursor:
            cursor.execute(LEFT, (held[thread].row,))
        held[thread].left.commit()

    @DBOS.step()
    def write_right(thread: int) -> None:
        with held[thread].right.cursor() as cursor:
            cursor.execute(RIGHT, (held[thread].row,))
        held[thread].right.commit()

    @DBOS.workflow()
    def both(thread: int) -> None:
        write_right(thread)
        write_left(thread)

    def repeat(thread: int, times: int) -> None:
        for _ in range(times):
            both(thread)

    DBOS.launch()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(repeat, range(threads), [5] * threads))
        start = time.perf_counter()
        list(pool.map(repeat, range(threads), [BLOCKS // threads] * threads))
        took_s = time.perf_counter() - start
    DBOS.destroy()
    print("per second:", BLOCKS // threads * threads / took_s)


if __name__ == "__main__":
    main(int(sys.argv[1]))

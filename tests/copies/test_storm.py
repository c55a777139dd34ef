"""Writers, sagas and workers that are killed at random; when all is calm, every copy is its original.

The seed is printed; `CROSSTIE_STORM_SEED` repeats a run's choices. The long form is `make storm`.
"""

from __future__ import annotations

import os
import random
import re
import sys
from decimal import Decimal

import pytest

from bench.databases import Pair
from bench.processes import Child, Spawner
from bench.waiting import eventually
from copies.forum import open_forum, stored
from copies.storm_client import USERS
from crosstie.outbox import compare_copies, select_copies

LONG = os.environ.get("CROSSTIE_STORM") == "long"
KILLS, WRITERS, WORKERS = (60, 4, 2) if LONG else (6, 2, 2)
PROGRAM = "from copies.storm_client import write, work; "


@pytest.mark.storm
@pytest.mark.timeout(1800 if LONG else 480)
def test_every_copy_is_its_original_when_all_is_calm(configured_crash_pair: Pair, spawn: Spawner) -> None:
    """No event is parked, no saga unfinished, and the two databases agree row by row."""
    pair = configured_crash_pair
    seed = int(os.environ.get("CROSSTIE_STORM_SEED") or random.randrange(2**32))
    sys.stdout.write(f"CROSSTIE_STORM_SEED={seed}\n")
    choose = random.Random(seed)
    forum = open_forum()
    forum.User.bulk_create([forum.User(email=f"user {n}", balance=Decimal(0)) for n in range(1, USERS + 1)])
    writers: list[Child] = []

    def writer() -> Child:
        call = f"write('w{len(writers)}', {choose.randrange(2**32)})"
        writers.append(spawn.code(PROGRAM + call, environment=pair.environment))
        return writers[-1]

    def worker() -> Child:
        return spawn.code(PROGRAM + f"work('worker {choose.randrange(2**32)}')", environment=pair.environment)

    def written() -> int:
        return sum(len(re.findall(r"^done", one.output, re.MULTILINE)) for one in writers)

    running, workers = [writer() for _ in range(WRITERS)], [worker() for _ in range(WORKERS)]
    for _ in range(KILLS):
        more = written() + choose.randint(5, 60)
        eventually(lambda: written() >= more, describe="writers write")  # noqa: B023
        kind, make = (workers, worker) if choose.random() < 0.4 else (running, writer)
        victim = choose.randrange(len(kind))
        kind[victim].kill()
        kind[victim] = make()
    for child in running:
        child.kill()

    def calm() -> bool:
        unfinished = "SELECT count(*) FROM crosstie_saga WHERE state IN ('applied', 'aborted')"
        return stored(pair.databases) == 0 and not any(database.scalar(unfinished) for database in pair.databases)

    eventually(calm, within_s=240, describe="no event waits and no saga is unfinished")
    for child in workers:
        child.kill()

    assert [database.rows("SELECT * FROM crosstie_parked") for database in pair.databases] == [[], []]
    assert written() > KILLS
    for group in select_copies():
        compared = compare_copies(group, settle_s=0)
        assert compared.is_right, compared
        assert compared.rows > 0

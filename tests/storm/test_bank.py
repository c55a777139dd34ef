"""A bank over two databases, whose processes and workers are killed at random: no money is made, and nobody is lied to.

The seed is printed; `CROSSTIE_STORM_SEED` repeats a run's choices. The long form is `make storm`.
"""

from __future__ import annotations

import os
import random
import re
import sys
import time
from pathlib import Path

import pytest

from bench.databases import Pair, TestDatabase
from bench.processes import Child, Spawner, Worker
from bench.waiting import eventually
from storm.bank import ACCOUNTS, MODELS, OPENING, Left, Right

LONG = os.environ.get("CROSSTIE_STORM") == "long"
KILLS, CLIENTS, TRANSFERS = (60, 4, 100_000) if LONG else (8, 3, 100_000)
PROGRAM = Path(__file__).with_name("bank.py")


@pytest.mark.storm
@pytest.mark.timeout(1800 if LONG else 180)
def test_no_kill_makes_or_loses_money(configured_crash_pair: Pair, spawn: Spawner) -> None:
    """After random SIGKILLs and a last worker: the sum is conserved, transfers are whole, callers heard the truth."""
    seed = int(os.environ.get("CROSSTIE_STORM_SEED") or random.randrange(2**32))
    sys.stdout.write(f"CROSSTIE_STORM_SEED={seed}\n")
    storm = _Storm(configured_crash_pair, spawn, random.Random(seed))

    storm.rage()
    storm.calm()

    told = storm.told()
    entries = {
        name: [str(transfer) for (transfer,) in database.rows("SELECT transfer FROM bank_entries")]
        for name, database in storm.databases.items()
    }
    assert sum(storm.balances()) == 2 * ACCOUNTS * OPENING
    assert sorted(entries["default"]) == sorted(entries["secondary"]), "a transfer is in one database only"
    assert len(set(entries["default"])) == len(entries["default"]), "a transfer was applied twice"
    assert told["committed"] <= set(entries["default"]), "a transfer that a caller was told of is not there"
    assert not told["aborted"] & set(entries["default"]), "a transfer that was said to be aborted is there"
    assert len(told["committed"]) > KILLS, "too little happened between the kills to prove anything"


class _Storm:
    """Clients that transfer, workers that repair, and somebody who kills them."""

    def __init__(self, pair: Pair, spawn: Spawner, choose: random.Random) -> None:
        self.databases: dict[str, TestDatabase] = pair.by_name
        self._environment = pair.environment | {"CROSSTIE_SWEEP_INTERVAL_S": "0.2"}
        self._spawn = spawn
        self._choose = choose
        self._clients: list[Child] = []
        for model in MODELS:
            model.create_table()
        for account in (Left, Right):
            for _ in range(ACCOUNTS):
                account().save()

    def rage(self) -> None:
        """Kill one process after another, each some transfers after the last."""
        running = [self._client() for _ in range(CLIENTS)]
        worker = self._worker()
        for _ in range(KILLS):
            seen = self._transfers()
            more = self._choose.randint(1, 30)
            eventually(lambda: self._transfers() >= seen + more, within_s=60)  # noqa: B023
            if self._choose.random() < 0.2:
                worker.kill()
                worker = self._worker()
            else:
                victim = self._choose.randrange(CLIENTS)
                running[victim].kill()
                running[victim] = self._client()
        for child in [*running, worker]:
            child.kill()

    def calm(self) -> None:
        """One more worker, until nothing is unfinished."""
        worker = self._worker()
        unfinished = "SELECT count(*) FROM crosstie_saga WHERE state IN ('applied', 'aborted')"
        eventually(
            lambda: not any(database.scalar(unfinished) for database in self.databases.values()),
            within_s=60,
            describe="no saga is unfinished",
        )
        worker.stop()

    def told(self) -> dict[str, set[str]]:
        """What the clients were told, by outcome."""
        told: dict[str, set[str]] = {"committed": set(), "aborted": set(), "doubtful": set()}
        for client in self._clients:
            for outcome, name in re.findall(r"^(\w+) (\S+)$", client.output, re.MULTILINE):
                told[outcome].add(name)
        return told

    def balances(self) -> list[int]:
        """All balances of both databases."""
        return [
            int(str(balance))
            for one in self.databases.values()
            for (balance,) in one.rows("SELECT balance FROM bank_accounts")
        ]

    def _transfers(self) -> int:
        return int(str(self.databases["default"].scalar("SELECT count(*) FROM bank_entries")))

    def _client(self) -> Child:
        name = f"c{len(self._clients)}t{time.monotonic_ns()}"
        child = self._spawn.python(
            str(PROGRAM),
            name,
            str(self._choose.randrange(2**32)),
            str(TRANSFERS),
            environment=self._environment,
        )
        self._clients.append(child)
        return child

    def _worker(self) -> Worker:
        return self._spawn.worker(environment=self._environment)

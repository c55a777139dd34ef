"""A bank over three databases while everything fails: no money is made or lost, and nobody is lied to.

Clients and workers are killed and stopped, connections are cut and go deaf, also during COMMIT, servers are killed,
sagas run into each other, and others write beside them. The seed is printed; `CROSSTIE_STORM_SEED` repeats a run's
choices. The long form is `make storm`.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.databases import DatabaseKind
from bench.guard import configured_databases
from bench.processes import Child, Spawner
from bench.servers import in_ci
from bench.waiting import eventually
from storm.bank import ACCOUNT, ACCOUNTS, HEARS, MODELS, OPENING
from storm.stage import LONG, Stage, seed_of_run

Kinds = tuple[DatabaseKind, DatabaseKind, DatabaseKind]

ALL_TRIOS: list[Kinds] = [
    ("postgresql", "mariadb", "sqlite"),
    ("mariadb", "postgresql", "mariadb"),
    ("sqlite", "postgresql", "postgresql"),
]
TRIOS = ALL_TRIOS[:1] if in_ci() and not LONG else ALL_TRIOS
TRANSFERS = 10_000 if LONG else 100
FAULTS = 200 if LONG else 10
KILLS = {"server": 12, "worker": 25} if LONG else {"server": 1, "worker": 1}
CLIENTS, WORKERS = 8, 2
PER_SECOND = 20
"""By each client, as far as the machine and the storm allow."""
SETTINGS = {
    "CROSSTIE_SWEEP_INTERVAL_S": "0.3",
    "CROSSTIE_OUTBOX__LEASE_S": "0.5",
    "CROSSTIE_OUTBOX__LANES": "4",
    "CROSSTIE_IMPORTS": json.dumps(["storm.bank_worker"]),
}
# Two sagas that wait for each other in two databases are a deadlock that no server sees: it ends with the wait.
SERVER_SETTINGS: dict[DatabaseKind, dict[str, str]] = {
    "postgresql": {"lock_timeout": "3s"},
    "mariadb": {"innodb_lock_wait_timeout": "3"},
}
UNFINISHED = [
    "SELECT count(*) FROM crosstie_outbox",
    "SELECT count(*) FROM crosstie_parked",
    "SELECT count(*) FROM crosstie_saga_lock",
    "SELECT count(*) FROM crosstie_saga WHERE state IN ('applied', 'aborted', 'owed')",
]


class _Bank:
    """A stage with clients and workers, and what is known of their transfers in the end."""

    def __init__(self, kinds: Kinds, folder: Path, spawn: Spawner, seed: int, stack: ExitStack) -> None:
        self.stage = Stage(kinds, folder, spawn, stack, seed=seed, server_settings=SERVER_SETTINGS)
        with configured_databases(self.stage.databases):  # no longer: no connection of this process could die
            for model in MODELS:
                model.create_table()
            for account in ACCOUNT.values():
                account.bulk_create([account() for _ in range(ACCOUNTS)])
        self.stage.fill(WORKERS, self._worker, self._mill, SETTINGS)
        self.stage.make_weather(KILLS)

    def entries(self) -> dict[str, Counter[str]]:
        """How often each transfer was entered, by database."""
        return {name: self._names(name, "bank_entries") for name in self.stage.databases.by_name}

    def heard(self) -> Counter[str]:
        """How often the event of each transfer was heard."""
        return self._names(HEARS, "bank_heard")

    def told(self, outcome: str) -> dict[str, set[str]]:
        """Transfers of which a client was told this, with the databases of each."""
        found = re.findall(rf"^{outcome} (\S+) (\S+)$", self.stage.mill.output, re.MULTILINE)
        return {name: set(databases.split("+")) for name, databases in found}

    def records(self, transfers: Iterable[str]) -> list[str]:
        """What the databases know of the sagas of transfers that were heard of, for a failure to show."""
        heard = self.stage.databases.by_name[HEARS].rows("SELECT transfer, saga FROM bank_heard ORDER BY id")
        wanted = {saga: transfer for transfer, saga in heard if transfer in transfers}
        query = (
            "SELECT saga_id, participant, role, state, home, attempts, created_at_ms, updated_at_ms FROM crosstie_saga"
        )
        return [
            f"{wanted[row[0]]} in {name}: {row}"
            for name, database in self.stage.databases.by_name.items()
            for row in database.rows(query)
            if row[0] in wanted
        ]

    def balances(self) -> int:
        """All money that there is."""
        databases = self.stage.databases.databases
        return sum(int(one.scalar("SELECT sum(balance) FROM bank_accounts")) for one in databases)

    def count(self) -> int:
        """About how many transfers are entered."""
        return max(int(one.scalar("SELECT count(*) FROM bank_entries")) for one in self.stage.databases.databases)

    def _names(self, database: str, table: str) -> Counter[str]:
        return Counter(
            str(name) for (name,) in self.stage.databases.by_name[database].rows(f"SELECT transfer FROM {table}")
        )

    def _mill(self) -> Child:
        for database in self.stage.databases.databases:
            eventually(
                lambda: database.scalar("SELECT count(*) FROM crosstie_route"),  # noqa: B023
                within_s=60,
                describe="a worker has told of its subscriber",
            )
        call = f"clients({CLIENTS}, {self.stage.choose.randrange(2**32)}, {PER_SECOND})"
        return self.stage.start_writers(f"from storm.bank import clients; {call}")

    def _worker(self, place: int) -> Child:
        return self.stage.start_worker("crosstie.workers", place)


@pytest.fixture
def bank(request: pytest.FixtureRequest, tmp_path: Path, spawn: Spawner) -> Iterator[_Bank]:
    """A bank, just opened."""
    with ExitStack() as stack:
        made = _Bank(request.param, tmp_path, spawn, seed_of_run(), stack)
        stack.callback(spawn.close)
        yield made


@pytest.mark.storm
@pytest.mark.timeout(6 * 3600 if LONG else 720)  # a busy machine of two cores has done one transfer a second
@pytest.mark.parametrize("bank", TRIOS, ids="-".join, indirect=True)
def test_no_fault_makes_or_loses_money(bank: _Bank) -> None:
    """The sum is conserved, transfers are whole, callers heard the truth, and no event of an aborted one was heard."""
    began_s = time.monotonic()
    bank.stage.rage(bank.count, bank.count, until=TRANSFERS, faults=FAULTS)
    raged_s = time.monotonic() - began_s
    calm_s = bank.stage.calm(UNFINISHED)

    committed, aborted, doubtful = (bank.told(outcome) for outcome in ("committed", "aborted", "doubtful"))
    errors = Counter(re.findall(r"^error (.*)$", bank.stage.mill.output, re.MULTILINE))
    entries, heard = bank.entries(), bank.heard()
    entered = {name: {one for one in entries if name in entries[one]} for names in entries.values() for name in names}
    sys.stdout.write(
        f"{len(entered)} transfers in {raged_s:.0f} s; told of {len(committed)} committed, {len(aborted)} aborted, "
        f"{len(doubtful)} doubtful; calm after {calm_s:.1f} s; faults {dict(bank.stage.weather.faults)}; "
        f"workers replaced {bank.stage.workers.replaced}; errors {dict(errors)}\n"
    )
    assert bank.balances() == 3 * ACCOUNTS * OPENING
    assert all(times == 1 for names in entries.values() for times in names.values()), "a transfer was applied twice"
    truth = {**committed, **doubtful, **aborted}
    halves = {name: found for name, found in entered.items() if found != truth.get(name, found) or len(found) < 2}
    assert not halves, "transfers are in some of their databases only"
    assert committed.keys() <= entered.keys(), "a transfer that a caller was told of is not there"
    assert not aborted.keys() & entered.keys(), "a transfer that was said to be aborted is there"
    invented = heard.keys() - entered.keys()
    assert not invented, ("the event of an aborted transfer was heard", bank.records(invented))
    assert heard == Counter(entered.keys()), "each transfer is heard of once"
    assert len(committed) > TRANSFERS / 4, "too little was committed to prove anything"

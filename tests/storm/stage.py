"""What storms have in common: servers of their own, a way to them for everybody, workers, writers, and the weather."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench.databases import DatabaseKind, DatabaseSet, Pair, TestDatabase, Trio, fresh_database
from bench.private_servers import PrivateServer, private_server
from bench.processes import Child, Spawner
from bench.proxy import Proxy
from bench.waiting import eventually
from storm.weather import LONGEST_STOP_S, Crew, Weather

__all__ = ["LONG", "Stage", "seed_of_run"]

LONG: Final = os.environ.get("CROSSTIE_STORM") == "long"
CALM_S: Final = 600 if LONG else 400


def seed_of_run() -> int:
    """The one that is asked for, or any; it is printed."""
    seed = int(os.environ.get("CROSSTIE_STORM_SEED") or random.randrange(2**32))
    sys.stdout.write(f"CROSSTIE_STORM_SEED={seed}\n")
    return seed


class Stage:
    """Two or three databases, of which those with a server have one of this stage alone; nobody works on them yet."""

    def __init__(
        self,
        kinds: Sequence[DatabaseKind],
        folder: Path,
        spawn: Spawner,
        stack: ExitStack,
        *,
        seed: int,
        server_settings: Mapping[DatabaseKind, Mapping[str, str]] | None = None,
    ) -> None:
        self.choose = random.Random(seed)
        self._spawn, self._stack = spawn, stack
        self.servers: dict[str, PrivateServer] = {
            str(kind): stack.enter_context(private_server(kind, folder, settings=(server_settings or {}).get(kind)))
            for kind in dict.fromkeys(kinds)
            if kind != "sqlite"
        }
        found = [
            stack.enter_context(fresh_database(kind, folder)) if kind == "sqlite" else self.servers[kind].database()
            for kind in kinds
        ]
        self.databases: DatabaseSet = _set_of(found)
        self._proxies: dict[tuple[str, str], Proxy] = {}

    def fill(
        self, workers: int, hire: Callable[[int], Child], mill: Callable[[], Child], settings: Mapping[str, str]
    ) -> None:
        """Have workers and writers, each with a way of its own to the servers; `hire` and `mill` use `environment`."""
        self._settings = settings
        for whose in ("producers", *(f"worker {place}" for place in range(workers))):
            for kind, server in self.servers.items():
                self._proxies[whose, kind] = self._stack.enter_context(Proxy("127.0.0.1", server.port))
        self.workers = Crew(workers, hire)
        self.mill = mill()

    def environment(self, whose: str) -> dict[str, str]:
        """The databases as a worker (`worker 0`, …) or the writers (`producers`) reach them."""
        ways = {kind: proxy for (owner, kind), proxy in self._proxies.items() if owner == whose}
        reached = [one.proxied(ways[one.kind]) if one.kind in ways else one for one in self.databases.databases]
        return {**_set_of(reached).environment, **self._settings}

    def start_writers(self, program: str) -> Child:
        """The process of those who write, and their children."""
        return self._spawn.code(program, environment=self.environment("producers"), name="mill")

    def start_worker(self, app: str, place: int) -> Child:
        """A Celery worker of one process."""
        name = f"w{len(self._spawn.children)}@storm"
        command = ("-m", "celery", "-A", app, "worker", "-c", "1", "-l", "WARNING", "-n", name)
        return self._spawn.python(*command, environment=self.environment(f"worker {place}"), name=name)

    def make_weather(self, kills: Mapping[str, int]) -> Weather:
        """That strikes these workers, writers, ways and servers."""
        self.weather = Weather(
            self.choose,
            workers=self.workers,
            mill=self.mill,
            proxies=self._proxies,
            servers=self.servers,
            kills=kills,
        )
        return self.weather

    def rage(self, written: Callable[[], int], progress: Callable[[], int], *, until: int, faults: int) -> None:
        """Faults, each some progress after the last or some time, until enough was written and enough has struck."""
        eventually(written, within_s=60, describe="somebody writes")
        while written() < until or self.weather.faults.total() < faults:
            if self.weather.faults.total() < 2 * faults:  # a slow machine has not to stand more than others
                self.weather.strike()
            goal = progress() + self.choose.randint(1, 2 * until // faults)
            self._let_it_rage(progress, goal, until_s=time.monotonic() + self.choose.uniform(0, LONGEST_STOP_S))

    def _let_it_rage(self, progress: Callable[[], int], goal: int, *, until_s: float) -> None:
        def enough() -> bool:
            self.weather.mend()
            self.workers.replace_dead()
            assert self.mill.exit_code is None, "a writer met an error that is not one of those that databases raise"
            return progress() >= goal or time.monotonic() >= until_s

        eventually(enough, within_s=60)

    def calm(self, questions: Iterable[str]) -> float:
        """Nothing fails any more, nobody writes, and what is there finishes; returns the seconds that this took.

        `questions` count what is unfinished in a database.
        """
        self.weather.clear()
        self.mill.kill()
        began_s = time.monotonic()

        def finished() -> bool:
            self.workers.replace_dead()  # a fault of before may end one only now
            counts = [int(one.scalar(question)) for one in self.databases.databases for question in questions]
            return not sum(counts)

        eventually(finished, within_s=CALM_S, describe="no event waits and no saga is unfinished")
        took_s = time.monotonic() - began_s
        self.workers.kill()
        return took_s


def _set_of(databases: Sequence[TestDatabase]) -> DatabaseSet:
    return Pair(*databases) if len(databases) == 2 else Trio(*databases)

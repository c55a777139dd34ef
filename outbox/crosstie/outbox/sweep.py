"""Finding lanes with work and draining them: what a doorbell asks for, and what makes doorbells dispensable."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from secrets import SystemRandom
from typing import Final

from crosstie.orm.connection import ConnectionManager
from crosstie.outbox.delivery import require_outside
from crosstie.outbox.lane import Candidate, lanes_with_work, leased_lanes
from crosstie.outbox.relay import drain_lane

__all__ = ["drain", "sweep_lanes"]

LIMIT_S: Final = 10.0
_random: Final = SystemRandom()


def drain(source: str, route: str, *, owner: str, limit_s: float = LIMIT_S) -> int:
    """Drain every lane of the route that is free and has work; returns how many events were applied.

    `owner` names this worker in the lane table. After `limit_s` seconds no further batch is begun. Events that fail are
    parked, failures of the target make lanes back off; neither is raised. Raises UnknownConnection, and
    DatabaseUnavailable for the source.
    """
    require_outside()
    return _drain_route(source, lanes_with_work(ConnectionManager.get(source), route), owner, _clock(limit_s))


def sweep_lanes(source: str, *, owner: str, limit_s: float = LIMIT_S) -> int:
    """Drain every free lane with work, of all routes of this database; returns how many events were applied.

    Routes are drained side by side, each in its own thread where there are several, so that a slow or dead target takes
    no time from the others. Raises as `drain` does.
    """
    require_outside()
    out_of_time = _clock(limit_s)
    by_route: dict[str, list[Candidate]] = {}
    for candidate in lanes_with_work(ConnectionManager.get(source)):
        by_route.setdefault(candidate.route, []).append(candidate)
    run = partial(_drain_route, source, owner=owner, out_of_time=out_of_time)
    if len(by_route) < 2:
        return sum(map(run, by_route.values()))
    with ThreadPoolExecutor(max_workers=len(by_route), thread_name_prefix=f"relay of {source}") as pool:
        return sum(pool.map(run, by_route.values()))


def _drain_route(source: str, candidates: Sequence[Candidate], owner: str, out_of_time: Callable[[], bool]) -> int:
    applied = 0
    database = ConnectionManager.get(source)
    # Looked up before each claim and not with it: two workers that claim at once may exceed it, and nobody waits.
    cap = ConnectionManager.settings().outbox.lanes_per_target
    # In an order of its own for each worker: several that start together then rarely want the same lane.
    for candidate in _random.sample(candidates, len(candidates)):
        if out_of_time() or leased_lanes(database, candidate.route) >= cap:
            break
        report = drain_lane(source, candidate, owner=owner, out_of_time=out_of_time)
        applied += report.applied
        if report.route_down:
            break
    return applied


def _clock(limit_s: float) -> Callable[[], bool]:
    end = time.monotonic() + limit_s
    return lambda: time.monotonic() >= end

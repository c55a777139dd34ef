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
from crosstie.outbox.horizon import horizon_of
from crosstie.outbox.lane import WARY_AT, Candidate, lanes_with_work, leased_lanes
from crosstie.outbox.pace import Pace
from crosstie.outbox.relay import drain_lane

__all__ = ["drain", "sweep_lanes"]

LIMIT_S: Final = 10.0
VISIT_S: Final = 0.25
"""So long an owner stays with one lane while others wait: all lanes of a backlog move on together.

None of them has to wait for the whole of another, and what they read lies close together in the table.
"""
_random: Final = SystemRandom()


def drain(source: str, route: str, *, owner: str, limit_s: float = LIMIT_S) -> int:
    """Drain every lane of the route that is free and has work; returns how many events were applied.

    `owner` names this worker in the lane table. After `limit_s` seconds no further batch is begun. Events that fail are
    parked, failures of the target make lanes back off; neither is raised. Raises UnknownConnection, and
    DatabaseUnavailable for the source.
    """
    require_outside()
    database = ConnectionManager.get(source)
    horizon_of(database).check()
    return _drain_route(source, lanes_with_work(database, route), owner, _clock(limit_s))


def sweep_lanes(source: str, *, owner: str, limit_s: float = LIMIT_S) -> int:
    """Drain every free lane with work, of all routes of this database; returns how many events were applied.

    Routes are drained side by side, each in its own thread where there are several, so that a slow or dead target takes
    no time from the others. Raises as `drain` does.
    """
    require_outside()
    out_of_time = _clock(limit_s)
    by_route: dict[str, list[Candidate]] = {}
    database = ConnectionManager.get(source)
    horizon_of(database).check()
    for candidate in lanes_with_work(database):
        by_route.setdefault(candidate.route, []).append(candidate)
    run = partial(_drain_route, source, owner=owner, out_of_time=out_of_time)
    if len(by_route) < 2:
        return sum(map(run, by_route.values()))
    with ThreadPoolExecutor(max_workers=len(by_route), thread_name_prefix=f"relay of {source}") as pool:
        return sum(pool.map(run, by_route.values()))


def _drain_route(source: str, candidates: Sequence[Candidate], owner: str, out_of_time: Callable[[], bool]) -> int:
    """Drain lanes of one route, and look again as long as something comes of it.

    What was committed while its lane was owned has rung in vain: whoever heard it found the lane taken.
    """
    database = ConnectionManager.get(source)
    # Looked up before each claim and not with it: two workers that claim at once may exceed it, and nobody waits.
    settings = ConnectionManager.settings().outbox
    pace = Pace(settings.batch_size, settings.batch_target_s)
    applied = 0
    while True:
        moved = 0
        # In an order of its own for each worker: several that start together then rarely want the same lane.
        for candidate in _random.sample(candidates, len(candidates)):
            if out_of_time() or leased_lanes(database, candidate.route) >= settings.lanes_per_target:
                return applied
            # Whoever tries events one by one may need longer until the lane can be trusted again.
            short = len(candidates) > 1 and candidate.deaths < WARY_AT
            over = _first_of(_clock(VISIT_S), out_of_time) if short else out_of_time
            report = drain_lane(source, candidate, owner=owner, out_of_time=over, pace=pace)
            applied += report.applied
            moved += report.applied + report.dropped + report.parked
            if report.route_down:
                return applied
        if not moved:
            return applied
        candidates = lanes_with_work(database, candidate.route)


def _clock(limit_s: float) -> Callable[[], bool]:
    end = time.monotonic() + limit_s
    return lambda: time.monotonic() >= end


def _first_of(*clocks: Callable[[], bool]) -> Callable[[], bool]:
    return lambda: any(clock() for clock in clocks)

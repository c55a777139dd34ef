"""How `crosstie outbox …` shows routes, lanes and events: as tables, or as plain values for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from crosstie.outbox.backlog import RouteBacklog
from crosstie.outbox.inspection import LaneState, ParkedEvent, WaitingEvent
from crosstie.outbox.origins import InboxOrigin
from crosstie.workers import presentation

__all__ = ["event_document", "event_line", "inboxes_table", "lag_table", "lanes_table", "parked_table", "status_table"]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def lag_table(found: Sequence[RouteBacklog]) -> Table:
    """A line for each route."""
    numbers = ("lag", "events", "parked")
    table = presentation.table("database", "route", *numbers, numbers=numbers)
    for one in found:
        table.add_row(one.source, one.route, _seconds(one.lag_s), f"{one.depth:,}", f"{one.parked:,}")
    return table


def status_table(found: Sequence[RouteBacklog]) -> Table:
    """A line for each route."""
    numbers = ("events", "oldest", "parked", "keys", "dead", "failing lanes", "wary lanes")
    table = presentation.table("database", "route", *numbers, "last error", numbers=numbers)
    for one in found:
        table.add_row(
            one.source,
            Text.assemble(one.route, (" (paused)", "bold yellow") if one.paused else ""),
            f"{one.depth:,}",
            _seconds(one.oldest_s),
            f"{one.parked:,}",
            f"{one.parked_keys:,}",
            Text(f"{one.dead:,}", style="bold red" if one.dead else ""),
            f"{one.failing_lanes:,}",
            Text(f"{one.wary_lanes:,}", style="bold red" if one.wary_lanes else ""),
            one.last_error or "",
        )
    return table


def lanes_table(found: Sequence[LaneState]) -> Table:
    """A line for each lane."""
    numbers = ("lane", "epoch", "events", "oldest", "parked", "failures", "deaths", "ready in")
    headers = (
        "database",
        "route",
        "lane",
        "epoch",
        "owner",
        "lease",
        "events",
        "oldest",
        "parked",
        "failures",
        "deaths",
    )
    table = presentation.table(*headers, "ready in", "last error", numbers=numbers)
    for one in found:
        lease = "-" if one.lease_left_s is None else _seconds(one.lease_left_s)
        table.add_row(
            one.source,
            one.route + (" (paused)" if one.paused else ""),
            str(one.lane),
            str(one.epoch),
            one.owner or "-",
            "expired" if one.lease_left_s is not None and one.lease_left_s < 0 else lease,
            f"{one.depth:,}",
            _seconds(one.oldest_s),
            f"{one.parked:,}",
            str(one.failures),
            str(one.deaths) if one.trying is None else f"{one.deaths} (tried {one.trying})",
            _seconds(one.ready_in_s) if one.ready_in_s else "-",
            one.last_error or "",
        )
    return table


def inboxes_table(found: Sequence[InboxOrigin], sources: Mapping[str, str]) -> Table:
    """A line for each origin and route; `sources` are the databases that have lanes of an origin."""
    numbers = ("lanes", "unused for")
    table = presentation.table("target", "origin", "route", "source", *numbers, numbers=numbers)
    for one in found:
        cells = (one.target, one.origin, one.route, sources.get(one.origin, "-"))
        table.add_row(*cells, f"{one.lanes:,}", _seconds(one.unused_s))
    return table


def parked_table(found: Sequence[ParkedEvent], *, payload: bool) -> Table:
    """A line for each event."""
    numbers = ("id", "attempts", "deaths", "age", "again in")
    headers = ("database", "route", "id", "key", "type", "state", "attempts", "deaths", "age", "again in", "error")
    table = presentation.table(*headers, *(("payload",) if payload else ()), numbers=numbers)
    for one in found:
        cells = [one.source, one.route, str(one.id), one.key, one.type, one.state, str(one.attempts), str(one.deaths)]
        cells += [_seconds(one.age_s), _seconds(one.next_in_s), one.error]
        table.add_row(*cells, *((one.payload,) if payload else ()))
    return table


def event_document(one: WaitingEvent, *, payload: bool) -> dict[str, Any]:
    """Plain values; payload and headers only if asked for."""
    return {name: value for name, value in asdict(one).items() if payload or name not in {"payload", "headers"}}


def event_line(one: WaitingEvent, *, payload: bool) -> str:
    """One line of text; payload and headers only if asked for."""
    shown = f" {one.payload} {one.headers}" if payload else ""
    return f"{one.source} -> {one.route}: {one.id} {one.type} key={one.key} uid={one.uid}{shown}"

"""The commands `crosstie outbox …` that change something: redrive, skip, replace, pause, resume, forget-origin.

Each is logged.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from crosstie.outbox import operation, origins
from crosstie.outbox.errors import OperationRefused
from crosstie.outbox.inspection import parked_events
from crosstie.outbox.operation import Selection
from crosstie.outbox.origins import UNUSED_FOR_S
from crosstie.workers import presentation
from crosstie.workers.command_options import AsJson, Databases, EventId, Imports, Key, Route, print_json, sources
from crosstie.workers.operator_log import log_operation

__all__ = ["forget_origin", "pause", "redrive", "replace", "resume", "skip"]

POLL_S: Final = 0.1

Everything = Annotated[bool, typer.Option("--all", help="Every parked key.")]
Dead = Annotated[bool, typer.Option("--dead", help="Only events that nobody tries any more.")]
OneRoute = Annotated[str, typer.Argument(metavar="ROUTE", help="Where the events go to: usually a database's name.")]


def redrive(  # noqa: PLR0917 - typer names the options after them
    databases: Databases = None,
    route: Route = None,
    key: Key = None,
    event_id: EventId = None,
    dead: Dead = False,
    everything: Everything = False,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Have parked keys tried again now, each from its first event on: after the cause has been removed."""
    names = sources(databases, imports)
    selection = _selection(route, key, event_id, dead, everything)
    done = {name: operation.redrive(name, selection) for name in names}
    _report("redrive", selection, done, as_json, "will be tried again by the next worker")


def skip(  # noqa: PLR0917 - typer names the options after them
    databases: Databases = None,
    route: Route = None,
    key: Key = None,
    event_id: EventId = None,
    dead: Dead = False,
    everything: Everything = False,
    behind: Annotated[bool, typer.Option("--behind", help="Also the events that wait behind them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Give up parked events: they are deleted and never applied, and their keys go on with the next ones."""
    names = sources(databases, imports)
    selection = _selection(route, key, event_id, dead, everything)
    if not yes:
        count = sum(len(parked_events(name, selection, behind=behind or event_id is not None)) for name in names)
        typer.confirm(f"{count} event(s) will be lost. Skip them?", abort=True, err=True)
    done = {name: operation.skip(name, selection, behind=behind) for name in names}
    _report("skip", selection, done, as_json, "will be deleted by the next worker")


def replace(
    event_id: Annotated[int, typer.Argument(metavar="ID", help="The id of a parked event.")],
    file: Annotated[
        str, typer.Option("--file", "-f", help="A file with the payload as JSON, - for standard input.")
    ] = "-",
    databases: Databases = None,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Give a parked event another payload, and have it tried again. The payload must fit the event's class."""
    names = sources(databases, imports)
    holders = [name for name in names if parked_events(name, Selection(id=event_id), behind=True)]
    if len(holders) > 1:
        raise OperationRefused(
            f"expected one parked event with the id {event_id} and found one in each of {', '.join(holders)}: name the "
            "database with --database."
        )
    payload = _read(file)
    source = (holders or names)[0]
    event_type = operation.replace(source, event_id, payload)
    log_operation("replace", f"event {event_id} of type {event_type!r} in {source!r}")
    _say(
        as_json, {"replaced": event_id, "database": source, "type": event_type}, f"{source}: event {event_id} replaced"
    )


def pause(
    route: OneRoute,
    databases: Databases = None,
    wait_s: Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for batches in hand.")] = 15.0,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Keep all workers from delivering over a route until it is resumed. Exit status 1 if some are still at it."""
    names = _with_route(sources(databases, imports), route)
    deadline = time.monotonic() + wait_s
    owned = {name: operation.pause(name, route) for name in names}
    log_operation("pause", f"route {route!r} of {', '.join(names)}")
    while any(owned.values()) and time.monotonic() < deadline:
        time.sleep(POLL_S)
        owned = {name: operation.owned_lanes(name, route) for name in names}
    left = sum(owned.values())
    also = f"; {left} lane(s) still finish what they have in hand" if left else ""
    _say(as_json, {"paused": route, "owned_lanes": owned}, f"route {route!r} of {', '.join(names)} is paused{also}")
    raise typer.Exit(1 if left else 0)


def resume(route: OneRoute, databases: Databases = None, as_json: AsJson = False, imports: Imports = None) -> None:
    """End a pause: workers find what has waited with their next sweep."""
    names = _with_route(sources(databases, imports), route)
    for name in names:
        operation.resume(name, route)
    log_operation("resume", f"route {route!r} of {', '.join(names)}")
    _say(as_json, {"resumed": route, "databases": names}, f"route {route!r} of {', '.join(names)} is resumed")


def forget_origin(
    origin: Annotated[str, typer.Argument(metavar="ORIGIN", help="As `crosstie outbox inboxes` shows it.")],
    databases: Databases = None,
    unused_for_s: Annotated[
        float, typer.Option("--unused-for", min=0, help="Seconds for which nothing was heard of it.")
    ] = UNUSED_FOR_S,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Delete what the inboxes know of a database that has vanished. Exit status 1 if none knows it."""
    done = {
        name: origins.forget_origin(name, origin, unused_for_s=unused_for_s) for name in sources(databases, imports)
    }
    total = sum(done.values())
    if total:
        log_operation("forget-origin", f"{origin!r} in {', '.join(name for name in done if done[name])}")
    _say(as_json, {"forgotten": origin, "rows": done}, f"{total} row(s) of origin {origin!r} are forgotten")
    raise typer.Exit(0 if total else 1)


def _read(file: str) -> str:
    if file == "-":
        return sys.stdin.read()
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OperationRefused(
            f"--file: expected a text file with JSON, and {file!r} cannot be read: {error}."
        ) from None


def _with_route(names: list[str], route: str) -> list[str]:
    found = [name for name in names if route in operation.routes_of(name)]
    if not found:
        known = sorted({one for name in names for one in operation.routes_of(name)})
        raise OperationRefused(
            f"expected a route of {', '.join(names)} and found {route!r}. "
            f"Expected one of: {', '.join(known) or 'none, since no subscription is stored'}."
        )
    return found


def _selection(route: str | None, key: str | None, event_id: int | None, dead: bool, everything: bool) -> Selection:
    if route is None and key is None and event_id is None and not dead and not everything:
        raise OperationRefused("expected --id, --key, --route, --dead or --all, to say which events are meant.")
    return Selection(route, key, event_id, dead)


def _report(action: str, selection: Selection, done: dict[str, int], as_json: bool, effect: str) -> None:
    wanted = ", ".join(f"{name}={value!r}" for name, value in vars(selection).items() if value) or "all"
    for name, count in done.items():
        if count:
            log_operation(action, f"{count} parked event(s) in {name!r} ({wanted})")
    total = sum(done.values())
    _say(as_json, {action: done}, f"{total} event(s) {effect}" if total else "no parked event matches")
    raise typer.Exit(0 if total else 1)


def _say(as_json: bool, document: dict[str, Any], line: str) -> None:
    if as_json:
        print_json({"version": 1} | document)
    else:
        presentation.show_line(line)

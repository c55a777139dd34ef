"""The commands `crosstie outbox …` that look on: status, lanes, lag, tail, parked, inboxes, verify."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated, Final

import typer

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CrosstieError
from crosstie.outbox.backlog import pending
from crosstie.outbox.inspection import lane_states, parked_events, waiting_events
from crosstie.outbox.operation import Selection
from crosstie.outbox.origins import inbox_origins, origins_of
from crosstie.outbox.verification import Problem, verify
from crosstie.workers import presentation
from crosstie.workers.command_options import (
    INCOMPLETE,
    AsJson,
    Databases,
    EventId,
    Imports,
    Key,
    Route,
    ShowPayload,
    ask,
    print_json,
    sources,
)
from crosstie.workers.outbox_operation import forget_origin, pause, redrive, replace, resume, skip
from crosstie.workers.outbox_presentation import (
    event_document,
    event_line,
    inboxes_table,
    lag_table,
    lanes_table,
    parked_table,
    status_table,
)

__all__ = ["outbox"]

FOUND: Final = 1
TAIL_AT_ONCE: Final = 500

outbox = typer.Typer(
    help="Look at the delivery of events, and steer it.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@outbox.command("status")
def show_status(
    databases: Databases = None, route: Route = None, as_json: AsJson = False, imports: Imports = None
) -> None:
    """Show for each route what waits, what is parked and what fails.

    Exit status 2 if a database could not be asked.
    """
    asked = ask(sources(databases, imports), pending)
    found = [one for one in asked.found if route in {None, one.route}]
    if as_json:
        print_json(asked.document("routes", map(asdict, found)))
    else:
        presentation.console().print(status_table(found))
        asked.show_errors()
    raise typer.Exit(asked.exit_status)


@outbox.command("lanes")
def show_lanes(
    databases: Databases = None,
    route: Route = None,
    everything: Annotated[bool, typer.Option("--all", help="Also those of which there is nothing to say.")] = False,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Show the lanes that have events, an owner or a failure. Exit status 2 if a database could not be asked."""
    asked = ask(sources(databases, imports), lambda name: lane_states(name, route))
    found = [one for one in asked.found if everything or not one.idle]
    if as_json:
        print_json(asked.document("lanes", map(asdict, found)))
    else:
        presentation.console().print(lanes_table(found))
        asked.show_errors()
    raise typer.Exit(asked.exit_status)


@outbox.command("lag")
def show_lag(
    databases: Databases = None,
    route: Route = None,
    most_s: Annotated[
        float | None, typer.Option("--max", min=0, help="Exit status 1 if an event is older, in seconds.")
    ] = None,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Show how far each route is behind its database. Exit status 2 if a database could not be asked."""
    asked = ask(sources(databases, imports), pending)
    found = [one for one in asked.found if route in {None, one.route}]
    if as_json:
        print_json(asked.document("routes", ({"lag_s": one.lag_s} | asdict(one) for one in found)))
    else:
        presentation.console().print(lag_table(found))
        asked.show_errors()
    late = most_s is not None and any(one.lag_s > most_s for one in found)
    raise typer.Exit(asked.exit_status or (FOUND if late else 0))


@outbox.command("parked")
def show_parked(  # noqa: PLR0917 - typer names the options after them
    databases: Databases = None,
    route: Route = None,
    key: Key = None,
    event_id: EventId = None,
    dead: Annotated[bool, typer.Option("--dead", help="Only those that nobody tries any more.")] = False,
    behind: Annotated[
        bool, typer.Option("--behind", help="Also the events that wait behind one of their key.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many of each database.")] = 100,
    payload: ShowPayload = False,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Show the events that could not be applied, and why. Exit status 2 if a database could not be asked."""
    selection = Selection(route, key, event_id, dead)
    # One that is asked for by its id is shown wherever in its key it stands.
    asked = ask(
        sources(databases, imports),
        lambda name: parked_events(name, selection, behind=behind or event_id is not None, limit=limit),
    )
    if as_json:
        print_json(asked.document("events", (event_document(one, payload=payload) for one in asked.found)))
    else:
        presentation.console().print(parked_table(asked.found, payload=payload))
        asked.show_errors()
    raise typer.Exit(asked.exit_status)


@outbox.command("tail")
def tail(  # noqa: PLR0917 - typer names the options after them
    databases: Databases = None,
    route: Route = None,
    once: Annotated[bool, typer.Option("--once", help="Show what waits now, and end.")] = False,
    interval_s: Annotated[float, typer.Option("--interval", min=0.05, help="Seconds between two looks.")] = 0.5,
    payload: ShowPayload = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: a JSON document for each event.")] = False,
    imports: Imports = None,
) -> None:
    """Show events as they are written, until interrupted; those delivered between two looks are not seen."""
    names = sources(databases, imports)
    seen: dict[str, set[int]] = {}
    while True:
        asked = ask(names, lambda name: waiting_events(name, route, limit=TAIL_AT_ONCE))
        for one in asked.found:
            if one.id in seen.get(one.source, ()):
                continue
            if as_json:
                print_json(event_document(one, payload=payload), one_line=True)
            else:
                presentation.show_line(event_line(one, payload=payload))
        for name in names:
            seen[name] = {one.id for one in asked.found if one.source == name}
        asked.show_errors()
        if once or asked.errors:
            raise typer.Exit(asked.exit_status)
        time.sleep(interval_s)


@outbox.command("inboxes")
def show_inboxes(databases: Databases = None, as_json: AsJson = False, imports: Imports = None) -> None:
    """Show which origins the inboxes of targets know, which database has each, and how long it was not heard of.

    Exit status 2 if a database could not be asked: one without a source may be that database's.
    """
    asked = ask(sources(databases, imports), inbox_origins)
    living = ask(ConnectionManager.names(writable=True), lambda name: [(origin, name) for origin in origins_of(name)])
    asked.errors |= living.errors
    owners = dict(living.found)
    if as_json:
        print_json(asked.document("origins", (asdict(one) | {"source": owners.get(one.origin)} for one in asked.found)))
    else:
        presentation.console().print(inboxes_table(asked.found, owners))
        asked.show_errors()
    raise typer.Exit(asked.exit_status)


@outbox.command("verify")
def show_problems(databases: Databases = None, as_json: AsJson = False, imports: Imports = None) -> None:
    """Check that the tables agree with each other, with the targets and with the sagas.

    Exit status 0 if all is well, 1 if something is not, 2 if anything could not be checked.
    """
    names = sources(databases, imports)
    found: list[Problem] = []
    for name in names:
        try:
            found += verify(name)
        except CrosstieError as error:
            found.append(Problem(name, "unchecked", str(error), checked=False))
    status = INCOMPLETE if any(not one.checked for one in found) else FOUND if found else 0
    if as_json:
        print_json({"version": 1, "exit_status": status, "problems": [asdict(one) for one in found]})
    else:
        for one in found:
            presentation.show_line(f"{one.source}: {one.kind}: {one.message}")
        if not found:
            presentation.show_line(f"All is well in {', '.join(names)}.")
    raise typer.Exit(status)


for _command in (redrive, skip, replace, pause, resume, forget_origin):
    outbox.command()(_command)

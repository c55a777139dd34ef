"""What the command line shows: coloured on a terminal, plain text in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crosstie.orm.integrity import AuditState
from crosstie.sagas import EffectReport
from crosstie.sagas.declared import RunReport
from crosstie.workers.status import DatabaseStatus
from crosstie.workers.sweep import Swept

__all__ = [
    "console",
    "row_text",
    "show_error",
    "show_line",
    "show_status",
    "show_steps",
    "show_swept",
    "state_text",
    "table",
]

PIPE_WIDTH: Final = 160
_STYLES: Final = {AuditState.OK: "green", AuditState.FINDINGS: "bold red", AuditState.INCOMPLETE: "bold yellow"}


def console(*, stderr: bool = False) -> Console:
    """A console on the stream as it is now; a pipe gets a fixed width, since it has none of its own."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else PIPE_WIDTH, highlight=False)


def table(*headers: str, numbers: Iterable[str] = ()) -> Table:
    """An empty table; columns named in `numbers` are right-aligned."""
    made = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    for header in headers:
        made.add_column(header, justify="right" if header in numbers else "left", overflow="fold")
    return made


def row_text(key: Mapping[str, object]) -> str:
    """A row by its key: "id=7, part=2"."""
    return ", ".join(f"{name}={value}" for name, value in key.items())


def state_text(state: AuditState) -> Text:
    """How an audit ended."""
    return Text(state.value.upper(), style=_STYLES[state])


def show_line(text: str) -> None:
    """One line, not wrapped."""
    console().print(Text(text), soft_wrap=True)


def show_error(text: str) -> None:
    """An error of ours, on standard error."""
    console(stderr=True).print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)


def show_status(found: Iterable[DatabaseStatus]) -> None:
    """The databases, then the routes that have events or failures."""
    found = list(found)
    databases = table(
        "database", "address", "answers in", "applied", "aborted", "owed", "quarantined", "effects due", "quarantined",
        "runs", "quarantined",
        numbers=("answers in", "applied", "aborted", "owed", "quarantined", "effects due", "runs"),
    )  # fmt: skip
    routes = table(
        "database", "route", "events", "oldest", "failing lanes", "wary lanes", "parked", "dead", "last error",
        numbers=("events", "oldest", "failing lanes", "wary lanes", "parked", "dead"),
    )  # fmt: skip
    for one in found:
        sagas = [str(one.unresolved_sagas.get(state, "-")) for state in ("applied", "aborted", "owed", "quarantined")]
        sagas += [str(one.unresolved_effects.get(state, "-")) for state in ("due", "quarantined")]
        runs = one.unfinished_runs
        sagas += [str(sum(runs.values())), str(runs["quarantined"])] if runs else ["-", "-"]
        ping = "-" if one.ping_s is None else f"{one.ping_s * 1000:.1f} ms"
        databases.add_row(one.name, one.address + (" (read only)" if one.read_only else ""), ping, *sagas)
        for route in one.routes:
            routes.add_row(
                one.name,
                route.route,
                str(route.depth),
                "-" if route.oldest_s is None else f"{route.oldest_s:.1f} s",
                str(route.failing_lanes),
                str(route.wary_lanes),
                str(route.parked),
                str(route.dead),
                route.last_error or "",
            )
    shown = console()
    shown.print(databases)
    if routes.row_count:
        shown.print()
        shown.print(routes)
    for one in found:
        if one.error is not None:
            show_error(f"{one.name}: {one.error}")


def show_steps(database: str, report: RunReport) -> None:
    """The steps of declared sagas after one sweep of their home."""
    show_line(
        f"{database}: steps done {report.done}, compensated {report.undone}, failed {report.failed}, of sagas that no "
        f"imported module declares {report.undeployed}"
    )


def show_swept(swept: Swept, effects: EffectReport) -> None:
    """One database after one sweep."""
    sagas = swept.sagas
    show_line(
        f"{swept.database}: sagas settled {sagas.settled}, aborted {sagas.aborted + effects.aborted}, deferred "
        f"{sagas.deferred}, quarantined {sagas.quarantined}; events delivered {swept.events}; effects compensated "
        f"{effects.compensated}, failed {effects.failed}, quarantined {effects.quarantined}"
    )

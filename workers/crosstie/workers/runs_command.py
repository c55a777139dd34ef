"""The commands `crosstie runs …`: the runs of declared sagas, and what an operator decides about them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from crosstie.orm.connection import ConnectionManager
from crosstie.sagas.declared import RunState, control, journal, plan_for
from crosstie.workers import presentation
from crosstie.workers.command_options import AsJson, Databases, Imports, ask, print_json, sources
from crosstie.workers.operator_log import log_operation

__all__ = ["runs"]

FOUND = 1

runs = typer.Typer(
    help="Look at the runs of declared sagas, and decide about those that wait for you.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RunId = Annotated[str, typer.Argument(metavar="RUN", help="The id of a run.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@runs.command("list")
def show_list(databases: Databases = None, as_json: AsJson = False, imports: Imports = None) -> None:
    """Show the runs that have not ended, the oldest first.

    Exit status 1 if a compensation is quarantined, 2 if a database could not be asked.
    """
    asked = ask(sources(databases, imports), lambda name: journal.find(ConnectionManager.get(name)))
    if as_json:
        print_json(asked.document("runs", [_document(one, with_data=False) for one in asked.found]))
    else:
        table = presentation.table("run", "saga", "status", "step", "state", "attempts", "error", numbers=("attempts",))
        for run in asked.found:
            for one in [step for step in run.steps if step.state not in {"done", "undone", "failed"}]:
                table.add_row(
                    *(run.run_id, f"{run.name} v{run.version}", run.status, one.name, one.state, str(one.attempts)),
                    one.error or run.error or "",
                )
        presentation.console().print(table)
        asked.show_errors()
    quarantined = any(step.state == "quarantined" for run in asked.found for step in run.steps)
    raise typer.Exit(asked.exit_status or (FOUND if quarantined else 0))


@runs.command("show")
def show_one(
    run_id: RunId,
    values: Annotated[bool, typer.Option("--show-values", help="Also its fields, which may be personal data.")] = False,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Show a run: each step that has become due, its attempts and its last error, and why the run turned round."""
    _, run = _found(run_id, imports)
    if as_json:
        print_json({"version": 1, "run": _document(run, with_data=values)})
        return
    presentation.show_line(f"run {run.run_id} of {run.name!r}, version {run.version}: {run.status}")
    if run.error:
        presentation.show_line(f"  turned round by {run.error}")
    for one in run.steps:
        tail = f": {one.error}" if one.error else ""
        presentation.show_line(f"  {one.name}: {one.state}, {one.attempts} attempt(s){tail}")
    if values:
        for name, value in run.data.items():
            presentation.show_line(f"  {name} = {value!r}")


@runs.command("cancel")
def cancel(
    run_id: RunId,
    reason: Annotated[str, typer.Option("--reason", help="Kept with the run.")] = "cancelled by an operator",
    yes: Yes = False,
    imports: Imports = None,
) -> None:
    """Turn a run round that has not passed its pivot: what was done is compensated."""
    home, run = _found(run_id, imports)
    plan = plan_for(run)
    if not yes:
        typer.confirm(f"Run {run_id} of {run.name!r} will be compensated. Cancel it?", abort=True, err=True)
    log_operation("cancel", f"run {run_id}")
    control.turn_round(home, run_id, reason, plan)
    _tell(run_id, imports)


@runs.command("retry")
def retry(run_id: RunId, imports: Imports = None) -> None:
    """Have the quarantined compensations of a run tried again by the workers."""
    home, _ = _found(run_id, imports)
    log_operation("retry", f"run {run_id}")
    control.retry(home, run_id)
    _tell(run_id, imports)


@runs.command("skip")
def skip(run_id: RunId, yes: Yes = False, imports: Imports = None) -> None:
    """Count the quarantined compensations of a run as done, by you; earlier steps are compensated then."""
    home, run = _found(run_id, imports)
    plan = plan_for(run)
    stuck = ", ".join(one.name for one in run.steps if one.state == "quarantined") or "nothing"
    if not yes:
        typer.confirm(f"The compensation of {stuck} will not be tried any more. Skip it?", abort=True, err=True)
    log_operation("skip", f"run {run_id}")
    control.skip(home, run_id, plan)
    _tell(run_id, imports)


def _found(run_id: str, imports: list[str] | None) -> tuple[str, RunState]:
    """The database that has the run, and the run. Raises UnknownRun."""
    asked = ask(sources(None, imports), lambda name: [(name, run) for run in _runs_of(name, run_id)])
    if asked.found:
        return asked.found[0]
    asked.show_errors()
    raise control.unknown_run("no database that answers has a", run_id)


def _runs_of(name: str, run_id: str) -> list[RunState]:
    return journal.find(ConnectionManager.get(name), [run_id])


def _tell(run_id: str, imports: list[str] | None) -> None:
    _, run = _found(run_id, imports)
    states = ", ".join(f"{one.name} {one.state}" for one in run.steps)
    presentation.show_line(f"run {run_id}: {run.status} ({states})")


def _document(run: RunState, *, with_data: bool) -> dict[str, object]:
    document = asdict(run)
    if not with_data:
        del document["data"]
    return document

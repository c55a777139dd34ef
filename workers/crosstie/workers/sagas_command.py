"""The commands `crosstie sagas …`: list, show, quarantined, leftovers, and what an operator decides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any, Final

import typer

from crosstie.sagas import operation
from crosstie.sagas.errors import SagaOperationRefused
from crosstie.sagas.inspection import SagaState, find_leftovers, find_unfinished
from crosstie.sagas.recovery import Manner, Resolution
from crosstie.workers import presentation
from crosstie.workers.command_options import INCOMPLETE, AsJson, Databases, Imports, ask, print_json, sources
from crosstie.workers.operator_log import log_operation
from crosstie.workers.sagas_presentation import saga_document, saga_lines, sagas_table

__all__ = ["sagas"]

FOUND: Final = 1

sagas = typer.Typer(
    help="Look at unfinished sagas, and decide about those that wait for you.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SagaId = Annotated[str, typer.Argument(metavar="SAGA", help="The id of a saga.")]
Branch = Annotated[
    str | None,
    typer.Option("--branch", "-b", help="The branch that is meant, if several are quarantined.", show_default=False),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
ShowValues = Annotated[
    bool, typer.Option("--show-values", help="Also the values in the rows, which may be personal data.")
]


@sagas.command("list")
def show_list(databases: Databases = None, as_json: AsJson = False, imports: Imports = None) -> None:
    """Show the sagas that are not finished, the oldest first. Exit status 2 if a database could not be asked."""
    _show_unfinished(sources(databases, imports), as_json, quarantined=False)


@sagas.command("quarantined")
def show_quarantined(databases: Databases = None, as_json: AsJson = False, imports: Imports = None) -> None:
    """Show the sagas whose undo met somebody else's change: they wait for `retry`, `force` or `skip`.

    Exit status 1 if there are any, 2 if a database could not be asked.
    """
    _show_unfinished(sources(databases, imports), as_json, quarantined=True)


@sagas.command("show")
def show_one(saga_id: SagaId, values: ShowValues = False, as_json: AsJson = False, imports: Imports = None) -> None:
    """Show all that the databases have of a saga: records, attempts, what an undo does, what stands in its way."""
    sources(None, imports)
    found = operation.known_saga(saga_id)
    if as_json:
        print_json({"version": 1, "saga": saga_document(found, values=values)})
    else:
        for line in saga_lines(found, values=values):
            presentation.show_line(line)
    raise typer.Exit(INCOMPLETE if found.errors else 0)


@sagas.command("leftovers")
def show_leftovers(
    databases: Databases = None,
    grace_s: Annotated[
        float, typer.Option("--grace", min=0, help="Seconds that a sweep may be late.", show_default=True)
    ] = 60.0,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Look for what no working sweep leaves, and for what the protocol forbids.

    Exit status 0 for nothing, 1 if there is something, 2 if a database could not be asked.
    """
    asked = ask(sources(databases, imports), lambda name: find_leftovers(name, grace_s=grace_s))
    if as_json:
        print_json(asked.document("leftovers", map(asdict, asked.found)))
    else:
        for one in asked.found:
            presentation.show_line(f"{one.database}: {one.kind}: {one.saga_id}: {one.message}")
        if not asked.found and not asked.errors:
            presentation.show_line("Nothing is left over.")
        asked.show_errors()
    raise typer.Exit(asked.exit_status or (FOUND if asked.found else 0))


@sagas.command("retry")
def retry(saga_id: SagaId, as_json: AsJson = False, imports: Imports = None) -> None:
    """Bring a decided or expired saga to its end now, and try a quarantined undo again as it is.

    It succeeds once the rows are again as the saga had left them. Exit status 1 if the saga is still unfinished.
    """
    sources(None, imports)
    found = operation.known_saga(saga_id)
    if found.decision == "undecided" and not found.expired:
        raise SagaOperationRefused(
            f"saga {saga_id} is undecided and has not expired: its process may still be running. "
            f"`crosstie sagas cancel {saga_id}` aborts it."
        )
    log_operation("retry", f"saga {saga_id}")
    _told(saga_id, operation.end_now(saga_id), as_json)


@sagas.command("cancel")
def cancel(saga_id: SagaId, yes: Yes = False, as_json: AsJson = False, imports: Imports = None) -> None:
    """Abort an undecided saga now, although it has not expired; a process that still runs it is told at its commit."""
    sources(None, imports)
    found = operation.known_saga(saga_id)
    if found.decision == "committed":
        raise SagaOperationRefused(f"saga {saga_id} is committed, and a decision is for good.")
    if not yes:
        typer.confirm(f"Saga {found.header.name!r} will be aborted and undone. Cancel it?", abort=True, err=True)
    log_operation("cancel", f"saga {saga_id}")
    _told(saga_id, operation.end_now(saga_id), as_json)


@sagas.command("force")
def force(
    saga_id: SagaId, branch: Branch = None, yes: Yes = False, as_json: AsJson = False, imports: Imports = None
) -> None:
    """Undo a quarantined branch although somebody has changed its rows since: those changes are overwritten."""
    _overrule(saga_id, branch, Manner.FORCED, yes, as_json, imports)


@sagas.command("skip")
def skip(
    saga_id: SagaId, branch: Branch = None, yes: Yes = False, as_json: AsJson = False, imports: Imports = None
) -> None:
    """Leave the rows of a quarantined branch as they are, and count it as undone; its events are dropped."""
    _overrule(saga_id, branch, Manner.KEPT, yes, as_json, imports)


_QUESTIONS: Final = {
    Manner.FORCED: "What others have changed since in {count} row(s) of {branch!r} will be lost. Force the undo?",
    Manner.KEPT: "The {count} write(s) of the saga in {branch!r} will stay, though the saga is aborted. Skip the undo?",
}


def _overrule(  # noqa: PLR0917 - the options of two commands
    saga_id: str, branch: str | None, manner: Manner, yes: bool, as_json: bool, imports: list[str] | None
) -> None:
    sources(None, imports)
    found = operation.known_saga(saga_id)
    meant = branch or _only(found)
    if not yes:
        undo = next((one.undo for one in found.records if one.participant == meant), ())
        typer.confirm(_QUESTIONS[manner].format(count=len(undo), branch=meant), abort=True, err=True)
    log_operation("force" if manner is Manner.FORCED else "skip", f"branch {meant!r} of saga {saga_id}")
    _told(saga_id, operation.overrule(saga_id, meant, manner), as_json)


def _only(found: SagaState) -> str:
    if len(found.quarantined) != 1:
        listed = ", ".join(found.quarantined) or "none"
        raise SagaOperationRefused(
            f"saga {found.header.saga_id}: expected one quarantined branch and found {listed}: name it with --branch."
        )
    return found.quarantined[0]


def _show_unfinished(names: Iterable[str], as_json: bool, *, quarantined: bool) -> None:
    found, errors = find_unfinished(names)
    if quarantined:
        found = [one for one in found if one.quarantined]
    if as_json:
        documents = [saga_document(one, values=False) for one in found]
        print_json({"version": 1, "sagas": documents, "errors": errors})
    else:
        presentation.console().print(sagas_table(found))
        for name, error in errors.items():
            presentation.show_error(f"{name}: {error}")
    raise typer.Exit(INCOMPLETE if errors else FOUND if quarantined and found else 0)


def _told(saga_id: str, resolution: Resolution, as_json: bool) -> None:
    pending = {name: str(error) for name, error in resolution.pending.items()}
    document: dict[str, Any] = {
        "saga": saga_id,
        "decision": resolution.decision.value,
        "finished": resolution.finished,
        "pending": pending,
        "quarantined": resolution.quarantined,
    }
    if as_json:
        print_json({"version": 1} | document)
    else:
        state = "finished" if resolution.finished else "unfinished"
        presentation.show_line(f"saga {saga_id}: {resolution.decision.value}, {state}")
        for name, reason in (pending | resolution.quarantined).items():
            presentation.show_error(f"{name}: {reason}")
    raise typer.Exit(0 if resolution.finished else FOUND)

"""The commands `crosstie sagas …`: list, show, quarantined, leftovers, and what an operator decides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any, Final

import typer

from crosstie.sagas import operation
from crosstie.sagas.effect import UNFINISHED
from crosstie.sagas.errors import SagaOperationRefused
from crosstie.sagas.inspection import LATE_S, SagaState, find_leftovers, find_saga, find_unfinished
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
Step = Annotated[
    int | None,
    typer.Option(
        "--effect", "-e", help="The effect that is meant, by its number, if several wait.", show_default=False
    ),
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
    """Show the sagas whose undo or redo met somebody else's change, or whose compensation failed too often.

    They wait for `retry`, `force` or `skip`. Exit status 1 if there are any, 2 if a database could not be asked.
    """
    _show_unfinished(sources(databases, imports), as_json, quarantined=True)


@sagas.command("show")
def show_one(saga_id: SagaId, values: ShowValues = False, as_json: AsJson = False, imports: Imports = None) -> None:
    """Show all that the databases have of a saga: records, effects, attempts, what an undo does, what hinders it."""
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
    ] = LATE_S,
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
    """Bring a decided or expired saga to its end now, and try again what is quarantined, as it is.

    An undo succeeds once the rows are again as the saga had left them, a redo once they are as it had found them.
    Exit status 1 if the saga is still unfinished.
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
    if found.decision in {"committed", "owed"}:
        raise SagaOperationRefused(f"saga {saga_id} is committed, and a decision is for good.")
    if not yes:
        typer.confirm(f"Saga {found.header.name!r} will be aborted and undone. Cancel it?", abort=True, err=True)
    log_operation("cancel", f"saga {saga_id}")
    _told(saga_id, operation.end_now(saga_id), as_json)


@sagas.command("force")
def force(  # noqa: PLR0917 - options
    saga_id: SagaId,
    branch: Branch = None,
    step: Step = None,
    yes: Yes = False,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Undo or redo a quarantined branch although somebody has changed its rows since: those changes are overwritten.

    Or compensate a quarantined effect now, although a later one of the saga may not be compensated.
    """
    _overrule(saga_id, branch, step, Manner.FORCED, yes, as_json, imports)


@sagas.command("skip")
def skip(  # noqa: PLR0917 - options
    saga_id: SagaId,
    branch: Branch = None,
    step: Step = None,
    yes: Yes = False,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Leave the rows of a quarantined branch as they are, and count it as ended; its events are dropped.

    Or leave a quarantined effect as it is, for good; earlier ones of the saga, which waited for it, go on.
    """
    _overrule(saga_id, branch, step, Manner.KEPT, yes, as_json, imports)


_QUESTIONS: Final = {
    Manner.FORCED: "What others have changed since in {count} row(s) of {branch!r} will be lost. Force the undo?",
    Manner.KEPT: "The {count} write(s) of the saga in {branch!r} will stay, though the saga is aborted. Skip the undo?",
}
_QUESTIONS_OF_OWED: Final = {
    Manner.FORCED: "What others have written to {count} row(s) of {branch!r} since will be lost. Force the redo?",
    Manner.KEPT: "The {count} write(s) of the saga in {branch!r} will never come, though it is committed. Skip them?",
}
_QUESTIONS_OF_EFFECTS: Final = {
    Manner.FORCED: "{compensation!r} will be called now for effect {step}, in turn or not. Force it?",
    Manner.KEPT: "Effect {step} will stay, and {compensation!r} will not be called for it any more. Skip it?",
}


def _overrule(  # noqa: PLR0917 - the options of two commands
    saga_id: str,
    branch: str | None,
    step: int | None,
    manner: Manner,
    yes: bool,
    as_json: bool,
    imports: list[str] | None,
) -> None:
    sources(None, imports)
    found = operation.known_saga(saga_id)
    meant = branch or step or _only(found)
    if not yes:
        typer.confirm(_question(found, meant, manner), abort=True, err=True)
    what = f"effect {meant}" if isinstance(meant, int) else f"branch {meant!r}"
    log_operation("force" if manner is Manner.FORCED else "skip", f"{what} of saga {saga_id}")
    if isinstance(meant, int):
        resolution = operation.overrule_effect(saga_id, meant, skipped=manner is Manner.KEPT)
    else:
        resolution = operation.overrule(saga_id, meant, manner)
    _told(saga_id, resolution, as_json)


def _question(found: SagaState, meant: str | int, manner: Manner) -> str:
    if isinstance(meant, int):
        name = next((one.compensation for one in found.quarantined_effects if one.step == meant), "")
        return _QUESTIONS_OF_EFFECTS[manner].format(compensation=name, step=meant)
    questions = _QUESTIONS_OF_OWED if meant in found.owed else _QUESTIONS
    return questions[manner].format(count=len(found.log_of(meant)), branch=meant)


def _only(found: SagaState) -> str | int:
    waiting: list[str | int] = [*found.quarantined, *(one.step for one in found.quarantined_effects)]
    if len(waiting) != 1:
        listed = ", ".join(f"effect {one}" if isinstance(one, int) else one for one in waiting) or "none"
        raise SagaOperationRefused(
            f"saga {found.header.saga_id}: expected one quarantined branch or effect and found {listed}: name it with "
            "--branch or --effect."
        )
    return waiting[0]


def _show_unfinished(names: Iterable[str], as_json: bool, *, quarantined: bool) -> None:
    found, errors = find_unfinished(names)
    if quarantined:
        found = [one for one in found if one.quarantined or one.quarantined_effects]
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
    found = find_saga(saga_id)
    effects = [one for one in (found.effects if found else ()) if one.effect.state in UNFINISHED]
    finished = resolution.finished and not effects
    document: dict[str, Any] = {
        "saga": saga_id,
        "decision": resolution.decision.value,
        "finished": finished,
        "pending": pending,
        "quarantined": resolution.quarantined,
        "effects": {one.effect.step: one.effect.state for one in effects},
    }
    if as_json:
        print_json({"version": 1} | document)
    else:
        state = "finished" if finished else "unfinished"
        presentation.show_line(f"saga {saga_id}: {resolution.decision.value}, {state}")
        for name, reason in (pending | resolution.quarantined).items():
            presentation.show_error(f"{name}: {reason}")
        for one in effects:
            presentation.show_error(f"effect {one.effect.step} is {one.effect.state}: {one.error or 'not yet tried'}")
    raise typer.Exit(0 if finished else FOUND)

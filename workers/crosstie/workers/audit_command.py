"""The command `crosstie audit`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer
from rich.console import Group
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from crosstie.orm.errors import CrosstieError
from crosstie.orm.integrity import (
    AuditedReference,
    AuditPhase,
    AuditProgress,
    AuditResult,
    AuditScope,
    AuditState,
    Finding,
    key_text,
)
from crosstie.workers import presentation
from crosstie.workers.audit import AuditReport, run_audit
from crosstie.workers.audit_charts import Point
from crosstie.workers.audit_discovery import discover
from crosstie.workers.audit_page import audit_page
from crosstie.workers.audit_plans import PlannedAudit, planned_audits
from crosstie.workers.audit_presentation import show_counters, show_leftovers, show_types, show_unique
from crosstie.workers.audit_record import history
from crosstie.workers.audit_references import reflected_reference
from crosstie.workers.audit_report import EXIT_STATUS
from crosstie.workers.command_options import AsJson, FromSql, Imports, print_json
from crosstie.workers.copies_command import REPAIR, copies_table
from crosstie.workers.discovery_presentation import show_discovery
from crosstie.workers.preparation import prepare

__all__ = ["audit", "next_step", "show_report"]

PAGE_SAMPLE: Final = 20
"""Orphans of each reference on a page, at least."""
_NUMBERS: Final = ("keys", "rows", "orphans", "deferred", "time")


def audit(  # noqa: PLR0917 - typer names the options after them
    references: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="REFERENCE",
            help='Names such as "secondary.posts.user_id -> default.users.id", or just posts.user_id; '
            "without any, every reference between two databases.",
            show_default=False,
        ),
    ] = None,
    chunk_size: Annotated[
        int | None,
        typer.Option("--chunk-size", min=1, max=1_000_000, help="Distinct keys read at a time.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    everything: Annotated[bool, typer.Option("--all", help="Also the references within one database.")] = False,
    sample: Annotated[int, typer.Option("--sample", min=0, help="Orphans shown for each reference.")] = 5,
    changes: Annotated[
        bool,
        typer.Option(
            "--changes",
            help="Only keys that have changed since everything was read; `crosstie audit triggers` has them noted.",
        ),
    ] = False,
    parts: Annotated[
        int | None,
        typer.Option(
            "--parts",
            min=1,
            metavar="N",
            help="Only the next of about N parts of each reference: after N audits everything was read.",
            show_default=False,
        ),
    ] = None,
    from_sql: FromSql = None,
    unique: Annotated[
        list[str] | None,
        typer.Option(
            "--unique",
            metavar="COLUMN",
            help='A column whose values may be in one database only, "shop_*.users.email" or '
            '"{shop_eu, shop_us}.users.email"; may be repeated.',
            show_default=False,
        ),
    ] = None,
    counters: Annotated[
        list[str] | None,
        typer.Option(
            "--counter",
            metavar="COUNTER",
            help='A column that is to be the number of children, "main.users.posts_count = '
            'count(legacy.posts.user_id)"; may be repeated.',
            show_default=False,
        ),
    ] = None,
    leftovers: Annotated[
        bool | None,
        typer.Option(
            "--leftovers/--no-leftovers",
            help="Also what sagas have left over; by default where no reference is named, and `audit.leftovers` is on.",
            show_default=False,
        ),
    ] = None,
    discovering: Annotated[
        bool, typer.Option("--discover", help="Audit nothing; suggest references that nobody has declared.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Also write a page with charts.", show_default=False),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Only say how each reference would be read, and why.")
    ] = False,
    imports: Imports = None,
) -> None:
    """Find child rows whose parent, in another database, does not exist, copies that are wrong, leftovers of sagas.

    Exit status 0 if everything is whole, 1 if anything was found, 2 if anything could not be checked.
    """
    if changes and parts is not None:
        presentation.show_error("expected one of --changes and --parts, and found both: a part includes the changes.")
        raise typer.Exit(EXIT_STATUS[AuditState.INCOMPLETE])
    scope = AuditScope.CHANGES if changes else AuditScope.FULL if parts is None else AuditScope.PART
    try:
        prepare(imports)
        if discovering:
            raise typer.Exit(show_discovery(discover(include_local=everything), as_json=as_json))
        chosen: list[str | AuditedReference] = [*(references or ()), *map(reflected_reference, from_sql or ())]
        if explain:
            _explain(planned_audits(chosen or None, include_local=everything, chunk_size=chunk_size), as_json)
        with _progress_bars(shown=not as_json) as progress:
            report = run_audit(
                chosen if chosen or unique or counters else None,
                include_local=everything,
                chunk_size=chunk_size,
                progress=progress,
                scope=scope,
                parts=parts,
                unique=unique,
                counters=counters,
                leftovers=leftovers,
            )
    except CrosstieError as error:
        presentation.show_error(str(error))
        if as_json:
            document = {"version": 1, "state": "error", "error": {"code": error.code, "message": str(error)}}
            print_json(document, one_line=True)
        raise typer.Exit(EXIT_STATUS[AuditState.INCOMPLETE]) from None
    if html is not None:
        html.write_text(audit_page(report, _histories(report), sample=max(sample, PAGE_SAMPLE)), encoding="utf-8")
    if as_json:
        typer.echo(report.to_json(sample=sample))
    else:
        show_report(report, sample=sample)
    raise typer.Exit(report.exit_status)


def _histories(report: AuditReport) -> dict[str, list[Point]]:
    """What the last runs of each reference have found, where they are recorded."""
    found: dict[str, list[Point]] = {}
    for result in report.results:
        try:
            runs = history(result.reference.partition(".")[0], result.reference)
        except CrosstieError as error:
            presentation.show_error(str(error))
            continue
        found[result.reference] = [Point(one.started_at, one.findings, one.state != "incomplete") for one in runs]
    return found


def _explain(plans: Sequence[PlannedAudit], as_json: bool) -> NoReturn:
    """Show the plans and end: status 2 where a reference cannot be audited, or there is none."""
    if as_json:
        print_json({"version": 1, "plans": [one.as_document() for one in plans]})
    console = presentation.console()
    for one in [] if as_json else plans:
        console.print(Text(one.reference, style="bold"), soft_wrap=True)
        lines = [f"cannot be audited: {one.refusal}"] if one.plan is None else [one.plan.strategy.value]
        lines += [] if one.plan is None else [*one.plan.reasons, *one.plan.notes]
        for line in lines:
            console.print(Text(f"  {line}"), soft_wrap=True)
    refused = not plans or any(one.plan is None for one in plans)
    raise typer.Exit(EXIT_STATUS[AuditState.INCOMPLETE if refused else AuditState.OK])


@contextlib.contextmanager
def _progress_bars(*, shown: bool) -> Iterator[_Bars]:
    """A bar for each reference on standard error, gone when the audit ends; none in a pipe."""
    console = presentation.console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("keys, {task.fields[phase]}"),
        _Rate(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    )
    with bars:
        yield _Bars(bars)


class _Rate(ProgressColumn):
    """Keys in a second, lately."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f}/s")


class _Bars:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, step: AuditProgress) -> None:
        task = self._tasks.get(step.reference)
        if task is None:
            task = self._tasks[step.reference] = self._progress.add_task(step.reference, total=None, phase="")
        total = None if step.phase is AuditPhase.COUNTING else step.keys_total
        self._progress.update(task, total=total, completed=step.keys_done, phase=step.phase.value)


def show_report(report: AuditReport, *, sample: int) -> None:
    """A table of the references, what was found in each, and in one line what to do next."""
    console = presentation.console()
    if report.results:
        console.print(_summary(report))
    for result in report.results:
        details = _details(result, sample)
        if details:
            console.print()
            console.print(Text(result.reference, style="bold"), soft_wrap=True)
            console.print(Padding(Group(*details), (0, 0, 0, 2), expand=False))
    compared = [one.found for one in report.copies if one.found is not None]
    if compared:
        console.print()
        console.print(copies_table(compared))
    for copies in report.copies:
        if copies.reason is not None:
            console.print(Text(f"copies by {copies.name} were not compared: {copies.reason}"), soft_wrap=True)
    show_unique(report.unique, sample)
    show_types(report.types, sample)
    show_counters(report.counters, sample)
    show_leftovers(report.leftovers, sample)
    console.print()
    console.print(Text(next_step(report)), soft_wrap=True)


def _summary(report: AuditReport) -> Table:
    table = presentation.table("reference", "state", *_NUMBERS, numbers=_NUMBERS)
    for result in report.results:
        table.add_row(
            result.reference,
            presentation.state_text(result.state),
            f"{result.keys_checked:,}",
            f"{result.child_rows:,}",
            f"{result.orphan_rows:,}",
            f"{result.deferred_rows:,}",
            f"{result.seconds:.1f} s",
        )
    return table


def _details(result: AuditResult, sample: int) -> list[Text | Table]:
    """What there is to say of one reference beyond its line in the table."""
    lines: list[Text | Table] = []
    if result.reason is not None:
        lines.append(
            Text.assemble(
                ("not checked to the end: ", "bold yellow"),
                "; ".join(line.strip() for line in result.reason.splitlines()),
            )
        )
    lines += [Text(f"note: {note}", style="dim") for note in result.notes]
    if result.deferred_keys:
        waiting = f"{_count(result.deferred_rows, 'row')} of {_count(result.deferred_keys, 'key')}"
        lines.append(Text(f"{waiting} not judged: a saga that is not resolved has them"))
    if result.orphan_rows:
        lines.append(Text(f"{_count(result.orphan_rows, 'orphan')} of {_count(result.orphan_keys, 'missing parent')}"))
    shown = result.findings[:sample]
    if shown:
        lines.append(_samples(shown))
        left = result.orphan_rows - len(shown)
        if left > 0:
            lines.append(Text(f"and {left:,} more (--sample N shows more of them)", style="dim"))
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _samples(findings: Sequence[Finding]) -> Table:
    table = presentation.table("child row", "missing parent", "all rows of that key")
    told: set[str] = set()
    for one in findings:
        query = "" if one.query in told else one.query
        table.add_row(presentation.row_text(one.child_key), key_text(one.parent_key), query)
        told.add(one.query)
    return table


def next_step(report: AuditReport) -> str:
    """One line: what to do now."""
    if report.is_empty:
        return (
            "Nothing was checked: no imported model declares a reference between two databases. Next: name the modules "
            "of your models in the setting `imports`, or with --import."
        )
    incomplete = [one.reference for one in report.results if one.state is AuditState.INCOMPLETE]
    incomplete += [one.name for one in report.copies if one.state is AuditState.INCOMPLETE]
    uncounted = [one.name for one in report.counters if one.state is AuditState.INCOMPLETE]
    unread = [one.name for one in report.unique if one.state is AuditState.INCOMPLETE]
    if (unread or uncounted) and not incomplete:
        names = " ".join(f'--unique "{name}"' for name in unread)
        names = " ".join([*([names] if names else []), *(f'--counter "{name}"' for name in uncounted)])
        return f"Next: remove the cause named above, then run: crosstie audit {names}"
    if incomplete:
        names = " ".join(f'"{name}"' for name in dict.fromkeys(incomplete))
        also = "; the orphans above stand as they are" if any(one.orphan_rows for one in report.results) else ""
        return f"Next: remove the cause named above, then run: crosstie audit {names}{also}"
    unasked = [one.database for one in report.leftovers if one.state is AuditState.INCOMPLETE]
    if unasked:
        return (
            f"Next: {' and '.join(unasked)} must answer, or say --no-leftovers to leave out what sagas have left over."
        )
    if any(one.orphan_rows for one in report.results):
        recorded = any(one.reference not in report.unrecorded for one in report.results if one.orphan_rows)
        where = f" (run_id {report.run_id} in crosstie_finding)" if recorded else ""
        return (
            f"Next: look at the orphans{where}, then restore their parents, or repair: crosstie audit repair REFERENCE."
        )
    other = _next_beside_references(report)
    if other is not None:
        return other
    if any(one.deferred_keys for one in report.results):
        return (
            "No orphan was found. Next: run a worker (or crosstie sweep --once) to resolve the sagas, and audit again."
        )
    if any(one.scope is not AuditScope.FULL for one in report.results):
        return "Every foreign key that was looked at has its parent."
    return "Every foreign key that was checked has its parent."


def _next_beside_references(report: AuditReport) -> str | None:
    if any(one.findings for one in report.types):
        return "Next: correct these types, or declare the models that they mean."
    if any(one.state is AuditState.FINDINGS for one in report.copies):
        return f"Next: {REPAIR}"
    if any(one.duplicates for one in report.unique):
        return "Next: decide which row keeps each of these values, and change the others."
    if any(one.differing for one in report.counters):
        return "Next: write the numbers of children into these counters, and find out who changes only one of them."
    if any(one.found for one in report.leftovers):
        return "Next: run a worker (or crosstie sweep --once), then look at what is left: crosstie sagas leftovers."
    return None

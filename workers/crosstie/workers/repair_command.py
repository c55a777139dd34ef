"""The commands `crosstie audit repair | repairs | undo`."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Final

import typer
from rich.table import Table

from crosstie.workers import presentation
from crosstie.workers.command_options import AsJson, Databases, Imports, ask, print_json, sources
from crosstie.workers.operator_log import log_operation
from crosstie.workers.preparation import prepare
from crosstie.workers.repair import (
    Cap,
    Outcome,
    Policy,
    RepairedRow,
    RepairReport,
    UndoReport,
    repair_reference,
    undo_repair,
)
from crosstie.workers.repair.quarantine import repairs_in

__all__ = ["repair", "show_repairs", "undo"]

_CAP: Final = Cap()


def repair(  # noqa: PLR0917 - typer names the options after them
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="A name as `crosstie audit` takes it.")],
    policy: Annotated[Policy, typer.Option("--policy", "-p", help="What to do about an orphan.")] = Policy.REPORT,
    apply: Annotated[
        bool, typer.Option("--apply", help="Do it; without this option it is only said what would be done.")
    ] = False,
    max_rows: Annotated[int, typer.Option("--max-rows", min=1, help="More orphans are refused.")] = _CAP.rows,
    max_percent: Annotated[
        float, typer.Option("--max-percent", min=0, max=100, help="A greater share of the rows is refused.")
    ] = _CAP.percent,
    sample: Annotated[int, typer.Option("--sample", min=0, help="Rows shown.")] = 5,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Audit one reference, and repair its orphans by a policy: set_null, delete, recreate or quarantine.

    A dry run unless --apply is given. What is taken is kept in crosstie_quarantine, for `crosstie audit undo`. Exit
    status 0 if no orphan is left, 1 if some are, 2 if nothing could be done.
    """
    prepare(imports)
    cap = Cap(max_rows, max_percent)
    acting = apply and policy is not Policy.REPORT
    if acting and not yes:
        planned = repair_reference(reference, policy, cap=cap)
        if planned.rows:
            question = f"{len(planned.rows):,} rows of {planned.audit.reference} will be repaired: {policy}. Go on?"
            typer.confirm(question, abort=True, err=True)
    if acting:
        log_operation("repair", f"{reference} by {policy}")
    report = repair_reference(reference, policy, apply=apply, cap=cap)
    if as_json:
        print_json(report.as_document())
    else:
        _show(report, sample)
    raise typer.Exit(report.exit_status)


def show_repairs(databases: Databases = None, as_json: AsJson = False, imports: Imports = None) -> None:
    """List the repairs whose rows are kept, the latest first. Exit status 2 if a database could not be asked."""
    asked = ask(sources(databases, imports), repairs_in)
    if as_json:
        print_json(asked.document("repairs", map(asdict, asked.found)))
    else:
        table = presentation.table(
            "repair", "when", "policy", "reference", "rows", "restored", numbers=("rows", "restored")
        )
        for one in sorted(asked.found, key=lambda repair: -repair.at_ms):
            at = datetime.fromtimestamp(one.at_ms / 1000, UTC)
            counts = f"{one.rows:,}", f"{one.restored:,}"
            table.add_row(one.repair_id, f"{at:%Y-%m-%d %H:%M} UTC", one.policy, one.reference, *counts)
        presentation.console().print(table)
        asked.show_errors()
    raise typer.Exit(asked.exit_status)


def undo(
    repair_id: Annotated[str, typer.Argument(metavar="REPAIR", help="The id of a repair.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Put back what a repair took, as far as nobody has changed it since; it may be repeated.

    Exit status 1 if something stays in the quarantine, with the reason for each row.
    """
    prepare(imports)
    if not yes:
        typer.confirm(f"What repair {repair_id} took will be put back. Go on?", abort=True, err=True)
    log_operation("undo", f"repair {repair_id}")
    report = undo_repair(repair_id)
    if as_json:
        print_json(report.as_document())
    else:
        _show_undo(report)
    raise typer.Exit(report.exit_status)


def _show(report: RepairReport, sample: int) -> None:
    found = report.audit
    presentation.show_line(f"{found.reference}: {found.orphan_rows:,} orphan rows, policy {report.policy}")
    troubled = [row for row in report.rows if row.outcome in {Outcome.SPARED, Outcome.FAILED}]
    shown = troubled or report.rows
    if shown[:sample]:
        presentation.console().print(_rows(shown[:sample]))
    if len(shown) > sample:
        presentation.show_line(f"and {len(shown) - sample:,} more (--sample N shows more of them)")
    counts = ", ".join(f"{outcome.value} {count:,}" for outcome in Outcome if (count := report.count(outcome)))
    presentation.show_line(counts or "nothing to repair")
    presentation.show_line(_next_step(report))


def _rows(rows: tuple[RepairedRow, ...] | list[RepairedRow]) -> Table:
    table = presentation.table("child row", "missing parent", "outcome", "reason")
    for row in rows:
        table.add_row(presentation.row_text(row.child_key), str(row.parent_key), row.outcome.value, row.reason or "")
    return table


def _next_step(report: RepairReport) -> str:
    if report.repair_id is not None:
        taken = report.count(Outcome.REPAIRED)
        again = "" if report.exit_status == 0 else "; to repair what is left, run it again"
        return (
            f"Next: to take this back, run: crosstie audit undo {report.repair_id}{again}"
            if taken
            else ("Nothing was repaired: the reasons are above.")
        )
    if not report.rows:
        return "Every foreign key that was checked has its parent."
    if report.policy is Policy.REPORT:
        return "Next: choose a policy: --policy set_null, delete, recreate or quarantine."
    return "Nothing was written: this was a dry run. Next: the same with --apply."


def _show_undo(report: UndoReport) -> None:
    restored = sum(row.restored for row in report.rows)
    presentation.show_line(
        f"repair {report.repair_id} ({report.policy}) of {report.reference}: restored {restored:,}, restored before "
        f"{report.before:,}, not restored {len(report.rows) - restored:,}"
    )
    for row in report.rows:
        key = presentation.row_text(row.child_key)
        if not row.restored:
            presentation.show_line(f"  {key} (parent {row.parent_key}) is not restored: {row.reason}")
        for note in row.notes:
            presentation.show_line(f"  {key}: not taken back: {note}")

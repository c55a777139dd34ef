"""The commands `crosstie backfill` and `crosstie verify-copies`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Final

import typer
from rich.table import Table

from crosstie.outbox.backfill import LIMIT_WAITING, backfill
from crosstie.outbox.comparison import SETTLE_S, ComparedCopies, compare_copies
from crosstie.outbox.copy_name import select_copies
from crosstie.workers import presentation
from crosstie.workers.command_options import AsJson, Imports, print_json
from crosstie.workers.preparation import prepare

__all__ = ["REPAIR", "backfill_copies", "copies_table", "verify_copies"]

DIFFERING: Final = 1
REPAIR: Final = "see that no events wait (crosstie status), then repair: crosstie verify-copies --repair"

Copies = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="COPY",
        help="Names such as Post.username or posts.username; without any, every denormalised column.",
        show_default=False,
    ),
]


def backfill_copies(
    copies: Annotated[list[str], typer.Argument(metavar="COPY", help="Names such as Post.username or posts.username.")],
    restart: Annotated[bool, typer.Option("--restart", help="From the first row, not where a walk has ended.")] = False,
    limit_waiting: Annotated[
        int, typer.Option("--limit-waiting", min=1, help="Events of these copies that may wait for workers.")
    ] = LIMIT_WAITING,
    imports: Imports = None,
) -> None:
    """Have all rows of denormalised columns aligned by the workers, in chunks; safe while others write.

    May be interrupted at any time: the same command goes on where it was. Columns that follow the same foreign key are
    aligned together.
    """
    prepare(imports)
    for group in select_copies(copies):
        walked = backfill(group, restart=restart, limit_waiting=limit_waiting)
        presentation.show_line(
            f"{group.name}: {walked:,} rows of {group.parent.table.name!r} are told; workers do the rest"
        )


def verify_copies(
    copies: Copies = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Have the rows that differ aligned: write events for them.")
    ] = False,
    settle_s: Annotated[
        float, typer.Option("--settle", min=0, help="Seconds after which a row that still differs counts.")
    ] = SETTLE_S,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Compare denormalised columns with their originals.

    Exit status 1 if any row differs, also where it is being repaired.
    """
    prepare(imports)
    found = [compare_copies(group, repair=repair, settle_s=settle_s) for group in select_copies(copies or None)]
    if as_json:
        print_json({"version": 1, "copies": [asdict(one) for one in found]})
    else:
        _show(found)
    if not all(one.is_right for one in found):
        raise typer.Exit(DIFFERING)


def copies_table(found: Sequence[ComparedCopies]) -> Table:
    """A line for each group of copies."""
    numbers = ("rows", "differing", "without parent")
    table = presentation.table("copies", *numbers, "for example", numbers=numbers)
    for one in found:
        examples = "; ".join(
            f"{presentation.row_text(each.key)} ({', '.join(each.fields)})" for each in one.differences[:3]
        )
        table.add_row(one.name, f"{one.rows:,}", f"{one.differing:,}", f"{one.orphans:,}", examples)
    return table


def _show(found: Sequence[ComparedCopies]) -> None:
    console = presentation.console()
    console.print(copies_table(found))
    console.print()
    presentation.show_line(_next_step(found))


def _next_step(found: Sequence[ComparedCopies]) -> str:
    if not found:
        return (
            "Nothing was compared: no imported model declares a denormalised column. Next: name the modules of your "
            "models in the setting `imports`, or with --import."
        )
    if any(one.repairing for one in found):
        return "Events for the rows that differ are written. Next: let workers apply them, and verify again."
    if not all(one.is_right for one in found):
        return f"Next: {REPAIR}"
    if any(one.orphans for one in found):
        return "Every copy with a parent is right. Next: crosstie audit lists the rows without one."
    return "Every copy equals its original."

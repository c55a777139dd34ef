"""What an audit has found of values that are to be in one database only, for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from crosstie.orm.integrity.uniqueness import UniquenessResult
from crosstie.workers import presentation

__all__ = ["show_unique"]


def show_unique(results: Sequence[UniquenessResult], sample: int) -> None:
    """A table of the columns, and the first values of each that two databases have."""
    console = presentation.console()
    if results:
        table = presentation.table("unique column", "state", "values", "in two", numbers=("values", "in two"))
        for one in results:
            table.add_row(one.name, one.state.value.upper(), f"{one.keys_checked:,}", f"{one.duplicates:,}")
        console.print()
        console.print(table)
    for one in results:
        if one.reason is not None:
            console.print(Text(f"{one.name} was not checked to the end: {one.reason}"), soft_wrap=True)
        if one.deferred:
            console.print(Text(f"{one.name}: {one.deferred:,} values not judged: a saga that is not resolved has them"))
        for found in one.findings[:sample]:
            rows = (f"{name} {row}" for name, group in found.rows.items() for row in map(_told, group[:1]))
            console.print(Text(f"  {found.key}: {', '.join(rows)}"), soft_wrap=True)
        if len(one.findings[:sample]) < one.duplicates and sample:
            console.print(Text(f"  and {one.duplicates - len(one.findings[:sample]):,} more", style="dim"))


def _told(row: dict[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in row.items())

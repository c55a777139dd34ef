"""What `crosstie audit --discover` shows."""

from __future__ import annotations

from dataclasses import asdict

from crosstie.workers import presentation
from crosstie.workers.audit_discovery import Discovery
from crosstie.workers.command_options import INCOMPLETE, print_json

__all__ = ["show_discovery"]


def show_discovery(found: Discovery, *, as_json: bool) -> int:
    """Suggestions, and how to take them up; returns the exit status: 2 where a database could not be asked."""
    status = INCOMPLETE if found.errors else 0
    if as_json:
        print_json({"version": 1, "suggestions": list(map(asdict, found.suggestions)), "errors": found.errors})
        return status
    for name, error in found.errors.items():
        presentation.show_error(f"{name}: {error}")
    if not found.suggestions:
        presentation.show_line("No column looks like a reference that nobody has declared.")
        return status
    table = presentation.table("reference", "keys found", numbers=("keys found",))
    for one in found.suggestions:
        share = f"{one.found} of {one.sampled}" if one.sampled else "no rows"
        table.add_row(one.reference, share)
    presentation.console().print(table)
    presentation.show_line("Next: declare those that are meant with BelongsTo, or without models in crosstie.toml:")
    presentation.show_line("[audit]")
    presentation.show_line("references = [")
    for one in found.suggestions:
        presentation.show_line(f'  "{one.reference}",')
    presentation.show_line("]")
    return status

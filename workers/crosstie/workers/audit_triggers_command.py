"""The command `crosstie audit triggers`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from crosstie.orm.errors import CrosstieError
from crosstie.orm.integrity import AuditedReference
from crosstie.workers import presentation
from crosstie.workers.audit_references import reflected_reference, select_references
from crosstie.workers.audit_triggers import create_noting, drop_noting, noting_of
from crosstie.workers.command_options import AsJson, FromSql, Imports, print_json
from crosstie.workers.preparation import prepare

__all__ = ["triggers"]


def triggers(  # noqa: PLR0917 - typer names the options after them
    references: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="REFERENCE",
            help="Names as `crosstie audit` takes them; without any, every reference between two databases.",
            show_default=False,
        ),
    ] = None,
    dropping: Annotated[bool, typer.Option("--drop", help="Drop them.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="Change nothing; say what is noted.")] = False,
    from_sql: FromSql = None,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Have triggers note the keys that `crosstie audit --changes` looks at: of children written, of parents deleted.

    Safe to repeat. The next audit reads everything, and those after it the changes. Exit status 1 if the changes of a
    reference are not all noted now, 2 if something could not be done.
    """
    prepare(imports)
    chosen: list[str | AuditedReference] = [*(references or ()), *map(reflected_reference, from_sql or ())]
    told = [_told(one, dropping=dropping, listing=listing) for one in select_references(chosen or None)]
    if as_json:
        print_json({"version": 1, "references": told})
    for one in [] if as_json else told:
        _show(one)
    if not told and not as_json:
        presentation.show_error("no imported model declares a reference between two databases.")
    failed = not told or any(one["error"] for one in told)
    raise typer.Exit(2 if failed else int(not dropping and not all(one["noted"] for one in told)))


def _told(reference: AuditedReference, *, dropping: bool, listing: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"reference": reference.name, "noted": False, "reason": None, "error": None}
    told |= {"created": [], "dropped": []}
    try:
        if dropping:
            told["dropped"] = [one.name for one in drop_noting(reference)]
        elif not listing:
            told["created"] = [one.name for one in create_noting(reference)]
        noting = noting_of(reference)
    except CrosstieError as error:
        return told | {"error": str(error)}
    return told | {"noted": noting.identity is not None, "reason": noting.reason}


def _show(told: dict[str, Any]) -> None:
    if told["error"]:
        presentation.show_error(told["error"])
        return
    state = "its changes are noted" if told["noted"] else f"its changes are not noted: {told['reason']}"
    done = "".join(f"; created {name}" for name in told["created"]) + "".join(
        f"; dropped {name}" for name in told["dropped"]
    )
    presentation.show_line(f"{told['reference']}: {state}{done}")

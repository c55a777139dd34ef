"""The type columns of polymorphic references, as a part of an audit."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from rich.text import Text

from crosstie.orm.integrity import AuditedReference, AuditState, TouchedKeys
from crosstie.orm.integrity.types import TypeColumn, TypesResult, audit_types
from crosstie.workers import presentation
from crosstie.workers.audit_references import type_columns

__all__ = ["audit_type_columns", "show_types", "types_document"]

logger = logging.getLogger(__name__)


def audit_type_columns(wanted: Iterable[AuditedReference], *, suspects: TouchedKeys) -> tuple[TypesResult, ...]:
    """Look at the type columns that these references follow, where models or the settings declare them.

    Raises as `select_references` does.
    """

    def audit(column: TypeColumn) -> TypesResult:
        try:
            return audit_types(column, suspects=suspects)
        except Exception as error:
            # A fault of ours in one audit must neither look like OK nor cost the others.
            logger.exception("the audit of %s failed", column.name)
            reason = f"unexpected {type(error).__name__}: {error}"
            return TypesResult(column.name, AuditState.INCOMPLETE, reason=reason)

    return tuple(audit(column) for column in type_columns(wanted))


def types_document(result: TypesResult, sample: int | None) -> dict[str, Any]:
    """Plain values for JSON, with at most `sample` rows of each value."""
    return {
        "column": result.name,
        "state": result.state.value,
        "reason": result.reason,
        "rows": result.rows,
        "deferred": result.deferred,
        "findings": [
            {
                "kind": "unknown-type",
                "value": one.value,
                "rows": one.rows,
                "row_keys": list(one.row_keys[:sample]),
                "query": one.query,
            }
            for one in result.findings
        ],
    }


def show_types(results: Sequence[TypesResult], sample: int) -> None:
    """For people: nothing where every type is known."""
    console = presentation.console()
    if any(one.state is not AuditState.OK for one in results):
        console.print()
    for one in results:
        if one.reason is not None:
            console.print(Text(f"{one.name} was not checked to the end: {one.reason}"), soft_wrap=True)
        if one.deferred:
            console.print(Text(f"{one.name}: {one.deferred:,} rows not judged: a saga that is not resolved has them"))
        for found in one.findings:
            rows = "; ".join(
                ", ".join(f"{name}={value}" for name, value in row.items()) for row in found.row_keys[:sample]
            )
            told = f"{one.name}: unknown type {found.value!r} in {found.rows:,} rows: {rows}  {found.query}"
            console.print(Text(told), soft_wrap=True)

"""The type columns of polymorphic references, as a part of an audit."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from crosstie.orm.integrity import AuditedReference, AuditState, TouchedKeys
from crosstie.orm.integrity.types import TypesResult, audit_types
from crosstie.workers.audit_guard import guarded
from crosstie.workers.audit_references import type_columns

__all__ = ["audit_type_columns", "types_document"]


def audit_type_columns(wanted: Iterable[AuditedReference], *, suspects: TouchedKeys) -> tuple[TypesResult, ...]:
    """Look at the type columns that these references follow, where models or the settings declare them.

    Raises as `select_references` does.
    """

    def incomplete(name: str, reason: str) -> TypesResult:
        return TypesResult(name, AuditState.INCOMPLETE, reason=reason)

    return tuple(
        guarded(column.name, partial(audit_types, column, suspects=suspects), partial(incomplete, column.name))
        for column in type_columns(wanted)
    )


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

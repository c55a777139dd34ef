"""Values that are to be unique over several databases, as a part of an audit."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.integrity import AuditState, ProgressListener, TouchedKeys
from crosstie.orm.integrity.uniqueness import UniqueColumn, UniquenessResult, audit_uniqueness
from crosstie.workers.audit_guard import guarded
from crosstie.workers.audit_references import reflected_end, spread
from crosstie.workers.errors import UnknownColumn

__all__ = ["audit_unique", "unique_column", "unique_document"]


def unique_column(text: str) -> UniqueColumn:
    """The column of "{shop_eu, shop_us}.users.email" or "shop_*.users.email", read from the databases.

    A pattern means every connection that fits and is not read_only. Raises UnknownColumn, UnknownConnection,
    NoSuchTable, DatabaseUnavailable.
    """
    connection, _, rest = text.partition(".")
    if "*" in connection and not text.startswith("{"):
        fitting = [name for name in ConnectionManager.names(writable=True) if fnmatchcase(name, connection)]
        ends = [f"{name}.{rest}" for name in fitting]
    else:
        ends = spread(text, text)
    if len(ends) < 2:
        raise UnknownColumn(
            f"expected a column in two databases at least, such as '{{shop_eu, shop_us}}.users.email' or "
            f"'shop_*.users.email', and {text!r} means {len(ends)}."
        )
    return UniqueColumn(text, tuple(reflected_end(end, text) for end in ends))


def audit_unique(
    texts: Iterable[str], *, page_size: int, suspects: TouchedKeys, progress: ProgressListener | None = None
) -> tuple[UniquenessResult, ...]:
    """Audit these columns, each written as `unique_column` takes it; one that cannot be read is INCOMPLETE."""
    grace_s = ConnectionManager.settings().audit.grace_s

    def audit(text: str) -> UniquenessResult:
        return audit_uniqueness(
            unique_column(text), page_size=page_size, suspects=suspects, grace_s=grace_s, progress=progress
        )

    def incomplete(text: str, reason: str) -> UniquenessResult:
        return UniquenessResult(text, AuditState.INCOMPLETE, reason=reason)

    return tuple(guarded(text, partial(audit, text), partial(incomplete, text)) for text in dict.fromkeys(texts))


def unique_document(result: UniquenessResult, sample: int | None) -> dict[str, Any]:
    """Plain values for JSON, with at most `sample` findings."""
    return {
        "column": result.name,
        "state": result.state.value,
        "reason": result.reason,
        "keys_checked": result.keys_checked,
        "duplicates": result.duplicates,
        "deferred": result.deferred,
        "seconds": round(result.seconds, 3),
        "findings": [
            {"value": one.key, "rows": {name: list(rows) for name, rows in one.rows.items()}}
            for one in result.findings[:sample]
        ],
    }

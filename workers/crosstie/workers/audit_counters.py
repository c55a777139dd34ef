"""Counter caches as a part of an audit: declared by models, written in the settings, or given as text."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.counter_cache import counters
from crosstie.orm.integrity import AuditState, Endpoint, ProgressListener
from crosstie.orm.integrity.counters import CounterColumn, CounterResult, audit_counter
from crosstie.workers.audit_guard import guarded
from crosstie.workers.audit_record import record_check, unrecordable
from crosstie.workers.audit_references import reflected_end, spread
from crosstie.workers.audit_sagas import TouchedBySagas
from crosstie.workers.errors import UnknownColumn

__all__ = ["audit_counters", "counter_column", "counter_document", "declared_counters"]

_WRITTEN: Final = re.compile(r"(?P<counter>[^=]+)=\s*count\((?P<children>[^()]+)\)\s*")


def counter_column(text: str) -> CounterColumn:
    """The counter of "main.users.posts_count = count(legacy.posts.user_id)", read from the databases.

    Children may be in several databases, in braces: "count({shop_eu, shop_us}.orders.user_id)". They refer to the
    parent's primary key, of one column. Raises UnknownColumn, UnknownConnection, NoSuchTable, DatabaseUnavailable.
    """
    written = _WRITTEN.fullmatch(text.strip())
    if written is None:
        raise UnknownColumn(
            f"expected a counter such as 'main.users.posts_count = count(legacy.posts.user_id)', and found {text!r}."
        )
    counter = reflected_end(written["counter"].strip(), text)
    children = [reflected_end(end, text) for end in spread(written["children"].strip(), text)]
    if len(counter.primary_key) != 1:
        raise UnknownColumn(
            f"expected a primary key of one column in {counter.table.fullname!r}, which children refer to, for "
            f"{text!r}, and found {len(counter.primary_key)}."
        )
    parent = Endpoint(counter.connection, counter.table, counter.primary_key[0])
    return CounterColumn.between(parent, counter.column, children)


def declared_counters(names: Collection[str] | None = None) -> list[CounterColumn]:
    """Those of the models whose children follow one of these references; without names, all."""
    declared = [CounterColumn.declared(one) for one in counters()]
    return [one for one in declared if names is None or any(name in names for name in one.references)]


def audit_counters(
    wanted: Iterable[CounterColumn | str],
    run_id: str,
    *,
    page_size: int,
    touched: TouchedBySagas,
    progress: ProgressListener | None = None,
) -> tuple[CounterResult, ...]:
    """Audit these counters, given or written as `counter_column` takes them; one that cannot be read is INCOMPLETE.

    How each ended is kept in the parent's database, where that has crosstie's tables.
    """
    grace_s = ConnectionManager.settings().audit.grace_s

    def audit(one: CounterColumn | str) -> CounterResult:
        started_at = datetime.now(UTC)
        counter = counter_column(one) if isinstance(one, str) else one
        result = audit_counter(
            counter,
            page_size=page_size,
            suspects=touched,
            values=touched.values,
            grace_s=grace_s,
            progress=progress,
        )
        _record(counter, result, run_id, started_at)
        return result

    def incomplete(name: str, reason: str) -> CounterResult:
        return CounterResult(name, AuditState.INCOMPLETE, reason=reason)

    named = {one if isinstance(one, str) else one.name: one for one in wanted}
    return tuple(guarded(name, partial(audit, one), partial(incomplete, name)) for name, one in named.items())


def _record(counter: CounterColumn, result: CounterResult, run_id: str, started_at: datetime) -> None:
    database = counter.parent.database
    if unrecordable(database) is None:
        record_check(
            database,
            run_id,
            counter.name,
            state=result.state,
            started_at=started_at,
            findings=result.differing,
            rows_checked=result.parents_checked,
            detail={"counter": True, "deferred_rows": result.deferred, "reason": result.reason},
        )


def counter_document(result: CounterResult, sample: int | None) -> dict[str, Any]:
    """Plain values for JSON, with at most `sample` findings."""
    return {
        "counter": result.name,
        "state": result.state.value,
        "reason": result.reason,
        "parents_checked": result.parents_checked,
        "differing": result.differing,
        "deferred": result.deferred,
        "seconds": round(result.seconds, 3),
        "findings": [
            {"parent_key": one.parent_key, "expected": one.expected, "found": one.found}
            for one in result.findings[:sample]
        ],
    }

"""Counter caches as a part of an audit: declared by models, written in the settings, or given as text."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rich.text import Text

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.counter_cache import counters
from crosstie.orm.errors import CrosstieError
from crosstie.orm.integrity import AuditState, Endpoint, ProgressListener
from crosstie.orm.integrity.counters import CounterColumn, CounterResult, audit_counter
from crosstie.workers import presentation
from crosstie.workers.audit_record import record_check, unrecordable
from crosstie.workers.audit_references import reflected_end, spread
from crosstie.workers.audit_sagas import TouchedBySagas
from crosstie.workers.errors import UnknownColumn

__all__ = ["audit_counters", "counter_column", "counter_document", "declared_counters", "show_counters"]

logger = logging.getLogger(__name__)

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
        name = one if isinstance(one, str) else one.name
        started_at = datetime.now(UTC)
        try:
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
        except CrosstieError as error:
            return CounterResult(name, AuditState.INCOMPLETE, reason=str(error))
        except Exception as error:
            # A fault of ours in one audit must neither look like OK nor cost the others.
            logger.exception("the audit of %s failed", name)
            return CounterResult(name, AuditState.INCOMPLETE, reason=f"unexpected {type(error).__name__}: {error}")
        return result

    return tuple(audit(one) for one in {one if isinstance(one, str) else one.name: one for one in wanted}.values())


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


def show_counters(results: Sequence[CounterResult], sample: int) -> None:
    """A table of the counters, and the first that are wrong in each."""
    console = presentation.console()
    if results:
        table = presentation.table("counter", "state", "parents", "wrong", numbers=("parents", "wrong"))
        for one in results:
            table.add_row(one.name, one.state.value.upper(), f"{one.parents_checked:,}", f"{one.differing:,}")
        console.print()
        console.print(table)
    for one in results:
        if one.reason is not None:
            console.print(Text(f"{one.name} was not checked to the end: {one.reason}"), soft_wrap=True)
        if one.deferred:
            told = f"{one.name}: {one.deferred:,} parents not judged: a saga has them, or they change all the time"
            console.print(Text(told), soft_wrap=True)
        for found in one.findings[:sample]:
            row = ", ".join(f"{name}={value}" for name, value in found.parent_key.items())
            console.print(Text(f"  {row}: {found.expected} children, and the column says {found.found}"))
        if len(one.findings[:sample]) < one.differing and sample:
            console.print(Text(f"  and {one.differing - len(one.findings[:sample]):,} more", style="dim"))

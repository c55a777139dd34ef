"""What an audit has found besides orphans, for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from crosstie.orm.integrity import AuditState
from crosstie.orm.integrity.counters import CounterResult
from crosstie.orm.integrity.types import TypesResult
from crosstie.orm.integrity.uniqueness import UniquenessResult
from crosstie.workers import presentation
from crosstie.workers.audit_leftovers import AuditedLeftovers
from crosstie.workers.presentation import row_text, show_line

__all__ = ["show_counters", "show_leftovers", "show_types", "show_unique"]

_BY_SAGAS = "a saga that is not resolved has them"


def show_unique(results: Sequence[UniquenessResult], sample: int) -> None:
    """A table of the columns, and the first values of each that two databases have."""
    counts = [(one.name, one.state, one.keys_checked, one.duplicates) for one in results]
    _show_table("unique column", "values", "in two", counts)
    for one in results:
        _show_unjudged(one.name, one.reason, one.deferred, f"values not judged: {_BY_SAGAS}")
        for found in one.findings[:sample]:
            rows = (f"{name} {row_text(row)}" for name, group in found.rows.items() for row in group[:1])
            show_line(f"  {found.key}: {', '.join(rows)}")
        if sample:
            _show_rest(one.duplicates - len(one.findings[:sample]))


def show_counters(results: Sequence[CounterResult], sample: int) -> None:
    """A table of the counters, and the first that are wrong in each."""
    counts = [(one.name, one.state, one.parents_checked, one.differing) for one in results]
    _show_table("counter", "parents", "wrong", counts)
    for one in results:
        waiting = "parents not judged: a saga has them, or they change all the time"
        _show_unjudged(one.name, one.reason, one.deferred, waiting)
        for found in one.findings[:sample]:
            show_line(f"  {row_text(found.parent_key)}: {found.expected} children, and the column says {found.found}")
        if sample:
            _show_rest(one.differing - len(one.findings[:sample]))


def show_types(results: Sequence[TypesResult], sample: int) -> None:
    """Nothing where every type is known."""
    if any(one.state is not AuditState.OK for one in results):
        show_line("")
    for one in results:
        _show_unjudged(one.name, one.reason, one.deferred, f"rows not judged: {_BY_SAGAS}")
        for found in one.findings:
            rows = "; ".join(map(row_text, found.row_keys[:sample]))
            show_line(f"{one.name}: unknown type {found.value!r} in {found.rows:,} rows: {rows}  {found.query}")


def show_leftovers(audited: Sequence[AuditedLeftovers], sample: int) -> None:
    """Nothing where nothing is left over."""
    if any(one.state is not AuditState.OK for one in audited):
        show_line("")
    for one in audited:
        if one.reason is not None:
            show_line(f"the sagas of {one.database} were not looked at: {one.reason}")
        for found in one.found[:sample]:
            show_line(f"left over in {one.database}: {found.kind}: {found.saga_id}: {found.message}")
        _show_rest(len(one.found[sample:]), " (crosstie sagas leftovers)")


def _show_table(subject: str, checked: str, wrong: str, counts: Sequence[tuple[str, AuditState, int, int]]) -> None:
    if not counts:
        return
    table = presentation.table(subject, "state", checked, wrong, numbers=(checked, wrong))
    for name, state, *numbers in counts:
        table.add_row(name, presentation.state_text(state), *(f"{number:,}" for number in numbers))
    show_line("")
    presentation.console().print(table)


def _show_unjudged(name: str, reason: str | None, deferred: int, waiting: str) -> None:
    if reason is not None:
        show_line(f"{name} was not checked to the end: {reason}")
    if deferred:
        show_line(f"{name}: {deferred:,} {waiting}")


def _show_rest(left: int, where: str = "") -> None:
    if left > 0:
        presentation.console().print(Text(f"  and {left:,} more{where}", style="dim"))

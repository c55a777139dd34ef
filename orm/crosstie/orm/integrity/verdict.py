"""The verdict over the chunks of an audit: it is OK only if they tile the whole range and their counts add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Unpack

from crosstie.orm.errors import CrosstieError
from crosstie.orm.integrity.child import ChildColumn
from crosstie.orm.integrity.endpoint import AuditedReference
from crosstie.orm.integrity.errors import ScanIncomplete
from crosstie.orm.integrity.findings import AuditPhase, AuditResult, AuditState, key_text
from crosstie.orm.integrity.judgement import Judgement, JudgementOptions, Tally
from crosstie.orm.integrity.parent import ParentColumn
from crosstie.orm.integrity.plan import AuditPlan, ChunkResult, Strategy
from crosstie.orm.integrity.tiling import Tile, require_tiling, sum_known

__all__ = ["conclude_audit"]


def conclude_audit(
    reference: AuditedReference,
    plan: AuditPlan,
    results: Sequence[ChunkResult],
    **options: Unpack[JudgementOptions],
) -> AuditResult:
    """Put the results of all chunks together, in the order of their keys, and look again at what they hold.

    Where they hold anything, `grace_s` is waited from now on; give 0 where the last chunk ended longer ago. INCOMPLETE,
    with the reason, where a chunk was stopped, the chunks leave a gap, the counts do not reconcile or a database does
    not answer. `seconds` is left to the caller.
    """
    keys = sum(one.keys for one in results)
    rows = sum_known(one.rows for one in results)
    judgement = Judgement(reference=reference, keys=keys, expected=plan.keys, **options)
    judgement.tally = tally = _merged(results, judgement.finding_limit)
    notes = list(plan.notes)
    reason = next((one.reason for one in results if one.reason is not None), None)
    try:
        judgement.tell(AuditPhase.RECONCILING)
        tiles = [Tile(one.covered.lo, one.covered.hi, one.keys, one.rows) for one in results]
        require_tiling(tiles, plan.last, plan.after)
        if plan.last is not None:
            child, parent = judgement.columns
            judgement.hold(key for one in results for key in one.held)
            judgement.settle_held()
            if plan.strategy is Strategy.FETCH or not child.storage.is_native:
                _require_order(child, plan, results)
            if tally.orphan_keys and parent.is_empty():
                table = f"{parent.end.connection}.{parent.end.table.fullname}"
                notes.append(f"{table} has no rows at all: is it in the right database?")
            notes += _of_spelling(child, parent, results, tally)
    except CrosstieError as error:
        reason = reason or str(error)
    state = AuditState.FINDINGS if tally.orphan_keys else AuditState.OK
    return AuditResult(
        reference=reference.name,
        state=state if reason is None else AuditState.INCOMPLETE,
        keys_checked=keys,
        child_rows=plan.rows if rows is None else rows,
        orphan_keys=tally.orphan_keys,
        orphan_rows=tally.orphan_rows,
        deferred_keys=tally.deferred_keys,
        deferred_rows=tally.deferred_rows,
        findings=tuple(tally.findings),
        reason=reason,
        notes=tuple(notes),
        open_keys=tally.open_keys(),
    )


def _of_spelling(
    child: ChildColumn, parent: ParentColumn, results: Sequence[ChunkResult], tally: Tally
) -> Iterator[str]:
    """What a report says where one end takes for equal what the other tells apart."""
    alike = sum(one.alike for one in results)
    if alike:
        such_as = next(key for one in results for key in one.such_as)
        yield (
            f"{alike:,} keys have a parent in another spelling only, such as {key_text(such_as)!r}: {parent.end} takes "
            f"for equal what {child.end} tells apart"
        )
    if tally.orphan_keys and child.storage.equality.is_wider_than(parent.storage.equality):
        yield (
            f"{child.end} takes for equal what {parent.end} tells apart: an orphan may have a parent in another "
            "spelling"
        )


def _merged(results: Sequence[ChunkResult], finding_limit: int) -> Tally:
    """Everything that the chunks have found, once: a key with several spellings may be in several chunks."""
    tally = Tally()
    for one in results:
        again = Counter(found.parent_key for found in one.findings if found.parent_key in tally.reported)
        fresh = [found for found in one.findings if found.parent_key not in again]
        tally.orphan_keys += one.orphan_keys - len(again)
        tally.orphan_rows += one.orphan_rows - again.total()
        tally.deferred_keys += one.deferred_keys
        tally.deferred_rows += one.deferred_rows
        tally.findings += fresh[: max(finding_limit - len(tally.findings), 0)]
        tally.reported.update(found.parent_key for found in fresh)
    return tally


def _require_order(child: ChildColumn, plan: AuditPlan, results: Sequence[ChunkResult]) -> None:
    """In one snapshot the pages must hold every row, however fast the table changes. Raises ScanIncomplete.

    Integers need no such proof. Other keys are read in an order that is their database's own, and a collation whose
    order and whose comparison contradict each other would leave keys out between two pages.
    """
    pages = [pair for one in results for pair in pairwise((one.covered.lo, *one.page_ends))]
    with child.snapshot() as frozen:
        total = frozen.count_rows(plan.after, plan.last)
        held = sum(frozen.count_rows(lo, hi) for lo, hi in pages)
    if held != total:
        raise ScanIncomplete(
            f"the pages of {child.end} hold {held} rows of {total}: the order of its keys and their comparison "
            "contradict each other"
        )

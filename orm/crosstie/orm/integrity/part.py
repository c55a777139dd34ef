"""The next part of a reference's keys, for audits of tables so large that each of them reads only a part."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from crosstie.orm.integrity.child import ChildColumn
from crosstie.orm.integrity.columns import columns_of
from crosstie.orm.integrity.endpoint import AuditedReference
from crosstie.orm.integrity.plan import AuditPlan, KeyRange, Strategy
from crosstie.orm.integrity.storage import KeyKind, Raw

__all__ = ["part_of_plan"]


def part_of_plan(
    reference: AuditedReference, plan: AuditPlan, *, after: Raw | None, parts: int, chunks: int = 1
) -> AuditPlan:
    """Of a plan for all keys, the part behind `after`: about one of `parts`, and in the end what is left.

    It begins anew where no key is left behind `after`. What one page holds, and what is read at once whatever it holds
    (without an index), is not parted. Raises KeysNotComparable, NoSuchTable, DatabaseUnavailable.
    """
    if plan.last is None:
        return plan
    each = max(-(-plan.keys // parts), plan.page_size)
    if plan.strategy is Strategy.BITMAP or plan.keys <= each:
        return plan
    child, _ = columns_of(reference)
    if after is not None and child.first(after, plan.last) is None:
        after = None
    upto = child.boundary(after, plan.last, each)
    last = plan.last if upto is None else upto
    ranges = _parted(child, after, last, min(chunks, -(-each // plan.page_size)))
    return replace(plan, after=after, last=last, ends=last == plan.last, chunks=ranges, keys=min(each, plan.keys))


def _parted(child: ChildColumn, after: Raw | None, last: Raw, chunks: int) -> tuple[KeyRange, ...]:
    first = child.first(after, last)
    if child.storage.kind is not KeyKind.INTEGER or first is None:
        return (KeyRange(after, last),)  # it is read bit by bit all the same
    inner = (first + (last - first) * number // chunks for number in range(1, chunks))
    ends = dict.fromkeys(end for end in inner if end != last)
    return tuple(KeyRange(lo, hi) for lo, hi in pairwise((after, *ends, last)))

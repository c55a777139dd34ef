"""The next part of a reference's keys, for audits of tables so large that each of them reads only a part."""

from __future__ import annotations

from dataclasses import replace

from crosstie.orm.integrity.child import ChildColumn
from crosstie.orm.integrity.columns import columns_of
from crosstie.orm.integrity.endpoint import AuditedReference
from crosstie.orm.integrity.plan import AuditPlan, KeyRange, Strategy
from crosstie.orm.integrity.planner import most_chunks
from crosstie.orm.integrity.storage import Raw

__all__ = ["part_of_plan"]


def part_of_plan(
    reference: AuditedReference, plan: AuditPlan, *, after: Raw | None, parts: int, chunks: int = 1
) -> AuditPlan:
    """Of a plan for all keys, the part behind `after`: about one of `parts`, and in the end what is left.

    Its chunks, at most `chunks` of a page or more, have as many distinct keys each. It begins anew where no key is left
    behind `after`. What one page holds, and what is read at once whatever it holds (without an index), is not parted.
    Raises KeysNotComparable, NoSuchTable, DatabaseUnavailable.
    """
    if plan.last is None:
        return plan
    keys = max(-(-plan.keys // parts), plan.page_size)
    if plan.strategy is Strategy.BITMAP or plan.keys <= keys:
        return plan
    child, parent = columns_of(reference)
    if after is not None and child.first(after, plan.last) is None:
        after = None
    number = most_chunks(child, parent, plan.strategy, keys, min(chunks, -(-keys // plan.page_size)))
    ranges = _next_ranges(child, after, plan.last, keys, number)
    last = ranges[-1].hi
    return replace(plan, after=after, last=last, ends=last == plan.last, chunks=ranges, keys=min(keys, plan.keys))


def _next_ranges(child: ChildColumn, after: Raw | None, last: Raw, keys: int, number: int) -> tuple[KeyRange, ...]:
    """The next `keys` keys behind `after` in so many ranges; fewer of them where no key is left.

    One walk along the index finds where the part ends and its chunks do: each looks for its end behind the one before.
    """
    ranges: list[KeyRange] = []
    lo = after
    for one in range(number):
        end = child.boundary(lo, last, keys * (one + 1) // number - keys * one // number)
        hi = last if end is None else end
        ranges.append(KeyRange(lo, hi))
        if hi == last:
            break
        lo = hi
    return tuple(ranges)

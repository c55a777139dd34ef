"""Which strategy suits a reference, and into which chunks its keys are parted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from crosstie.orm.integrity.bitmap import can_be_paged
from crosstie.orm.integrity.byte_order import require_one_byte_order
from crosstie.orm.integrity.catalog import is_indexed
from crosstie.orm.integrity.child import ChildColumn
from crosstie.orm.integrity.columns import columns_of
from crosstie.orm.integrity.endpoint import AuditedReference
from crosstie.orm.integrity.gaps import counts_rows
from crosstie.orm.integrity.parent import ParentColumn
from crosstie.orm.integrity.plan import AuditPlan, KeyRange, Strategy
from crosstie.orm.integrity.quantiles import quantiles
from crosstie.orm.integrity.skip import skips
from crosstie.orm.integrity.statistics import column_statistics, round_trip_s
from crosstie.orm.integrity.storage import INT64, KeyKind, Raw
from crosstie.orm.integrity.uuids import worth_a_chunk

__all__ = ["Situation", "choose_strategy", "most_chunks", "plan_audit"]

_PROBE_FACTOR: Final = 16
"""Asking about a key costs a parent as much as sending so many of its own."""
_SKIP_FACTOR: Final = 1_000
"""One step down an index costs a child as much as reading so many neighbours."""
_DENSE: Final = 0.5
"""A word of 12 bytes is worth sending from so many keys of each possible one on: it stands for 32 of them."""
_DENSE_PARENT: Final = 0.6
"""From so many parents for each possible one on, the child is asked about the missing ones alone. The scan itself finds
out whether they are few; the statistics of InnoDB may tell too few rows of a table without any gap.
"""
_SLOW_S: Final = 0.002
"""A round trip that takes so long goes over a network that is slower than reading."""


@dataclass(frozen=True)
class Situation:
    """What a choice rests on. A span is how many integers lie between the first key and the last; 0 where unknown."""

    kind: KeyKind
    indexed: bool
    rows: int
    keys: int
    parents: int
    span: int
    parent_span: int
    round_trip_s: float
    page_size: int
    child_skips: bool
    child_is_pageable: bool
    child_packs: bool
    both_pack: bool
    narrow: bool = True
    """Whether integers are native and fit 64 bits with a sign."""


def choose_strategy(seen: Situation) -> tuple[Strategy, tuple[str, ...]]:
    """The strategy, and why."""
    if seen.kind is KeyKind.UUID:
        return Strategy.PACKED, ("both ends send their UUIDs as bytes",)
    if seen.kind is not KeyKind.INTEGER:
        return Strategy.FETCH, (f"keys are of kind {seen.kind}: the parent is asked about each",)
    if not seen.narrow:
        return Strategy.FETCH, ("keys are decimals, or greater than 2^63 - 1: the parent is asked about each",)
    size = f"about {seen.keys:,} distinct keys in {seen.rows:,} rows, {seen.parents:,} parents"
    if not seen.indexed and seen.rows > seen.page_size:
        why = "no index begins with the foreign key"
        if seen.child_is_pageable:
            return Strategy.BITMAP, (size, f"{why}: the child is read once, by primary key")
        return Strategy.PACKED, (size, f"{why}, and the primary key is not one integer: each page reads the table")
    if seen.indexed and seen.child_skips and seen.rows > seen.keys * _SKIP_FACTOR:
        return Strategy.SKIP, (size, f"more than {_SKIP_FACTOR:,} rows to a key: the index is asked for the next key")
    if seen.keys * _PROBE_FACTOR < seen.parents:
        return Strategy.PROBE, (size, f"more than {_PROBE_FACTOR} parents to a key: the parent is asked about the keys")
    link = f"a round trip takes {seen.round_trip_s * 1000:.1f} ms"
    if seen.both_pack and seen.keys > seen.span * _DENSE and seen.round_trip_s > _SLOW_S:
        return Strategy.WORDS, (size, f"{seen.keys / seen.span:.0%} of all keys in their range are there", link)
    if (
        seen.indexed
        and seen.child_packs
        and seen.keys > seen.page_size  # what one page holds is counted exactly
        and seen.parents > seen.parent_span * _DENSE_PARENT
    ):
        share = min(seen.parents / max(seen.parent_span, 1), 1)
        return Strategy.GAPS, (size, f"parents have about {share:.0%} of all keys in their range", link)
    return Strategy.PACKED, (size, "both ends send their keys in order", link)


def plan_audit(
    reference: AuditedReference, *, page_size: int = 50_000, chunks: int = 1, strategy: Strategy | None = None
) -> AuditPlan:
    """Plan the audit of a reference: `page_size` distinct keys at a time, in at most `chunks` chunks of like size.

    The strategy follows from statistics unless one is given. Raises KeysNotComparable where the ends cannot be
    compared, UnexpectedKey, NoSuchTable, DatabaseUnavailable.
    """
    child, parent = columns_of(reference)
    last = child.last()
    first = None if last is None else child.first(None, last)
    if last is None or first is None:
        return AuditPlan(reference.name, Strategy.FETCH, page_size, None, (), 0, 0, ("no row has a foreign key",))
    child.storage.key(last)
    child.storage.key(first)
    require_one_byte_order(child, parent)
    children, parents = column_statistics(child.end), column_statistics(parent.end)
    is_integer = child.storage.kind is KeyKind.INTEGER
    keys = min(children.rows if children.distinct is None else children.distinct, children.rows)
    if is_integer:
        keys = min(keys, last - first + 1)
    indexed = is_indexed(child.end)
    chosen, reasons = choose_strategy(
        Situation(
            kind=child.storage.kind,
            indexed=indexed,
            rows=children.rows,
            keys=keys,
            parents=parents.rows,
            span=last - first + 1 if is_integer else 0,
            parent_span=parent.span() if is_integer else 0,
            round_trip_s=max(round_trip_s(child.end), round_trip_s(parent.end)),
            page_size=page_size,
            child_skips=skips(child.database.kind),
            child_is_pageable=can_be_paged(child.end),
            child_packs=child.packs,
            both_pack=child.packs and parent.packs,
            narrow=child.storage.is_native and parent.storage.is_native and isinstance(last, int) and last in INT64,
        )
    )
    if strategy is not None and strategy is not chosen:
        chosen, reasons = strategy, ("asked for",)
    chunks = most_chunks(child, parent, chosen, keys, min(chunks, -(-children.rows // page_size)))
    return AuditPlan(
        reference.name,
        chosen,
        page_size,
        last,
        _parted(child, chosen, first, last, chunks),
        keys,
        children.rows,
        reasons,
        _notes(child, chosen, indexed=indexed, large=keys > page_size),
    )


def most_chunks(child: ChildColumn, parent: ParentColumn, strategy: Strategy, keys: int, chunks: int) -> int:
    """Of so many `chunks` those that are worth having for so many distinct keys."""
    if child.storage.kind is not KeyKind.UUID or strategy is not Strategy.PACKED:
        return chunks
    return min(chunks, -(-keys // worth_a_chunk(child, parent)))


def _notes(child: ChildColumn, strategy: Strategy, *, indexed: bool, large: bool) -> tuple[str, ...]:
    notes = []
    if large and not indexed:
        how = "the whole table is read" if strategy is Strategy.BITMAP else "each page reads the whole table"
        notes.append(f"{child.end} has no index, so {how}: an index on it makes audits quick")
    if strategy is Strategy.SKIP:
        notes.append("the number of rows is an estimate: few distinct keys were found without reading every row")
    if strategy is Strategy.GAPS:
        what = "number of keys is an estimate" if counts_rows(child.database.kind) else "numbers are estimates"
        notes.append(f"the {what}: the child was asked about the keys that the parent lacks, and not about others")
    return tuple(notes)


def _parted(child: ChildColumn, strategy: Strategy, first: Raw, last: Raw, chunks: int) -> tuple[KeyRange, ...]:
    if strategy is Strategy.BITMAP or chunks <= 1:
        return (KeyRange(None, last),)
    inner = quantiles(child, last, chunks)
    if inner is None and child.storage.kind is KeyKind.INTEGER:
        inner = [first + (last - first) * part // chunks for part in range(1, chunks)]
    if inner is not None:
        ends = [*dict.fromkeys(end for end in inner if end != last), last]
        return tuple(KeyRange(lo, hi) for lo, hi in zip([None, *ends[:-1]], ends, strict=True))
    parts: list[KeyRange] = []
    lo = None
    each = -(-child.count_keys(None, last) // chunks)
    while lo != last:
        hi = child.boundary(lo, last, each)
        parts.append(KeyRange(lo, last if hi is None else hi))
        lo = parts[-1].hi
    return tuple(parts)

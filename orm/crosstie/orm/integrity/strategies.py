"""Which scan carries a strategy out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from crosstie.orm.integrity.bitmap import BitmapScan
from crosstie.orm.integrity.errors import KeysNotComparable
from crosstie.orm.integrity.fetch import PlainScan, TextScan
from crosstie.orm.integrity.gaps import GapScan
from crosstie.orm.integrity.packed import PackedScan, ProbeScan
from crosstie.orm.integrity.plan import Strategy
from crosstie.orm.integrity.scan import Ends, KeyScan
from crosstie.orm.integrity.skip import SkipScan
from crosstie.orm.integrity.storage import KeyKind
from crosstie.orm.integrity.union import ParentUnion, UnionScan
from crosstie.orm.integrity.uuids import PackedUuidScan
from crosstie.orm.integrity.words import WordScan

__all__ = ["choose_scan"]

_INTEGER_SCANS: Final[Mapping[Strategy, Callable[[Ends], KeyScan]]] = {
    Strategy.PACKED: PackedScan,
    Strategy.WORDS: WordScan,
    Strategy.GAPS: GapScan,
    Strategy.PROBE: ProbeScan,
    Strategy.SKIP: SkipScan,
    Strategy.BITMAP: BitmapScan,
    Strategy.FETCH: PlainScan,
}


_SCANS: Final[Mapping[KeyKind, Mapping[Strategy, Callable[[Ends], KeyScan]]]] = {
    KeyKind.INTEGER: _INTEGER_SCANS,
    KeyKind.UUID: {Strategy.FETCH: PlainScan, Strategy.PACKED: PackedUuidScan},
    KeyKind.TEXT: {Strategy.FETCH: TextScan},
    KeyKind.COMPOSITE: {Strategy.FETCH: TextScan},
}


def choose_scan(ends: Ends, strategy: Strategy) -> KeyScan:
    """The scan for a strategy and the kind of keys that both ends have.

    Raises KeysNotComparable where the strategy is not for such keys: a column's type has changed since the plan.
    """
    if isinstance(ends.parent, ParentUnion):
        first, *others = ends.parent.parents
        return UnionScan(choose_scan(replace(ends, parent=first), strategy), others)
    kind = ends.parent.storage.kind
    scans = _SCANS[kind]
    if strategy not in scans:
        raise KeysNotComparable(
            f"expected keys that the strategy {strategy} can read, found keys of kind {kind} in {ends.child.end}. "
            f"Strategies for them: {', '.join(scans)}. Plan the audit anew."
        )
    return scans[strategy](ends)

"""Running one chunk of an audit. It writes nothing, so it may be run again, by anybody."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from typing import Final, Unpack

from crosstie.orm.errors import CrosstieError, StatementTimeout
from crosstie.orm.integrity.endpoint import AuditedReference
from crosstie.orm.integrity.findings import AuditPhase, Key
from crosstie.orm.integrity.judgement import Judgement, JudgementOptions
from crosstie.orm.integrity.parent import Alike
from crosstie.orm.integrity.pipeline import Compared, compared_pages
from crosstie.orm.integrity.plan import AuditPlan, ChunkResult, KeyRange, Strategy
from crosstie.orm.integrity.scan import Ends, KeyScan, ScanFactory
from crosstie.orm.integrity.storage import Raw
from crosstie.orm.integrity.strategies import choose_scan
from crosstie.orm.integrity.tiling import Tile, sum_known

__all__ = ["audit_chunk"]

_TOGETHER: Final = 1_000
"""Candidates that are judged at once."""
_SMALLER: Final = 8
"""After a statement that took too long, pages have so many times fewer keys,"""
_SMALLEST: Final = 500
"""and never fewer than these: then it is not the page that takes long."""
_AT_MOST_S: Final = 5.0
"""Seconds that a candidate waits for others, at most until the next page is compared."""


def audit_chunk(
    reference: AuditedReference,
    plan: AuditPlan,
    chunk: KeyRange,
    *,
    budget_s: float | None = None,
    scan: ScanFactory = choose_scan,
    **options: Unpack[JudgementOptions],
) -> ChunkResult:
    """Audit the keys of one chunk, or as many of them as `budget_s` seconds allow, one page at least.

    Where the server cancels a statement because it takes too long, what is left is read in smaller pages.
    `progress` is told before each page how many keys of the chunk are done. What it raises ends the chunk and goes to
    the caller; whatever the databases answer is told by the result.
    """
    judgement = Judgement(reference=reference, expected=plan.keys, **options)
    tally, clock_s = judgement.tally, judgement.clock_s
    judged = _Judged(chunk.lo)
    ends_at_s = None if budget_s is None else clock_s() + budget_s
    reason: CrosstieError | None = None
    page_size = plan.page_size
    wider: list[Alike] = []
    try:
        child, parent = judgement.columns
        equality = child.storage.equality
        wider = [one.alike for one in parent.parents if one.storage.equality.is_wider_than(equality)]
        judgement.tell(AuditPhase.SCANNING)
        expected_keys = plan.keys // max(len(plan.chunks), 1)
        while True:
            scanning = scan(Ends(child, parent, chunk.hi, page_size, expected_keys), plan.strategy)
            reason = _scan(scanning, KeyRange(judged.reached, chunk.hi), judgement, judged, ends_at_s)
            smaller = _smaller(page_size, plan.strategy) if isinstance(reason, StatementTimeout) else None
            if smaller is None:
                break
            page_size = smaller
    except CrosstieError as error:
        reason = reason or error
    return ChunkResult(
        covered=KeyRange(chunk.lo, judged.reached),
        keys=judged.keys,
        rows=judged.rows,
        page_ends=tuple(judged.page_ends) if plan.strategy is Strategy.FETCH or isinstance(plan.last, str) else (),
        orphan_keys=tally.orphan_keys,
        orphan_rows=tally.orphan_rows,
        findings=tuple(tally.findings),
        deferred_keys=tally.deferred_keys,
        deferred_rows=tally.deferred_rows,
        held=tuple(judgement.held),
        alike=sum(one.number for one in wider),
        such_as=tuple(key for one in wider for key in one.some),
        reason=None if reason is None else _told(reason, page_size),
        retryable=reason is not None and reason.retryable,
    )


def _scan(
    scanning: KeyScan, left: KeyRange, judgement: Judgement, judged: _Judged, ends_at_s: float | None
) -> CrosstieError | None:
    """Read what is left of a chunk, and judge what is missing; what stopped it, if anything did."""
    waiting, reason = _Waiting(judgement, judged), None
    try:
        with closing(compared_pages(scanning, left, judgement.confirmation.now)) as pages:
            for page in pages:
                waiting.add(page)
                judgement.keys += page.tile.keys
                reached = page.tile.hi
                in_time = ends_at_s is None or judgement.clock_s() < ends_at_s
                if reached == left.hi or (reached != left.lo and not in_time):
                    break
                judgement.tell(AuditPhase.SCANNING)
    except CrosstieError as error:
        reason = error
    waiting.judge()
    judgement.keys = judged.keys
    return reason


def _told(reason: CrosstieError, page_size: int) -> str:
    told = f" Pages had {page_size:,} keys by then." if isinstance(reason, StatementTimeout) else ""
    return f"{reason}{told}"


def _smaller(page_size: int, strategy: Strategy) -> int | None:
    """The size of pages that are read after one has taken too long; None where less would not help."""
    if strategy is Strategy.BITMAP or page_size <= _SMALLEST:
        return None
    return max(page_size // _SMALLER, _SMALLEST)


@dataclass
class _Judged:
    """How far the pages of a chunk were read, compared, and what was missing judged."""

    reached: Raw | None
    keys: int = 0
    rows: int | None = 0
    page_ends: list[Raw] = field(default_factory=list)

    def add(self, tile: Tile) -> None:
        self.reached = tile.hi
        self.keys += tile.keys
        self.rows = sum_known((self.rows, tile.rows))
        self.page_ends.append(tile.hi)


class _Waiting:
    """Compared pages whose candidates are to be judged together: each look at the databases costs the same for many."""

    def __init__(self, judgement: Judgement, judged: _Judged) -> None:
        self._judgement = judgement
        self._judged = judged
        self._clock_s = judgement.clock_s
        self._pages: list[Compared] = []
        self._candidates: list[Key] = []
        self._since_s = 0.0

    def add(self, page: Compared) -> None:
        """Judge them once there are many, or the first waits long: what sagas did since it was read is asked."""
        if not self._candidates:
            self._since_s = self._clock_s()
        self._pages.append(page)
        self._candidates += page.candidates
        if not self._candidates or len(self._candidates) >= _TOGETHER or self._clock_s() - self._since_s >= _AT_MOST_S:
            self.judge()

    def judge(self) -> None:
        """The pages are done with then. Raises DatabaseUnavailable."""
        pages, candidates = self._pages, self._candidates
        self._pages, self._candidates = [], []
        if candidates:
            since = next(page.since for page in pages if page.candidates)
            self._judgement.judge(candidates, since)
        for page in pages:
            self._judged.add(page.tile)

"""Running one chunk of an audit. It writes nothing, so it may be run again, by anybody."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing

from crosstie.orm.errors import CrosstieError
from crosstie.orm.integrity.columns import columns_of
from crosstie.orm.integrity.confirmation import Confirmation
from crosstie.orm.integrity.endpoint import AuditedReference
from crosstie.orm.integrity.findings import AuditPhase, AuditProgress, Key, ProgressListener
from crosstie.orm.integrity.judgement import FINDING_LIMIT, Judgement, Tally
from crosstie.orm.integrity.pipeline import compared_pages
from crosstie.orm.integrity.plan import AuditPlan, ChunkResult, KeyRange, Strategy
from crosstie.orm.integrity.scan import Ends, ScanFactory
from crosstie.orm.integrity.storage import Raw
from crosstie.orm.integrity.strategies import choose_scan
from crosstie.orm.integrity.suspicion import NO_SAGAS, TouchedKeys
from crosstie.orm.integrity.tiling import sum_known

__all__ = ["audit_chunk"]


def audit_chunk(
    reference: AuditedReference,
    plan: AuditPlan,
    chunk: KeyRange,
    *,
    suspects: TouchedKeys = NO_SAGAS,
    grace_s: float = 0.0,
    budget_s: float | None = None,
    progress: ProgressListener | None = None,
    scan: ScanFactory = choose_scan,
    finding_limit: int = FINDING_LIMIT,
    wait: Callable[[float], None] = time.sleep,
    clock_s: Callable[[], float] = time.monotonic,
) -> ChunkResult:
    """Audit the keys of one chunk, or as many of them as `budget_s` seconds allow, one page at least.

    `progress` is told before each page how many keys of the chunk are done. What it raises ends the chunk and goes to
    the caller; whatever the databases answer is told by the result.
    """
    tally = Tally()
    held: list[Key] = []
    reached, keys = chunk.lo, 0
    rows: int | None = 0
    page_ends: list[Raw] = []
    ends_at_s = None if budget_s is None else clock_s() + budget_s
    reason: CrosstieError | None = None

    def tell(phase: AuditPhase) -> None:
        if progress is not None:
            progress(AuditProgress(reference.name, phase, keys, max(plan.keys, keys)))

    try:
        child, parent = columns_of(reference)
        judgement = Judgement(
            confirmation=Confirmation(reference, child, parent, suspects),
            tally=tally,
            grace_s=grace_s,
            finding_limit=finding_limit,
            wait=wait,
            tell=tell,
            clock_s=clock_s,
            held=held,
        )
        tell(AuditPhase.SCANNING)
        strategy = scan(
            Ends(child, parent, chunk.hi, plan.page_size, plan.keys // max(len(plan.chunks), 1)), plan.strategy
        )
        with closing(compared_pages(strategy, chunk, judgement.confirmation.now)) as pages:
            for page in pages:
                if page.candidates:
                    judgement.judge(page.candidates, page.since)
                page_ends.append(page.tile.hi)
                reached, keys, rows = page.tile.hi, keys + page.tile.keys, sum_known((rows, page.tile.rows))
                if reached == chunk.hi or (reached != chunk.lo and ends_at_s is not None and clock_s() >= ends_at_s):
                    break
                tell(AuditPhase.SCANNING)
    except CrosstieError as error:
        reason = error
    return ChunkResult(
        covered=KeyRange(chunk.lo, reached),
        keys=keys,
        rows=rows,
        page_ends=tuple(page_ends) if plan.strategy is Strategy.FETCH else (),
        orphan_keys=tally.orphan_keys,
        orphan_rows=tally.orphan_rows,
        findings=tuple(tally.findings),
        deferred_keys=tally.deferred_keys,
        deferred_rows=tally.deferred_rows,
        held=tuple(held),
        reason=None if reason is None else str(reason),
        retryable=reason is not None and reason.retryable,
    )

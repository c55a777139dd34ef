"""The audit of one reference at one go: references in, findings out. It writes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from crosstie.orm.errors import CrosstieError
from crosstie.orm.integrity.chunk import audit_chunk
from crosstie.orm.integrity.endpoint import AuditedReference
from crosstie.orm.integrity.findings import AuditPhase, AuditProgress, AuditResult, AuditState, ProgressListener
from crosstie.orm.integrity.judgement import FINDING_LIMIT
from crosstie.orm.integrity.plan import ChunkResult, Strategy
from crosstie.orm.integrity.planner import plan_audit
from crosstie.orm.integrity.scan import ScanFactory
from crosstie.orm.integrity.strategies import choose_scan
from crosstie.orm.integrity.suspicion import NO_SAGAS, TouchedKeys
from crosstie.orm.integrity.verdict import conclude_audit

__all__ = ["audit_reference"]


def audit_reference(
    reference: AuditedReference,
    *,
    chunk_size: int = 50_000,
    suspects: TouchedKeys = NO_SAGAS,
    grace_s: float = 0.0,
    progress: ProgressListener | None = None,
    strategy: Strategy | None = None,
    scan: ScanFactory = choose_scan,
    finding_limit: int = FINDING_LIMIT,
    wait: Callable[[float], None] = time.sleep,
    clock_s: Callable[[], float] = time.monotonic,
) -> AuditResult:
    """Find the child rows of `reference` whose foreign key no parent has, `chunk_size` distinct keys at a time.

    The strategy follows from statistics unless one is given.
    `suspects` tells what unresolved sagas touch; such rows are deferred, not reported. With `grace_s`, orphans are
    confirmed once more after so many seconds, for writers outside sagas that write the child before the parent. The
    caller's open transactions are neither used nor seen. Whatever keeps the audit from reading everything (a database
    that is down, keys that cannot be compared, counts that do not add up) makes the state INCOMPLETE, with the reason.
    """
    start = clock_s()
    keys = 0

    def tell(phase: AuditPhase) -> None:
        if progress is not None:
            progress(AuditProgress(reference.name, phase, keys, keys))

    tell(AuditPhase.COUNTING)
    try:
        plan = plan_audit(reference, page_size=chunk_size, strategy=strategy)
    except CrosstieError as error:
        return AuditResult(reference.name, AuditState.INCOMPLETE, reason=str(error), seconds=clock_s() - start)
    results: list[ChunkResult] = []
    for chunk in plan.chunks:
        results.append(
            audit_chunk(
                reference,
                plan,
                chunk,
                suspects=suspects,
                grace_s=grace_s,
                progress=progress,
                scan=scan,
                finding_limit=finding_limit,
                wait=wait,
                clock_s=clock_s,
            )
        )
        if results[-1].reason is not None:
            break
    keys = sum(one.keys for one in results)
    result = conclude_audit(
        reference,
        plan,
        results,
        suspects=suspects,
        grace_s=grace_s,
        finding_limit=finding_limit,
        wait=wait,
        progress=progress,
        clock_s=clock_s,
    )
    tell(AuditPhase.DONE)
    return replace(result, seconds=clock_s() - start)

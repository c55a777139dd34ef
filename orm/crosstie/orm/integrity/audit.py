"""The audit of one reference at one go: references in, findings out. It writes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

from crosstie.orm.errors import CrosstieError
from crosstie.orm.integrity.chunk import audit_chunk
from crosstie.orm.integrity.endpoint import AuditedReference
from crosstie.orm.integrity.findings import AuditPhase, AuditResult, AuditState
from crosstie.orm.integrity.judgement import Judgement, JudgementOptions
from crosstie.orm.integrity.plan import ChunkResult, Strategy
from crosstie.orm.integrity.planner import plan_audit
from crosstie.orm.integrity.scan import ScanFactory
from crosstie.orm.integrity.strategies import choose_scan
from crosstie.orm.integrity.verdict import conclude_audit

__all__ = ["audit_reference"]


def audit_reference(
    reference: AuditedReference,
    *,
    chunk_size: int = 50_000,
    strategy: Strategy | None = None,
    scan: ScanFactory = choose_scan,
    **options: Unpack[JudgementOptions],
) -> AuditResult:
    """Find the child rows of `reference` whose foreign key no parent has, `chunk_size` distinct keys at a time.

    The strategy follows from statistics unless one is given.
    `suspects` tells what unresolved sagas touch; such rows are deferred, not reported. With `grace_s`, orphans are
    confirmed once more after so many seconds, for writers outside sagas that write the child before the parent. The
    caller's open transactions are neither used nor seen. Whatever keeps the audit from reading everything (a database
    that is down, keys that cannot be compared, counts that do not add up) makes the state INCOMPLETE, with the reason.
    """
    whole = Judgement(reference=reference, **options)
    start_s = whole.clock_s()
    whole.tell(AuditPhase.COUNTING)
    try:
        plan = plan_audit(reference, page_size=chunk_size, strategy=strategy)
    except CrosstieError as error:
        return AuditResult(reference.name, AuditState.INCOMPLETE, reason=str(error), seconds=whole.clock_s() - start_s)
    results: list[ChunkResult] = []
    for chunk in plan.chunks:
        results.append(audit_chunk(reference, plan, chunk, scan=scan, **options))
        if results[-1].reason is not None:
            break
    result = conclude_audit(reference, plan, results, **options)
    whole.keys = result.keys_checked
    whole.tell(AuditPhase.DONE)
    return replace(result, seconds=whole.clock_s() - start_s)

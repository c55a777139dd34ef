"""What an audit has found, as lines of the log: for audits that nobody looks at."""

from __future__ import annotations

import logging

from crosstie.orm.integrity import AuditResult, AuditState
from crosstie.orm.integrity.counters import CounterResult
from crosstie.orm.integrity.uniqueness import UniquenessResult
from crosstie.workers.audit_copies import AuditedCopies
from crosstie.workers.audit_leftovers import AuditedLeftovers
from crosstie.workers.audit_report import AuditReport

__all__ = ["log_report"]

logger = logging.getLogger("crosstie.workers.audit")


def log_report(report: AuditReport) -> None:
    """A line for each part: information where it is in order, a warning with findings, an error where incomplete."""
    if report.is_empty:
        logger.warning("the scheduled audit checked nothing: no imported model declares a reference across databases")
    for result in report.results:
        _reference(result, report.run_id)
    for copies in report.copies:
        _copies(copies)
    for column in report.unique:
        _unique(column)
    for counter in report.counters:
        _counter(counter)
    for types in report.types:
        if types.state is AuditState.INCOMPLETE:
            logger.error("audit of the types %s is incomplete: %s", types.name, types.reason)
        elif types.findings:
            logger.warning("audit of the types %s: unknown in %d rows", types.name, types.rows)
    for left in report.leftovers:
        _leftovers(left)


def _reference(result: AuditResult, run_id: str) -> None:
    if result.state is AuditState.OK:
        logger.info(
            "audit of %s: ok, %d keys, %d deferred", result.reference, result.keys_checked, result.deferred_keys
        )
    elif result.state is AuditState.FINDINGS:
        logger.warning("audit of %s: %d orphan rows, run %s", result.reference, result.orphan_rows, run_id)
    else:
        logger.error("audit of %s is incomplete: %s", result.reference, result.reason)


def _copies(copies: AuditedCopies) -> None:
    if copies.found is None:
        logger.error("audit of the copies by %s is incomplete: %s", copies.name, copies.reason)
    elif copies.found.differing:
        logger.warning("audit of the copies by %s: %d rows differ", copies.name, copies.found.differing)
    else:
        logger.info("audit of the copies by %s: ok, %d rows", copies.name, copies.found.rows)


def _unique(column: UniquenessResult) -> None:
    if column.state is AuditState.INCOMPLETE:
        logger.error("audit of the values of %s is incomplete: %s", column.name, column.reason)
    elif column.duplicates:
        logger.warning("audit of the values of %s: %d in two databases", column.name, column.duplicates)
    else:
        logger.info("audit of the values of %s: ok, %d values", column.name, column.keys_checked)


def _counter(counter: CounterResult) -> None:
    if counter.state is AuditState.INCOMPLETE:
        logger.error("audit of the counter %s is incomplete: %s", counter.name, counter.reason)
    elif counter.differing:
        logger.warning("audit of the counter %s: wrong in %d rows", counter.name, counter.differing)
    else:
        logger.info("audit of the counter %s: ok, %d rows", counter.name, counter.parents_checked)


def _leftovers(left: AuditedLeftovers) -> None:
    if left.state is AuditState.INCOMPLETE:
        logger.error("audit of the sagas of %s is incomplete: %s", left.database, left.reason)
    elif left.found:
        found = ", ".join(f"{count} {kind}" for kind, count in left.kinds.items() if count)
        logger.warning("audit of the sagas of %s: left over: %s", left.database, found)

"""What an audit has found, as lines of the log: for audits that nobody looks at."""

from __future__ import annotations

import logging

from crosstie.orm.integrity import AuditState
from crosstie.workers.audit_report import AuditReport, Check

__all__ = ["log_report"]

logger = logging.getLogger("crosstie.workers.audit")


def log_report(report: AuditReport) -> None:
    """A line for each part: information where it is in order, a warning with findings, an error where incomplete."""
    if report.is_empty:
        logger.warning("the scheduled audit checked nothing: no imported model declares a reference across databases")
    for result in report.results:
        fine = f"{result.keys_checked} keys, {result.deferred_keys} deferred"
        _log(result.reference, result, f"{result.orphan_rows} orphan rows, run {report.run_id}", fine)
    for copies in report.copies:
        rows, differing = (0, 0) if copies.found is None else (copies.found.rows, copies.found.differing)
        _log(f"the copies by {copies.name}", copies, f"{differing} rows differ", f"{rows} rows")
    for column in report.unique:
        found, fine = f"{column.duplicates} in two databases", f"{column.keys_checked} values"
        _log(f"the values of {column.name}", column, found, fine)
    for counter in report.counters:
        found, fine = f"wrong in {counter.differing} rows", f"{counter.parents_checked} rows"
        _log(f"the counter {counter.name}", counter, found, fine)
    for types in report.types:
        _log(f"the types {types.name}", types, f"unknown in {types.rows} rows", "all are known")
    for left in report.leftovers:
        kinds = ", ".join(f"{count} {kind}" for kind, count in left.kinds.items() if count)
        _log(f"the sagas of {left.database}", left, f"left over: {kinds}", "nothing is left over")


def _log(name: str, check: Check, found: str, fine: str) -> None:
    if check.state is AuditState.OK:
        logger.info("audit of %s: ok, %s", name, fine)
    elif check.state is AuditState.FINDINGS:
        logger.warning("audit of %s: %s", name, found)
    else:
        logger.error("audit of %s is incomplete: %s", name, check.reason)

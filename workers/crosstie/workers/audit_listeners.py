"""Who wants to know when an audit has ended: alerts, tickets, a chat."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, TypeVar

from crosstie.workers.audit_report import AuditReport

__all__ = ["AuditListener", "on_audit", "tell_of_audit"]

logger = logging.getLogger(__name__)

AuditListener = Callable[[AuditReport], object]
F = TypeVar("F", bound=AuditListener)
_listeners: Final[list[AuditListener]] = []


def on_audit(listener: F) -> F:
    """Have the function called with the report of each audit that ends in a process that has imported its module."""
    _listeners.append(listener)
    return listener


def tell_of_audit(report: AuditReport) -> None:
    """Tell all; one that fails is logged, and changes neither the audit nor what the others hear."""
    for listener in _listeners:
        try:
            listener(report)
        except Exception:
            logger.exception("a listener failed after audit %s had ended", report.run_id)

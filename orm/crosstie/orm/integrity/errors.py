"""Why an audit cannot answer; each of these makes it INCOMPLETE, never OK."""

from __future__ import annotations

from crosstie.orm.errors import CrosstieError

__all__ = ["AuditError", "KeysNotComparable", "ScanIncomplete", "UnexpectedKey", "UnknownReference", "UnreadablePlan"]


class AuditError(CrosstieError):
    """The audit of a reference could not be carried out."""

    code = "audit.error"


class KeysNotComparable(AuditError):
    """The two columns of the reference hold keys of different kinds, or of a kind that audits cannot compare."""

    code = "audit.keys-not-comparable"


class UnexpectedKey(AuditError):
    """A column holds a value that is no key of the kind that its type promises."""

    code = "audit.unexpected-key"


class ScanIncomplete(AuditError):
    """The chunks that were read do not add up to the whole table."""

    code = "audit.scan-incomplete"
    retryable = True


class UnknownReference(AuditError):
    """No declared reference has this name."""

    code = "audit.unknown-reference"


class UnreadablePlan(AuditError):
    """A plan or a result of an audit does not read as it was written."""

    code = "audit.unreadable-plan"

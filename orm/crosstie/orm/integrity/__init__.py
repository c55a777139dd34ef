"""Audits of references that no database can check: references in, findings out."""

from crosstie.orm.integrity.audit import FINDING_LIMIT, ProgressListener, audit_reference
from crosstie.orm.integrity.endpoint import AuditedReference, Endpoint
from crosstie.orm.integrity.errors import (
    AuditError,
    KeysNotComparable,
    ScanIncomplete,
    UnexpectedKey,
    UnknownReference,
)
from crosstie.orm.integrity.findings import AuditPhase, AuditProgress, AuditResult, AuditState, Finding, Key
from crosstie.orm.integrity.suspicion import NO_SAGAS, TouchedKeys

__all__ = [
    "FINDING_LIMIT",
    "NO_SAGAS",
    "AuditError",
    "AuditPhase",
    "AuditProgress",
    "AuditResult",
    "AuditState",
    "AuditedReference",
    "Endpoint",
    "Finding",
    "Key",
    "KeysNotComparable",
    "ProgressListener",
    "ScanIncomplete",
    "TouchedKeys",
    "UnexpectedKey",
    "UnknownReference",
    "audit_reference",
]

"""Audits of references that no database can check: references in, findings out."""

from crosstie.orm.integrity.audit import audit_reference
from crosstie.orm.integrity.chunk import audit_chunk
from crosstie.orm.integrity.endpoint import AuditedReference, Endpoint
from crosstie.orm.integrity.errors import (
    AuditError,
    KeysNotComparable,
    ScanIncomplete,
    UnexpectedKey,
    UnknownReference,
    UnreadablePlan,
)
from crosstie.orm.integrity.findings import (
    AuditPhase,
    AuditProgress,
    AuditResult,
    AuditScope,
    AuditState,
    Finding,
    Key,
    ProgressListener,
    key_text,
)
from crosstie.orm.integrity.judgement import FINDING_LIMIT
from crosstie.orm.integrity.keys import audit_keys, noted, tells_of_deletes
from crosstie.orm.integrity.part import part_of_plan
from crosstie.orm.integrity.plan import AuditPlan, ChunkResult, KeyRange, Strategy
from crosstie.orm.integrity.planner import plan_audit
from crosstie.orm.integrity.suspicion import NO_SAGAS, TouchedKeys
from crosstie.orm.integrity.verdict import conclude_audit

__all__ = [
    "FINDING_LIMIT",
    "NO_SAGAS",
    "AuditError",
    "AuditPhase",
    "AuditPlan",
    "AuditProgress",
    "AuditResult",
    "AuditScope",
    "AuditState",
    "AuditedReference",
    "ChunkResult",
    "Endpoint",
    "Finding",
    "Key",
    "KeyRange",
    "KeysNotComparable",
    "ProgressListener",
    "ScanIncomplete",
    "Strategy",
    "TouchedKeys",
    "UnexpectedKey",
    "UnknownReference",
    "UnreadablePlan",
    "audit_chunk",
    "audit_keys",
    "audit_reference",
    "conclude_audit",
    "key_text",
    "noted",
    "part_of_plan",
    "plan_audit",
    "tells_of_deletes",
]

"""What a run of audits answers, for people, programs and exit statuses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

from crosstie.orm.integrity import AuditResult, AuditState
from crosstie.orm.integrity.counters import CounterResult
from crosstie.orm.integrity.types import TypesResult
from crosstie.orm.integrity.uniqueness import UniquenessResult
from crosstie.workers.audit_copies import AuditedCopies
from crosstie.workers.audit_counters import counter_document
from crosstie.workers.audit_leftovers import AuditedLeftovers
from crosstie.workers.audit_types import types_document
from crosstie.workers.audit_unique import unique_document

__all__ = ["EXIT_STATUS", "AuditReport", "Check"]

EXIT_STATUS: Final[Mapping[AuditState, int]] = {
    AuditState.OK: 0,
    AuditState.FINDINGS: 1,
    AuditState.INCOMPLETE: 2,
}
_FORMAT_VERSION: Final = 1


class Check(Protocol):
    """What each part of a report tells, whatever it has checked."""

    @property
    def state(self) -> AuditState:
        """How it ended."""

    @property
    def reason(self) -> str | None:
        """Why it is INCOMPLETE."""


@dataclass(frozen=True)
class AuditReport:
    """One run over some references, the copies and counters that follow them, and what sagas have left over.

    `unrecorded` says of each reference without a row of its run why it has none.
    """

    run_id: str
    started_at: datetime
    seconds: float
    results: tuple[AuditResult, ...]
    unrecorded: Mapping[str, str]
    copies: tuple[AuditedCopies, ...] = ()
    unique: tuple[UniquenessResult, ...] = ()
    leftovers: tuple[AuditedLeftovers, ...] = ()
    counters: tuple[CounterResult, ...] = ()
    types: tuple[TypesResult, ...] = ()

    @property
    def state(self) -> AuditState:
        """The worst of all; a run without any reference or column has checked nothing and is INCOMPLETE."""
        checks: tuple[Check, ...] = (*self.results, *self.copies, *self.unique, *self.counters)
        states = {one.state for one in (*checks, *self.types, *self.leftovers)}
        if self.is_empty or AuditState.INCOMPLETE in states:
            return AuditState.INCOMPLETE
        return AuditState.FINDINGS if AuditState.FINDINGS in states else AuditState.OK

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing to check: sagas are looked at besides, and stand for no reference."""
        return not (self.results or self.copies or self.unique or self.counters)

    @property
    def exit_status(self) -> int:
        """0 where everything is OK, 1 with findings, 2 where something was not checked."""
        return EXIT_STATUS[self.state]

    def as_document(self, *, sample: int | None = None) -> dict[str, Any]:
        """Plain values for JSON, with at most `sample` findings of each reference."""
        return {
            "version": _FORMAT_VERSION,
            "run_id": self.run_id,
            "state": self.state.value,
            "exit_status": self.exit_status,
            "started_at": self.started_at.isoformat(),
            "seconds": round(self.seconds, 3),
            "references": [self._result(result, sample) for result in self.results],
            "copies": [one.as_document(sample) for one in self.copies],
            "unique": [unique_document(one, sample) for one in self.unique],
            "counters": [counter_document(one, sample) for one in self.counters],
            "types": [types_document(one, sample) for one in self.types],
            "leftovers": [one.as_document(sample) for one in self.leftovers],
        }

    def to_json(self, *, sample: int | None = None) -> str:
        """`as_document` as text; keys that JSON does not know are written as their text."""
        return json.dumps(self.as_document(sample=sample), indent=2, default=str, ensure_ascii=False)

    def _result(self, result: AuditResult, sample: int | None) -> dict[str, Any]:
        return {
            "reference": result.reference,
            "scope": result.scope.value,
            "state": result.state.value,
            "reason": result.reason,
            "keys_checked": result.keys_checked,
            "child_rows": result.child_rows,
            "orphan_keys": result.orphan_keys,
            "orphan_rows": result.orphan_rows,
            "deferred_keys": result.deferred_keys,
            "deferred_rows": result.deferred_rows,
            "seconds": round(result.seconds, 3),
            "notes": list(result.notes),
            "recorded": result.reference not in self.unrecorded,
            "not_recorded_because": self.unrecorded.get(result.reference),
            "findings": [
                {"child_key": one.child_key, "parent_key": one.parent_key, "query": one.query}
                for one in result.findings[:sample]
            ],
        }

"""What an audit answers: plain values, ready for a report, JSON or a table of runs."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = [
    "AuditPhase",
    "AuditProgress",
    "AuditResult",
    "AuditScope",
    "AuditState",
    "Finding",
    "Key",
    "ProgressListener",
    "key_text",
]

Key = int | str | uuid.UUID | tuple[int | str | uuid.UUID, ...]
"""A key as Python compares it, however its database stores it; of several columns, their parts."""


def key_text(key: Key) -> str:
    """A key for people: (7, a-1) for one of several columns."""
    return f"({', '.join(map(str, key))})" if isinstance(key, tuple) else str(key)


class AuditState(StrEnum):
    """How the audit of one reference ended."""

    OK = "ok"
    FINDINGS = "findings"
    INCOMPLETE = "incomplete"


class AuditScope(StrEnum):
    """How much of a reference an audit looks at."""

    FULL = "full"
    """Every key."""
    CHANGES = "changes"
    """The keys that have changed, and those that were not in order before."""
    PART = "part"
    """The next part of the range of keys, and the same as `changes`."""


class AuditPhase(StrEnum):
    """What an audit is doing."""

    COUNTING = "counting"
    SCANNING = "scanning"
    CONFIRMING = "confirming"
    WAITING = "waiting"
    RECONCILING = "reconciling"
    DONE = "done"


@dataclass(frozen=True)
class AuditProgress:
    """A step of an audit: how many of the distinct keys have been compared."""

    reference: str
    phase: AuditPhase
    keys_done: int
    keys_total: int


ProgressListener = Callable[[AuditProgress], None]


@dataclass(frozen=True)
class Finding:
    """An orphan: a child row, by primary key, whose foreign key `parent_key` no parent has.

    `query` is SQL for the child's database that shows every row with this foreign key.
    """

    child_key: dict[str, Any]
    parent_key: Key
    query: str


@dataclass(frozen=True)
class AuditResult:
    """The answer for one reference.

    `keys_checked` counts distinct foreign keys, `child_rows` the rows that have one (NULL is none); rows of keys that
    were looked at one by one are not counted. `orphan_rows` may exceed `len(findings)`, which holds the first of them.
    Rows in the hands of an unresolved saga are not judged: `deferred_keys` and `deferred_rows` count them. `open_keys`
    are the keys of both, orphaned and deferred; None where they are too many to be listed. `reason` says why the state
    is INCOMPLETE; what was found until then is kept.
    """

    reference: str
    state: AuditState
    keys_checked: int = 0
    child_rows: int = 0
    orphan_keys: int = 0
    orphan_rows: int = 0
    deferred_keys: int = 0
    deferred_rows: int = 0
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0
    reason: str | None = None
    notes: tuple[str, ...] = field(default=())
    scope: AuditScope = AuditScope.FULL
    open_keys: tuple[Key, ...] | None = ()

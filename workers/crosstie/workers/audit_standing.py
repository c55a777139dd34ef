"""What the audits of a reference have achieved so far: whether its changes alone are enough now, and where parts go on.

Pure: the standing is kept in the row of each run, and is that of the last one that was carried to its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from crosstie.orm.integrity import AuditPlan, AuditScope, KeyRange
from crosstie.workers.audit_triggers import Noting

__all__ = ["NOTHING", "Basis", "Position", "Standing", "next_standing", "unlisted", "why_everything"]


@dataclass(frozen=True)
class Basis:
    """Every key was looked at since this moment (milliseconds of the child's database), and each change was noted.

    `noting` is the identity of the triggers that note.
    """

    at_ms: int
    noting: str


@dataclass(frozen=True)
class Position:
    """Parts have been read up to this key.

    `at_ms` is when they began, `noting` the identity of what has noted each change since, if anything has.
    """

    upto: Any
    at_ms: int
    noting: str | None


@dataclass(frozen=True)
class Standing:
    """`basis` for audits of changes, `position` for audits in parts."""

    basis: Basis | None = None
    position: Position | None = None

    def as_document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        basis, position = self.basis, self.position
        return {
            "basis": None if basis is None else {"at_ms": basis.at_ms, "noting": basis.noting},
            "position": None
            if position is None
            else {
                "upto": KeyRange(None, position.upto).as_document()["hi"],
                "at_ms": position.at_ms,
                "noting": position.noting,
            },
        }

    @classmethod
    def of(cls, document: Mapping[str, Any] | None) -> Standing:
        """What `as_document` gave; nothing achieved where there is none. Raises UnreadablePlan."""
        basis, position = (document or {}).get("basis"), (document or {}).get("position")
        return cls(
            None if basis is None else Basis(**basis),
            None
            if position is None
            else Position(**position | {"upto": KeyRange.of({"lo": None, "hi": position["upto"]}).hi}),
        )


NOTHING: Final = Standing()
"""No audit has been carried to its end."""


def why_everything(
    standing: Standing, noting: Noting, *, whole_table: bool, at_ms: int, full_every_s: float | None
) -> str | None:
    """Why an audit of changes has to read everything this time; None where the changes are enough."""
    if noting.identity is None:
        return noting.reason
    if standing.basis is None:
        return "no audit has read everything since changes are noted"
    if standing.basis.noting != noting.identity:
        return "the triggers, or a table, were made anew since the last audit that read everything"
    if whole_table:
        return "a table of parents was emptied by TRUNCATE"
    if full_every_s is not None and at_ms - standing.basis.at_ms >= full_every_s * 1000:
        return f"the last audit that read everything is more than {full_every_s / 86_400:g} days old"
    return None


def next_standing(
    standing: Standing, scope: AuditScope, noting: Noting, *, whole_table: bool, at_ms: int, part: AuditPlan | None
) -> Standing:
    """The standing once this run, which begins at `at_ms`, has been carried to its end; `part` is the plan of a part.

    A part does away with the note that a whole table is gone, and has looked at a part of the keys only.
    """
    if scope is AuditScope.CHANGES:
        return standing
    if scope is AuditScope.FULL or part is None:
        basis = None if noting.identity is None else Basis(at_ms, noting.identity)
        return Standing(basis, standing.position)
    identity = None if whole_table else noting.identity
    basis, position = None if whole_table else standing.basis, standing.position
    if part.after is None or position is None:
        position = Position(None, at_ms, identity)
    unbroken = identity if position.noting == identity else None
    if not part.ends:
        return Standing(basis, Position(part.last, position.at_ms, unbroken))
    return Standing(basis if unbroken is None else Basis(position.at_ms, unbroken))


def unlisted(standing: Standing) -> Standing:
    """The standing of a run that has found more keys than it can have looked at again: its changes are not enough."""
    position = standing.position
    return Standing(None, None if position is None else replace(position, noting=None))

"""The keys that were noted for the next audit of a reference: looked at, and taken away with the end of its run."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from crosstie.orm.configuration import AuditSettings
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CrosstieError, NoSuchTable
from crosstie.orm.faults import fault_point
from crosstie.orm.integrity import (
    FINDING_LIMIT,
    AuditedReference,
    AuditProgress,
    AuditResult,
    AuditState,
    Key,
    ProgressListener,
    TouchedKeys,
    audit_keys,
)
from crosstie.outbox.noting import Notes
from crosstie.workers.audit_record import RunHeld, close_run, renew_run
from crosstie.workers.lease_keeper import LeaseKeeper

__all__ = ["RunNotes", "end_run", "look_at_notes"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunNotes:
    """The notes that could be seen when a run began: of the child's database, and of the parents' others."""

    child: Notes
    parents: tuple[Notes, ...]

    @classmethod
    def of(cls, reference: AuditedReference) -> RunNotes:
        """Read them; in a parent's database without crosstie's tables there are none.

        Raises NoSuchTable, DatabaseUnavailable.
        """
        child, *others = reference.databases
        parents = []
        for database in others:
            with suppress(NoSuchTable):
                parents.append(Notes(database, reference.name))
        return cls(Notes(child, reference.name), tuple(parents))

    @property
    def whole_table(self) -> bool:
        """Whether all rows of a table are gone, whatever their keys."""
        return any(one.whole_table for one in (self.child, *self.parents))

    def keys(self) -> Iterator[str]:
        """What they note. Raises DatabaseUnavailable."""
        return chain.from_iterable(one.keys() for one in (self.child, *self.parents))


def look_at_notes(
    reference: AuditedReference,
    held: RunHeld,
    scanned: AuditResult | None,
    notes: RunNotes,
    *,
    suspects: TouchedKeys,
    progress: ProgressListener | None = None,
) -> AuditResult:
    """What a run has found that has not read everything: by reading (`scanned`), and of the noted keys.

    Raises RunLost, DatabaseUnavailable.
    """
    settings: AuditSettings = ConnectionManager.settings().audit
    known: Collection[Key] = () if scanned is None else _known(scanned)
    with LeaseKeeper("audit-run", partial(renew_run, held), lease_s=held.lease_s) as keeper:

        def tell(step: AuditProgress) -> None:
            keeper.require_held()
            if progress is not None:
                progress(step)

        found = audit_keys(
            reference, notes.keys(), without=known, suspects=suspects, grace_s=settings.grace_s, progress=tell
        )
    found = replace(found, scope=held.scope)
    return found if scanned is None else _together(scanned, found)


def end_run(held: RunHeld, result: AuditResult, notes: RunNotes | None) -> None:
    """Write the end of a run; where everything was checked, the notes that it began with are taken away.

    Raises RunLost, DatabaseUnavailable.
    """
    close_run(held, result, None if notes is None else notes.child)
    fault_point("notes.recorded")
    if result.state is AuditState.INCOMPLETE or notes is None:
        return
    for one in notes.parents:
        try:
            one.take_away()
        except CrosstieError as error:
            logger.warning("notes for audits of %s stay and are looked at once more: %s", held.reference, error)


def _known(scanned: AuditResult) -> Collection[Key]:
    if scanned.open_keys is not None:
        return scanned.open_keys
    return {one.parent_key for one in scanned.findings}


def _together(scanned: AuditResult, looked_at: AuditResult) -> AuditResult:
    """One result of what was read and of what was looked at besides."""
    states = {scanned.state, looked_at.state}
    unlisted = scanned.open_keys is None or looked_at.open_keys is None
    return replace(
        scanned,
        state=next(one for one in (AuditState.INCOMPLETE, AuditState.FINDINGS, AuditState.OK) if one in states),
        keys_checked=scanned.keys_checked + looked_at.keys_checked,
        orphan_keys=scanned.orphan_keys + looked_at.orphan_keys,
        orphan_rows=scanned.orphan_rows + looked_at.orphan_rows,
        deferred_keys=scanned.deferred_keys + looked_at.deferred_keys,
        deferred_rows=scanned.deferred_rows + looked_at.deferred_rows,
        findings=(*scanned.findings, *looked_at.findings)[:FINDING_LIMIT],
        seconds=scanned.seconds + looked_at.seconds,
        reason=scanned.reason or looked_at.reason,
        scope=looked_at.scope,
        open_keys=None if unlisted else (*(scanned.open_keys or ()), *(looked_at.open_keys or ())),
    )

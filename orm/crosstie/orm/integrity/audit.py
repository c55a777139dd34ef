"""The audit of one reference: references in, findings out. It writes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from crosstie.orm.errors import CrosstieError
from crosstie.orm.integrity.catalog import column_facts, is_indexed
from crosstie.orm.integrity.child import ChildColumn, ChildCounts
from crosstie.orm.integrity.confirmation import Confirmation, Confirmed, Deferred, Moment
from crosstie.orm.integrity.endpoint import AuditedReference
from crosstie.orm.integrity.errors import KeysNotComparable, ScanIncomplete
from crosstie.orm.integrity.findings import AuditPhase, AuditProgress, AuditResult, AuditState, Finding, Key
from crosstie.orm.integrity.parent import ParentColumn
from crosstie.orm.integrity.preflight import storages
from crosstie.orm.integrity.query import orphan_query
from crosstie.orm.integrity.scan import Chunk, KeyScan, ScanFactory, choose_scan
from crosstie.orm.integrity.suspicion import NO_SAGAS, TouchedKeys
from crosstie.orm.integrity.tiling import Tile, require_count, require_tiling

__all__ = ["FINDING_LIMIT", "ProgressListener", "audit_reference"]

FINDING_LIMIT: Final = 10_000
"""So many orphan rows are listed; the others are counted."""
_HELD_LIMIT: Final = 10_000

ProgressListener = Callable[[AuditProgress], None]


def audit_reference(
    reference: AuditedReference,
    *,
    chunk_size: int = 50_000,
    suspects: TouchedKeys = NO_SAGAS,
    grace_s: float = 0.0,
    progress: ProgressListener | None = None,
    scan: ScanFactory = choose_scan,
    finding_limit: int = FINDING_LIMIT,
    wait: Callable[[float], None] = time.sleep,
    clock_s: Callable[[], float] = time.monotonic,
) -> AuditResult:
    """Find the child rows of `reference` whose foreign key no parent has, `chunk_size` distinct keys at a time.

    `suspects` tells what unresolved sagas touch; such rows are deferred, not reported. With `grace_s`, orphans are
    confirmed once more after so many seconds, for writers outside sagas that write the child before the parent. The
    caller's open transactions are neither used nor seen. Whatever keeps the audit from reading everything (a database
    that is down, keys that cannot be compared, counts that do not add up) makes the state INCOMPLETE, with the reason.
    """
    audit = _Audit(
        reference=reference,
        chunk_size=chunk_size,
        suspects=suspects,
        grace_s=grace_s,
        progress=progress or _ignore,
        scan=scan,
        finding_limit=finding_limit,
        wait=wait,
        clock_s=clock_s,
    )
    start = clock_s()
    reason = None
    try:
        audit.run()
    except CrosstieError as error:
        reason = str(error)
    return audit.result(reason, clock_s() - start)


@dataclass(kw_only=True)
class _Audit:
    reference: AuditedReference
    chunk_size: int
    suspects: TouchedKeys
    grace_s: float
    progress: ProgressListener
    scan: ScanFactory
    finding_limit: int
    wait: Callable[[float], None]
    clock_s: Callable[[], float]
    counts: ChildCounts = field(default_factory=lambda: ChildCounts(0, 0, None))
    tiles: list[Tile] = field(default_factory=list)
    keys_done: int = 0
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    orphan_keys: int = 0
    orphan_rows: int = 0
    reported: set[Key] = field(default_factory=set)
    deferred: list[Deferred] = field(default_factory=list)
    held: list[Key] = field(default_factory=list)
    """Keys to be looked at once more: a saga had them, or their grace runs."""
    held_since_s: float = 0.0

    # -- the run --------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Count, scan, confirm, reconcile; raises CrosstieError where one of them cannot be done."""
        child, parent = self._ends()
        confirmation = Confirmation(self.reference, child, parent, self.suspects)
        self._tell(AuditPhase.COUNTING)
        self.counts = child.count()
        if self.counts.last is not None:
            child.storage.key(self.counts.last)
            self._scan_all(child, parent, confirmation)
            self._confirm_held(confirmation)
            self._tell(AuditPhase.RECONCILING)
            self._reconcile(child)
        self._note(child, parent)
        self._tell(AuditPhase.DONE)

    def _ends(self) -> tuple[ChildColumn, ParentColumn]:
        reference = self.reference
        if not reference.child.primary_key:
            raise KeysNotComparable(
                f"expected a primary key in {reference.child.table.fullname!r}, to tell its rows apart, and found none "
                "declared. Declare one in the model."
            )
        facts = column_facts(reference.child), column_facts(reference.parent)
        child_storage, parent_storage = storages(reference, *facts)
        return ChildColumn(reference.child, child_storage), ParentColumn(reference.parent, parent_storage)

    def _scan_all(self, child: ChildColumn, parent: ParentColumn, confirmation: Confirmation) -> None:
        last = self.counts.last
        scan = self.scan(parent, last, self.chunk_size)
        after = None
        while after != last:
            self._tell(AuditPhase.SCANNING)
            since = confirmation.now()
            chunk = self._read(child, scan, after)
            if chunk is None:
                self.tiles.append(Tile(after, last, 0))
                return
            missing = scan.missing(chunk)
            if missing:
                self._judge(confirmation, missing, since)
            self.tiles.append(chunk.tile)
            self.keys_done += chunk.tile.keys
            after = chunk.tile.hi

    def _read(self, child: ChildColumn, scan: KeyScan, after: object) -> Chunk | None:
        """Read a chunk and count it again in another way, both in one snapshot, so that the counts must agree."""
        with child.snapshot() as frozen:
            chunk = scan.chunk(frozen, after)
            if chunk is None:
                require_count(Tile(after, self.counts.last, 0), frozen.count_keys(after, self.counts.last))
            else:
                require_count(chunk.tile, frozen.count_keys(chunk.tile.lo, chunk.tile.hi))
        return chunk

    def _reconcile(self, child: ChildColumn) -> None:
        last = self.counts.last
        require_tiling(self.tiles, last)
        if self.keys_done == self.counts.keys:
            return
        # Somebody wrote meanwhile, or pages by the column's own order leave keys out. In one snapshot the tiles must
        # hold every key, however fast the table changes.
        with child.snapshot() as frozen:
            total = frozen.count_keys(None, last)
            tiled = sum(frozen.count_keys(tile.lo, tile.hi) for tile in self.tiles)
        if tiled != total:
            raise ScanIncomplete(
                f"the chunks of {child.end} cover {tiled} distinct keys of {total}: the order of its keys and their "
                "comparison contradict each other"
            )

    # -- candidates -----------------------------------------------------------------------------------------

    def _judge(self, confirmation: Confirmation, missing: Sequence[Key], since: Moment) -> None:
        self._tell(AuditPhase.CONFIRMING)
        verdict = confirmation.settle(missing, since)
        later = [one.key for one in verdict.deferred]
        deferred = set(later)
        for orphan in verdict.orphans:
            if orphan.key in deferred:
                continue  # judged as a whole, once its saga is done with it
            if self.grace_s > 0:
                later.append(orphan.key)
            else:
                self._report(confirmation.child, orphan)
        if later:
            self.held += later
            self.held_since_s = self.clock_s()
        if len(self.held) >= _HELD_LIMIT:
            self._confirm_held(confirmation)

    def _confirm_held(self, confirmation: Confirmation) -> None:
        """Look once more at what could not be told at once; what cannot be told now stays deferred."""
        if not self.held:
            return
        left_s = self.held_since_s + self.grace_s - self.clock_s()
        if self.grace_s > 0 and left_s > 0:
            self._tell(AuditPhase.WAITING)
            self.wait(left_s)
        self._tell(AuditPhase.CONFIRMING)
        held, self.held = list(dict.fromkeys(self.held)), []
        verdict = confirmation.settle(held, confirmation.now())
        self.deferred += verdict.deferred
        for orphan in verdict.orphans:
            self._report(confirmation.child, orphan)

    def _report(self, child: ChildColumn, orphan: Confirmed) -> None:
        if len(child.storage.spellings(orphan.key)) > 1:
            # Other spellings of the key lie in other chunks, and its rows were found by all of them.
            if orphan.key in self.reported:
                return
            self.reported.add(orphan.key)
        self.orphan_keys += 1
        self.orphan_rows += orphan.total
        room = self.finding_limit - len(self.findings)
        if room <= 0:
            return
        names = [column.name for column in child.end.primary_key]
        query = orphan_query(child.end, child.storage, orphan.key)
        self.findings += [
            Finding(dict(zip(names, row_key, strict=True)), orphan.key, query) for row_key in orphan.row_keys[:room]
        ]

    # -- the answer -----------------------------------------------------------------------------------------

    def _note(self, child: ChildColumn, parent: ParentColumn) -> None:
        if self.orphan_keys and parent.is_empty():
            table = f"{parent.end.connection}.{parent.end.table.fullname}"
            self.notes.append(f"{table} has no rows at all: is it in the right database?")
        if self.counts.keys > self.chunk_size and not is_indexed(child.end):
            self.notes.append(
                f"{child.end} has no index, so each chunk reads the whole table: an index on it makes audits quick"
            )

    def _tell(self, phase: AuditPhase) -> None:
        total = max(self.counts.keys, self.keys_done)
        self.progress(AuditProgress(self.reference.name, phase, self.keys_done, total))

    def result(self, reason: str | None, seconds: float) -> AuditResult:
        """The answer so far; INCOMPLETE where there is a reason."""
        state = AuditState.FINDINGS if self.orphan_keys else AuditState.OK
        return AuditResult(
            reference=self.reference.name,
            state=state if reason is None else AuditState.INCOMPLETE,
            keys_checked=self.keys_done,
            child_rows=self.counts.rows,
            orphan_keys=self.orphan_keys,
            orphan_rows=self.orphan_rows,
            deferred_keys=len(self.deferred),
            deferred_rows=sum(one.rows for one in self.deferred),
            findings=tuple(self.findings),
            seconds=seconds,
            reason=reason,
            notes=tuple(self.notes),
        )


def _ignore(_: AuditProgress) -> None:
    """Nobody watches."""

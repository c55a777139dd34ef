"""The repair of one reference: audit, cap, then row by row fence, look again, keep, write, commit.

Invariant: when a child's row is written, its parent is missing and cannot come before the write has committed, and no
unresolved saga has either of them in its hands. A crash leaves rows that are repaired, each with its row of the
quarantine, and rows that are not.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import count, groupby
from typing import Final

import sqlalchemy as sa

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import CommitInDoubt, CrosstieError, DatabaseUnavailable, DuplicateKey
from crosstie.orm.faults import fault_point
from crosstie.orm.integrity import (
    AuditedReference,
    AuditResult,
    AuditState,
    Finding,
    Key,
    ProgressListener,
    audit_reference,
)
from crosstie.orm.integrity.batch import batches
from crosstie.orm.integrity.child import ChildColumn, RowKey
from crosstie.orm.integrity.columns import columns_of
from crosstie.orm.integrity.confirmation import Confirmation, Moment
from crosstie.orm.integrity.parent import ParentColumn
from crosstie.orm.local_transaction import LocalTransaction, open_transactions
from crosstie.orm.reference import Reference
from crosstie.orm.statement_limit import limit_transaction, limited_statements
from crosstie.orm.transaction import active_unit, transaction
from crosstie.sagas.capture import BranchRecorder
from crosstie.sagas.facts import table_facts
from crosstie.sagas.image import Image, encode, projection
from crosstie.sagas.lock_wait import limit_lock_waits
from crosstie.workers.audit_references import select_references
from crosstie.workers.audit_sagas import TouchedBySagas
from crosstie.workers.repair import quarantine
from crosstie.workers.repair.errors import ParentPresent, RepairRefused
from crosstie.workers.repair.fence import Fence, fenced
from crosstie.workers.repair.policy import Cap, Outcome, Policy, RepairedRow, RepairReport
from crosstie.workers.repair.recreation import ParentMaker, maker_for
from crosstie.workers.repair.writing import ChildWriter, row_condition, writer_for

__all__ = ["repair_reference"]

logger = logging.getLogger(__name__)

ROWS_PER_FENCE: Final = 50
"""A parent is kept from being inserted for as long as it takes to repair so many rows."""


def repair_reference(
    chosen: Reference | AuditedReference | str,
    policy: Policy | str,
    *,
    apply: bool = False,
    cap: Cap | None = None,
    recreate: ParentMaker | None = None,
    chunk_size: int | None = None,
    progress: ProgressListener | None = None,
) -> RepairReport:
    """Audit a reference and do what `policy` says about each orphan; without `apply` only say what would be done.

    `recreate` makes a missing parent, in place of a registered function. What is taken is kept in
    `crosstie_quarantine`, and `undo_repair` brings it back. Raises RepairRefused where the cap trips or the policy
    cannot be carried out, UnknownReference, StatementTimeout, DatabaseUnavailable; nothing was written then.
    """
    (reference,) = select_references([chosen])
    policy, cap, settings = Policy(policy), cap or Cap(), ConnectionManager.settings().audit
    if open_transactions() or active_unit() is not None:
        raise RepairRefused("a repair has transactions of its own, and was begun inside one: call it outside.")
    with limited_statements(settings.statement_timeout_s):
        touched = TouchedBySagas()
        found = audit_reference(
            reference,
            chunk_size=chunk_size or settings.chunk_size,
            suspects=touched,
            grace_s=settings.grace_s,
            progress=progress,
            finding_limit=cap.rows,
        )
        if policy is not Policy.REPORT and reference.child.is_composite:
            raise RepairRefused(
                f"{reference.name}: nothing is repaired: its keys have {len(reference.child.columns)} columns, and a "
                "repair knows those of one. Expected the policy report."
            )
        if policy is Policy.REPORT:
            return RepairReport(None, policy, found, _planned(found))
        ends = None if found.state is AuditState.INCOMPLETE else columns_of(reference)
        refusal = cap.refusal(
            found, empty=() if ends is None else [str(one.end) for one in ends[1].parents if one.is_empty()]
        )
        if ends is None or refusal is not None:
            raise RepairRefused(f"{reference.name}: nothing is repaired: {refusal}.")
        repairer = _Repairer(reference, policy, *ends, touched, recreate)
        if not apply:
            return RepairReport(None, policy, found, _planned(found))
        return RepairReport(repairer.repair_id, policy, found, tuple(repairer.run(found.findings)))


def _planned(found: AuditResult) -> tuple[RepairedRow, ...]:
    return tuple(RepairedRow(one.child_key, one.parent_key, Outcome.PLANNED) for one in found.findings)


class _Spared(Exception):
    """The row is not to be repaired; the message says why."""


@dataclass
class _Repairer:
    reference: AuditedReference
    policy: Policy
    child: ChildColumn
    parent: ParentColumn
    touched: TouchedBySagas
    maker: ParentMaker | None
    repair_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        if self.policy is Policy.RECREATE and self.reference.others:
            raise RepairRefused(
                f"{self.reference.name}: nothing is repaired: the policy 'recreate' expected one database of parents, "
                f"and there are {len(self.reference.parents)}: a key does not tell in which its parent was. Make the "
                "parents yourself, or choose 'set_null', 'delete' or 'quarantine'."
            )
        written = self.parent if self.policy is Policy.RECREATE else self.child
        why = quarantine.require_quarantine(written.database)
        if why is not None:
            raise RepairRefused(f"{self.reference.name}: nothing is repaired: {why}.")
        self._database: Database = written.database
        self._row_limit = ConnectionManager.settings().saga.undo_row_limit
        self._confirmation = Confirmation(self.reference, self.child, self.parent, self.touched)
        self._writer: ChildWriter | None = None
        if self.policy is Policy.RECREATE:
            self.maker = self.maker or maker_for(self.reference)
        else:
            self._writer = writer_for(self.reference, self.policy, self.child)

    def run(self, findings: Sequence[Finding]) -> Iterator[RepairedRow]:
        """Repair these orphans; once a database cannot be reached, the others are left alone."""
        lost: str | None = None
        for key, group in groupby(findings, key=lambda finding: finding.parent_key):
            for some in batches(list(group), ROWS_PER_FENCE):
                if lost is not None:
                    yield from _all(some, Outcome.FAILED, f"not tried: {lost}")
                    continue
                try:
                    yield from self._recreated(key, some) if self._writer is None else self._repaired(key, some)
                except (DatabaseUnavailable, CommitInDoubt) as error:
                    lost = str(error)
                    yield from _all(some, Outcome.FAILED, lost)

    # -- children -------------------------------------------------------------------------------------------

    def _repaired(self, key: Key, findings: Sequence[Finding]) -> list[RepairedRow]:
        try:
            with fenced(self.parent, key, child=self.child.database) as fence:
                fault_point("repair.fenced")
                since = self._confirmation.now()
                return [self._row(key, finding, fence, since) for finding in findings]
        except ParentPresent as error:
            return _all(findings, Outcome.SPARED, str(error))
        except CrosstieError as error:
            if not error.retryable or isinstance(error, DatabaseUnavailable):
                raise
            return _all(findings, Outcome.SPARED, f"somebody is at work there: {error}")

    def _row(self, key: Key, finding: Finding, fence: Fence, since: Moment) -> RepairedRow:
        row_key = tuple(finding.child_key.values())

        def ended(outcome: Outcome, reason: str | None = None) -> RepairedRow:
            return RepairedRow(finding.child_key, key, outcome, reason)

        try:
            with self._recorded() as tx:
                self._write(tx, row_key, finding, fence, since)
            fault_point("repair.committed")
        except _Spared as error:
            return ended(Outcome.SPARED, str(error))
        except (DatabaseUnavailable, CommitInDoubt):
            raise
        except CrosstieError as error:
            return ended(Outcome.SPARED if error.retryable else Outcome.FAILED, str(error))
        except Exception as error:
            logger.exception("%s could not be repaired", finding.child_key)  # a callback's, mostly
            return ended(Outcome.FAILED, f"{type(error).__name__}: {error}")
        return ended(Outcome.REPAIRED)

    def _write(self, tx: LocalTransaction, row_key: RowKey, finding: Finding, fence: Fence, since: Moment) -> None:
        """Lock the row, look at all that would make it no orphan, write it, keep it. Raises _Spared."""
        key = finding.parent_key
        row = self._locked_image(tx, row_key, key)
        suspicion = self._confirmation.suspicion(since)
        if suspicion.touches_row(row_key) or suspicion.touches_parent(key):
            raise _Spared("a saga that is not resolved has the row or its parent in its hands")
        if not self.parent.absent([key]):
            raise _Spared(str(ParentPresent()))
        assert self._writer is not None
        if self._writer.write(tx, row_key, key) != 1:
            raise _Spared("the row has changed while it was repaired")
        self._keep(tx, finding, row)
        fence.require_standing()
        fault_point("repair.recorded")

    def _locked_image(self, tx: LocalTransaction, row_key: RowKey, key: Key) -> Image:
        table = self.child.end.table
        facts = table_facts(tx.database, tx.connection, table.name, table.schema, fresh=True)
        query = sa.select(*projection(tx.database, facts.columns)).select_from(table)
        with tx.mapped_errors(), tx.internal():
            found = tx.connection.execute(query.where(row_condition(self.child, row_key, key)).with_for_update())
            row = found.mappings().one_or_none()
        if row is None:
            raise _Spared("the row is gone, or refers to another key by now")
        return {name: encode(value) for name, value in row.items()}

    # -- parents --------------------------------------------------------------------------------------------

    def _recreated(self, key: Key, findings: Sequence[Finding]) -> list[RepairedRow]:
        """Make the parent; whoever makes it at the same time comes first, by its unique key."""
        assert self.maker is not None
        try:
            since = self._confirmation.now()
            with self._recorded() as tx:
                self._make_parent(tx, self.maker, key, findings[0], since)
            fault_point("repair.recreated")
        except (_Spared, DuplicateKey) as error:
            return _all(findings, Outcome.SPARED, str(error))
        except (DatabaseUnavailable, CommitInDoubt):
            raise
        except CrosstieError as error:
            return _all(findings, Outcome.SPARED if error.retryable else Outcome.FAILED, str(error))
        except Exception as error:
            logger.exception("a parent with key %r could not be made", key)
            return _all(findings, Outcome.FAILED, f"{type(error).__name__}: {error}")
        return _all(findings, Outcome.REPAIRED, None)

    def _make_parent(self, tx: LocalTransaction, maker: ParentMaker, key: Key, finding: Finding, since: Moment) -> None:
        if not self.parent.absent([key]):
            raise _Spared(str(ParentPresent()))
        if not self.child.rows([key]):
            raise _Spared("no row refers to this key any more")
        if self._confirmation.suspicion(since).touches_parent(key):
            raise _Spared("a saga that is not resolved has the parent in its hands")
        record = maker(key)
        if record.is_new:
            record.save()
        typed, spellings = self.parent.storage.typed(self.parent.end.column), self.parent.storage.spellings(key)
        with tx.mapped_errors(), tx.internal():
            made = tx.connection.execute(
                sa.select(sa.literal(1)).where(sa.exists().where(typed.in_(spellings)))
            ).first()
        if made is None:
            raise RepairRefused(
                f"expected the function to make a row of {self.parent.end.table.name!r} with "
                f"{self.parent.end.column.name} = {key!r}, and there is none after it."
            )
        self._keep(tx, finding, None)

    # -- both -----------------------------------------------------------------------------------------------

    def _recorded(self) -> AbstractContextManager[LocalTransaction]:
        return _recorded(self._database.name, self._row_limit)

    def _keep(self, tx: LocalTransaction, finding: Finding, row: Image | None) -> None:
        quarantine.insert(
            tx,
            self.repair_id,
            next(self.numbers),
            reference=self.reference.name,
            policy=self.policy.value,
            child_key=finding.child_key,
            parent_key=finding.parent_key,
            row=row,
        )


@contextmanager
def _recorded(database_name: str, row_limit: int) -> Iterator[LocalTransaction]:
    """A transaction that takes down how all of its writes are undone, those of callbacks too."""
    with transaction(database_name) as tx:
        limit_lock_waits(tx)
        limit_transaction(tx)
        tx.mark_written()
        tx.recorder = BranchRecorder(row_limit)
        yield tx


def _all(findings: Sequence[Finding], outcome: Outcome, reason: str | None) -> list[RepairedRow]:
    return [RepairedRow(one.child_key, one.parent_key, outcome, reason) for one in findings]

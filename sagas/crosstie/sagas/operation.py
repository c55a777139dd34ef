"""What an operator can do about a saga: end it now, and decide about an undo that met somebody else's change.

All of it goes by the protocol: home's register is asked or written first, and a branch moves on from `applied` in the
transaction that undoes it. A worker that does the same at the same time finds it done.
"""

from __future__ import annotations

from crosstie.orm.transaction import detached_transaction
from crosstie.sagas import record
from crosstie.sagas.errors import SagaOperationRefused
from crosstie.sagas.inspection import SagaState, find_saga
from crosstie.sagas.recovery import Decision, Manner, Resolution, decide, resolve, undo_by_hand

__all__ = ["end_now", "known_saga", "overrule"]


def end_now(saga_id: str) -> Resolution:
    """Bring a saga to its end now: settle it if it is committed, else abort it, whether or not it has expired.

    A quarantined undo is tried again as it is: it succeeds if the rows are again what the saga had written. An original
    process that still runs finds its saga aborted. Raises SagaOperationRefused, DatabaseUnavailable, LockTimeout.
    """
    found = known_saga(saga_id)
    for branch in found.quarantined:
        with detached_transaction(branch) as tx:
            tx.mark_written()
            record.release(tx.connection, saga_id, branch)
    return resolve(found.header, _an_applied_branch(found))


def overrule(saga_id: str, branch: str, manner: Manner) -> Resolution:
    """Undo a branch of an aborted saga in a manner of the operator's choice, and finish the saga.

    Raises SagaOperationRefused where the branch is not applied or the saga is not aborted, UndoConflict where even a
    forced undo is impossible, DatabaseUnavailable, LockTimeout.
    """
    found = known_saga(saga_id)
    if branch not in found.header.branches:
        raise SagaOperationRefused(
            f"saga {saga_id}: expected one of its branches ({', '.join(found.header.branches)}) and found {branch!r}."
        )
    if not any(one.participant == branch and one.state == "applied" for one in found.records):
        raise SagaOperationRefused(
            f"saga {saga_id}: expected branch {branch!r} to be applied, and it is not: there is nothing to undo. "
            f"`crosstie sagas show {saga_id}` tells where it stands."
        )
    if decide(found.header, branch) is not Decision.ABORTED:
        raise SagaOperationRefused(f"saga {saga_id} is committed: its branches stay. A worker will settle them.")
    undo_by_hand(found.header, branch, manner)
    return resolve(found.header, branch)


def known_saga(saga_id: str) -> SagaState:
    """All that the databases have of this saga. Raises SagaOperationRefused where none of them knows it."""
    found = find_saga(saga_id)
    if found is None:
        raise SagaOperationRefused(
            f"expected the id of a saga and found {saga_id!r}: no configured database has a record of it. "
            "`crosstie sagas list` shows those that are unfinished."
        )
    return found


def _an_applied_branch(found: SagaState) -> str:
    applied = [one.participant for one in found.records if one.role == "branch" and one.state == "applied"]
    if applied:
        return applied[0]
    if found.decision in {"aborted", "finished", "committed"}:
        return found.header.branches[0]
    raise SagaOperationRefused(
        f"saga {found.header.saga_id}: expected an applied branch or a decision, and found neither. "
        f"{'; '.join(f'{name}: {error}' for name, error in found.errors.items()) or 'Nothing of it is left to end.'}"
    )

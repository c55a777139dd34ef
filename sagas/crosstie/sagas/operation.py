"""What an operator can do about a saga: end it now, and decide about an undo or redo that met somebody else's change.

All of it goes by the protocol: home's register is asked or written first, and a branch moves on from `applied` in the
transaction that undoes it. A worker that does the same at the same time finds it done.
"""

from __future__ import annotations

from collections.abc import Iterable

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.transaction import detached_transaction
from crosstie.sagas import effect, record
from crosstie.sagas.compensation import registered
from crosstie.sagas.compensator import abort_effects, compensate, compensate_one
from crosstie.sagas.errors import SagaOperationRefused
from crosstie.sagas.inspection import SagaState, find_saga
from crosstie.sagas.owed import redo_by_hand
from crosstie.sagas.preparable import PREPARED
from crosstie.sagas.recovery import Decision, Manner, Resolution, decide, resolve, undo_by_hand

__all__ = ["end_now", "known_saga", "overrule", "overrule_effect"]


def end_now(saga_id: str) -> Resolution:
    """Bring a saga to its end now: settle it if it is committed, else abort it, whether or not it has expired.

    A quarantined undo or redo is tried again as it is: it succeeds if the rows are again what the saga had written, or
    had found. An original process that still runs finds its saga aborted. Raises SagaOperationRefused,
    DatabaseUnavailable, LockTimeout.
    """
    found = known_saga(saga_id)
    for participant in [one.participant for one in found.records if one.quarantined]:
        with detached_transaction(participant) as tx:
            tx.mark_written()
            record.release(tx.connection, saga_id, participant)
    resolution = resolve(found.header, _where_to_ask_from(found))
    if found.effects and resolution.decision is not Decision.FORGOTTEN:
        home = ConnectionManager.get(found.header.home)
        for one in found.quarantined_effects:
            effect.release(home, one)
        abort_effects(found.header, found.header.home)
        compensate(home.name, saga_id)
    return resolution


def overrule(saga_id: str, branch: str, manner: Manner) -> Resolution:
    """Undo a branch of an aborted saga, or do one that is owed, in a manner of the operator's choice; finish the saga.

    Raises SagaOperationRefused where the branch is neither owed nor applied or the saga is not aborted, RowConflict
    where even the forced way is impossible, DatabaseUnavailable, LockTimeout.
    """
    found = known_saga(saga_id)
    if branch not in found.header.branches:
        raise SagaOperationRefused(
            f"saga {saga_id}: expected one of its branches ({', '.join(found.header.branches)}) and found {branch!r}."
        )
    if branch in found.owed:
        redo_by_hand(found.header, branch, manner)
        return resolve(found.header, branch)
    if not any(one.participant == branch and one.state == "applied" for one in found.records):
        raise SagaOperationRefused(
            f"saga {saga_id}: expected branch {branch!r} to be applied or owed, and it is neither: "
            f"there is nothing to undo or redo. `crosstie sagas show {saga_id}` tells where it stands."
        )
    if decide(found.header, branch) is not Decision.ABORTED:
        raise SagaOperationRefused(f"saga {saga_id} is committed: its branches stay. A worker will settle them.")
    undo_by_hand(found.header, branch, manner)
    return resolve(found.header, branch)


def overrule_effect(saga_id: str, step: int, *, skipped: bool) -> Resolution:
    """Give a quarantined effect up (`skipped`), or compensate it now although a later one of its saga may not be.

    Earlier effects, which waited for it, go on either way. What the compensation raises is stored.
    Raises SagaOperationRefused where the effect is not quarantined, EffectInvalid where this process does not know
    the compensation, DatabaseUnavailable.
    """
    found = known_saga(saga_id)
    quarantined = {one.step: one for one in found.quarantined_effects}
    one = quarantined.get(step)
    if one is None:
        raise SagaOperationRefused(
            f"saga {saga_id}: expected the step of a quarantined effect ({_listed(quarantined)}) and found {step}. "
            f"`crosstie sagas show {saga_id}` lists its effects."
        )
    home = ConnectionManager.get(one.home)
    if skipped:
        changed = effect.skip(home, one)
    else:
        registered(one.compensation)
        released = effect.release(home, one)
        changed = released is not None
        if released is not None:
            compensate_one(home, released)
    if not changed:
        raise SagaOperationRefused(
            f"saga {saga_id}: somebody else has acted upon effect {step} at this moment; look again."
        )
    compensate(home.name, saga_id)
    return resolve(found.header, home.name)


def _listed(steps: Iterable[int]) -> str:
    return ", ".join(map(str, steps)) or "none"


def known_saga(saga_id: str) -> SagaState:
    """All that the databases have of this saga. Raises SagaOperationRefused where none of them knows it."""
    found = find_saga(saga_id)
    if found is None:
        raise SagaOperationRefused(
            f"expected the id of a saga and found {saga_id!r}: no configured database has a record of it. "
            "`crosstie sagas list` shows those that are unfinished."
        )
    return found


def _where_to_ask_from(found: SagaState) -> str:
    applied = [one.participant for one in found.records if one.role == "branch" and one.state in {"applied", PREPARED}]
    if applied:
        return applied[0]
    # Of a decided saga any participant will do.
    if found.decision in {"aborted", "finished", "committed", "owed"} or any(
        one.effect.state == "open" for one in found.effects
    ):
        return found.header.home
    raise SagaOperationRefused(
        f"saga {found.header.saga_id}: expected an applied branch, an open effect or a decision, and found none. "
        f"{'; '.join(f'{name}: {error}' for name, error in found.errors.items()) or 'Nothing of it is left to end.'}"
    )

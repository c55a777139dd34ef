"""Whether nothing of a saga is left."""

from __future__ import annotations

from typing import Protocol

from crosstie.sagas.inspection import find_saga

__all__ = ["HasSagaId", "assert_compensated"]


class HasSagaId(Protocol):
    """A saga block, `SagaAborted`, or `SagaInDoubt`."""

    saga_id: str


def assert_compensated(saga: str | HasSagaId) -> None:
    """Raise AssertionError unless every branch of the saga is undone or refused, and every effect compensated.

    `saga` is its id, or what knows it. A saga of which no database has a record has committed nothing anywhere, and
    passes. Whether the undo has restored what your tests expect is for them to look at, or for `saga_selftest`.
    """
    saga_id = saga if isinstance(saga, str) else saga.saga_id
    found = find_saga(saga_id)
    if found is None:
        return
    wrong = [f"{name} did not answer: {error}" for name, error in found.errors.items()]
    if found.decision not in {"aborted", "finished"}:
        wrong.append(f"it is {found.decision}")
    for one in found.records:
        if one.role == "branch" and one.state not in {"undone", "refused"}:
            why = f", because {one.conflict['conflict']}" if one.conflict else ""
            wrong.append(f"its branch {one.participant!r} is {one.state}{why}")
    effects = [one.effect for one in found.effects if one.effect.state != "compensated"]
    wrong += [f"its effect {one.step} ({one.compensation}) is {one.state}" for one in effects]
    if wrong:
        raise AssertionError(
            f"saga {saga_id} ({found.header.name!r}) is not compensated: {'; '.join(wrong)}. If it only waits for a "
            "worker, call run_until_quiet() first."
        )

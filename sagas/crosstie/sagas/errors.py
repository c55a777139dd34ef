"""How a saga can end other than well."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from crosstie.orm.errors import CrosstieError

if TYPE_CHECKING:
    from crosstie.sagas.record import SagaHeader

__all__ = [
    "EffectInvalid",
    "EffectLost",
    "RedoConflict",
    "RowConflict",
    "RowLocked",
    "SagaAborted",
    "SagaError",
    "SagaInDoubt",
    "SagaNotRedoable",
    "SagaNotUndoable",
    "SagaOperationRefused",
    "SagaRecordConflict",
    "SagaTimedOut",
    "TwoPhaseUnavailable",
    "UndoConflict",
    "UndoWaits",
    "in_doubt_of_home",
]


class SagaError(CrosstieError):
    """A saga block is used in a way that it cannot honour."""

    code = "saga.invalid"


class SagaNotUndoable(SagaError):
    """The block would write, in more than one database, what nobody could undo; nothing was committed."""

    code = "saga.not-undoable"


class SagaNotRedoable(SagaError):
    """The block would write, in more than one database, what could be refused later; nothing was committed."""

    code = "saga.not-redoable"


class EffectInvalid(SagaError):
    """A call or a compensation is declared in a way that cannot be honoured; nothing was called."""

    code = "saga.effect-invalid"


class EffectLost(SagaError):
    """A worker has taken an effect of the saga as one of an aborted saga; the saga cannot commit any more."""

    code = "saga.effect-lost"
    retryable = True


class RowLocked(SagaError):
    """A row that the saga wants to write is locked by another saga that has not ended."""

    code = "saga.row-locked"
    retryable = True

    def __init__(self, message: str = "", /, *, database: str = "", table: str = "", key: str = "") -> None:
        super().__init__(message)
        self.database = database
        self.table = table
        self.key = key

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(RowLocked, database=self.database, table=self.table, key=self.key), (self.args[0],)


class TwoPhaseUnavailable(SagaError):
    """A database cannot be a branch of a two-phase saga; nothing was committed."""

    code = "saga.two-phase-unavailable"


class _SagaOutcome(SagaError):
    def __init__(self, message: str = "", /, *, saga_id: str = "", pending: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.saga_id = saga_id
        self.pending = pending

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args[0], self.saga_id, self.pending)


def _rebuild(kind: type[_SagaOutcome], message: str, saga_id: str, pending: tuple[str, ...]) -> _SagaOutcome:
    return kind(message, saga_id=saga_id, pending=pending)


class SagaAborted(_SagaOutcome):
    """The saga has no effect: whatever had been committed is undone, or will be by a worker.

    `pending` names the databases in which the undo is still to come; `__cause__` is the error that ended the saga.
    """

    code = "saga.aborted"
    retryable = True


class SagaTimedOut(SagaAborted):
    """The block had not ended within its `timeout_s`; nothing was committed."""

    code = "saga.timed-out"


class SagaInDoubt(_SagaOutcome):
    """The deciding COMMIT was sent and its answer lost; a sweep will find the outcome and finish the saga.

    Not retryable: the saga may have succeeded.
    """

    code = "saga.in-doubt"


def in_doubt_of_home(header: SagaHeader, unresolved: CrosstieError | None) -> SagaInDoubt:
    """The exception where home's answer is lost and asking it again brought `unresolved`, or None: no record at all."""
    return SagaInDoubt(
        f"saga {header.name!r} ({header.saga_id}): the connection to home {header.home!r} was lost during the "
        f"COMMIT that decides, and its outcome cannot be learnt now ({unresolved or 'its records are gone'}). "
        "A worker will finish it; read the data back before running the block again.",
        saga_id=header.saga_id,
        pending=header.participants,
    )


class RowConflict(SagaError):
    """A row is not as the saga left or found it; nothing was overwritten."""

    code = "saga.row-conflict"

    def __init__(
        self,
        message: str = "",
        /,
        *,
        table: str = "",
        key: dict[str, Any] | None = None,
        images: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(message)
        self.table = table
        self.key = key or {}
        self.images = images or {}


class UndoConflict(RowConflict):
    """A row was changed by somebody else after the saga had written it; nothing was overwritten."""

    code = "saga.undo-conflict"


class UndoWaits(SagaError):
    """A row was changed by a later saga that is not finished: it comes first."""

    code = "saga.undo-waits"


class RedoConflict(RowConflict):
    """A row was changed by somebody else before the committed saga could write it; nothing was overwritten."""

    code = "saga.redo-conflict"


class SagaOperationRefused(SagaError):
    """An operator asked for something that this saga does not allow; nothing was changed."""

    code = "saga.operation-refused"


class SagaRecordConflict(SagaError):
    """The register of a saga holds a state that the protocol cannot have written."""

    code = "saga.record-conflict"

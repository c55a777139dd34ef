"""How a saga can end other than well."""

from __future__ import annotations

from typing import Any

from crosstie.orm.errors import CrosstieError

__all__ = [
    "SagaAborted",
    "SagaError",
    "SagaInDoubt",
    "SagaNotUndoable",
    "SagaOperationRefused",
    "SagaRecordConflict",
    "UndoConflict",
]


class SagaError(CrosstieError):
    """A saga block is used in a way that it cannot honour."""

    code = "saga.invalid"


class SagaNotUndoable(SagaError):
    """The block would write, in more than one database, what nobody could undo; nothing was committed."""

    code = "saga.not-undoable"


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


class SagaInDoubt(_SagaOutcome):
    """The deciding COMMIT was sent and its answer lost; a sweep will find the outcome and finish the saga.

    Not retryable: the saga may have succeeded.
    """

    code = "saga.in-doubt"


class UndoConflict(SagaError):
    """A row was changed by somebody else after the saga had written it; nothing was overwritten."""

    code = "saga.undo-conflict"

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


class SagaOperationRefused(SagaError):
    """An operator asked for something that this saga does not allow; nothing was changed."""

    code = "saga.operation-refused"


class SagaRecordConflict(SagaError):
    """The register of a saga holds a state that the protocol cannot have written."""

    code = "saga.record-conflict"

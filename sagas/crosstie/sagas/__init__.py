"""Blocks around writes to several databases that end as one outcome."""

from crosstie.sagas.block import SagaBlock, saga
from crosstie.sagas.errors import SagaAborted, SagaError, SagaInDoubt, SagaNotUndoable, UndoConflict
from crosstie.sagas.retention import prune
from crosstie.sagas.sweep import SweepReport, resolve_saga, sweep_sagas

__all__ = [
    "SagaAborted",
    "SagaBlock",
    "SagaError",
    "SagaInDoubt",
    "SagaNotUndoable",
    "SweepReport",
    "UndoConflict",
    "prune",
    "resolve_saga",
    "saga",
    "sweep_sagas",
]

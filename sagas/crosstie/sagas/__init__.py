"""Blocks around writes to several databases that end as one outcome."""

from crosstie.sagas.block import SagaBlock, saga
from crosstie.sagas.compensation import compensation
from crosstie.sagas.compensator import EffectReport, sweep_effects
from crosstie.sagas.errors import (
    EffectInvalid,
    EffectLost,
    RedoConflict,
    RowLocked,
    SagaAborted,
    SagaError,
    SagaInDoubt,
    SagaNotRedoable,
    SagaNotUndoable,
    SagaTimedOut,
    TwoPhaseUnavailable,
    UndoConflict,
)
from crosstie.sagas.retention import prune
from crosstie.sagas.sweep import SweepReport, resolve_saga, sweep_sagas

__all__ = [
    "EffectInvalid",
    "EffectLost",
    "EffectReport",
    "RedoConflict",
    "RowLocked",
    "SagaAborted",
    "SagaBlock",
    "SagaError",
    "SagaInDoubt",
    "SagaNotRedoable",
    "SagaNotUndoable",
    "SagaTimedOut",
    "SweepReport",
    "TwoPhaseUnavailable",
    "UndoConflict",
    "compensation",
    "prune",
    "resolve_saga",
    "saga",
    "sweep_effects",
    "sweep_sagas",
]

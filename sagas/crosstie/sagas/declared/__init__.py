"""Sagas of several steps that workers run: each step is a block, and the run goes on where a dead worker left it."""

from crosstie.sagas.declared.control import UnknownRun
from crosstie.sagas.declared.definition import Saga, StepFailed, homes_of_declared_sagas, longest_step_s, plan_for
from crosstie.sagas.declared.journal import RunState, StepState
from crosstie.sagas.declared.journal import count as count_runs
from crosstie.sagas.declared.journal import prune as prune_runs
from crosstie.sagas.declared.plan import SagaDefinitionError, step
from crosstie.sagas.declared.runner import RunReport, run_steps

__all__ = [
    "RunReport",
    "RunState",
    "Saga",
    "SagaDefinitionError",
    "StepFailed",
    "StepState",
    "UnknownRun",
    "count_runs",
    "homes_of_declared_sagas",
    "longest_step_s",
    "plan_for",
    "prune_runs",
    "run_steps",
    "step",
]

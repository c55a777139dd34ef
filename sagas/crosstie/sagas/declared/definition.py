"""`class BookTrip(Saga)`: the state of a run as pydantic fields, its steps as methods."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr

from crosstie.sagas.declared import control
from crosstie.sagas.declared.journal import RunState
from crosstie.sagas.declared.plan import Plan, SagaDefinitionError, Step, planned
from crosstie.sagas.errors import SagaError, SagaOperationRefused

__all__ = ["Saga", "StepFailed", "definition_of", "homes_of_declared_sagas", "longest_step_s", "plan_for"]


class StepFailed(SagaError):
    """Raise it in a step that no retry will make succeed: the run turns round at once."""

    code = "saga.step-failed"


class Saga(BaseModel):
    """The base of declared sagas. Fields are the state of a run: what JSON can hold, changed by the steps.

    `__home__` names the database in which runs are kept. `__saga_name__` (default: the class's name) and `__version__`
    find the class again: runs end with the version that they began with, so keep the old class, under another name,
    until they have.
    """

    model_config = ConfigDict(ignored_types=(Step,), validate_assignment=True)

    __home__: ClassVar[str]
    __saga_name__: ClassVar[str]
    __version__: ClassVar[int] = 1
    __plan__: ClassVar[Plan]

    _run_id: str = PrivateAttr(default="")
    _step: str = PrivateAttr(default="")

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if "__saga_name__" not in cls.__dict__:
            cls.__saga_name__ = cls.__name__
        _register(cls)

    @property
    def run_id(self) -> str:
        """The id of the run; empty before it has started."""
        return self._run_id

    @property
    def idempotency_key(self) -> str:
        """The same for every try of a step, and different for every step of every run: for calls to the outside."""
        return f"{self._run_id}:{self._step}"

    def start(self, *, run_id: str | None = None, deadline_s: float | None = None) -> str:
        """Have workers run this saga; returns the id of the run.

        Joins the transaction or saga block that is open on home, and begins only if that commits. A `run_id` of your
        own (36 characters at most) makes the start idempotent: with one that is known already, nothing happens. A run
        that has not passed its pivot `deadline_s` seconds from now turns round. Raises DatabaseUnavailable.
        """
        saga = type(self)
        values = {"name": saga.__saga_name__, "version": saga.__version__, "data": self.model_dump_json()}
        self._run_id = control.start(saga.__home__, values, saga.__plan__, run_id=run_id, deadline_s=deadline_s)
        return self._run_id

    @classmethod
    def find_run(cls, run_id: str) -> RunState | None:
        """What is known of a run; None for an unknown one. Raises DatabaseUnavailable."""
        return control.find(cls.__home__, run_id)

    @classmethod
    def signal(cls, run_id: str, name: str, payload: object = None) -> None:
        """Let the step go on that waits, or will wait, for this signal. `payload` is what JSON can hold.

        Joins the transaction that is open on home. A second signal of the same name to a run changes nothing. Raises
        UnknownRun, SagaError inside a saga block (signal after it, or by an event), DatabaseUnavailable.
        """
        control.signal(cls.__home__, run_id, name, payload)

    @classmethod
    def cancel(cls, run_id: str, reason: str = "cancelled") -> None:
        """Turn a run round: no step begins any more, what was done is compensated.

        Raises UnknownRun, SagaOperationRefused where the run has passed its pivot or has ended.
        """
        control.turn_round(cls.__home__, run_id, reason, plan_for(control.known(cls.__home__, run_id)))

    @classmethod
    def _resume(cls, run_id: str, step_name: str, data: str) -> Self:
        saga = cls.model_validate_json(data)
        saga._run_id, saga._step = run_id, step_name
        return saga


_classes: dict[tuple[str, int], type[Saga]] = {}


def definition_of(name: str, version: int) -> type[Saga] | None:
    """The class of this name and version, if a module of this process has declared it."""
    return _classes.get((name, version))


def homes_of_declared_sagas() -> list[str]:
    """The databases in which the runs are kept of the sagas that this process knows."""
    return sorted({saga.__home__ for saga in _classes.values()})


def longest_step_s() -> float:
    """The longest time limit of a step that this process knows; 0 without any."""
    return max((one.timeout_s for saga in _classes.values() for one in saga.__plan__.steps.values()), default=0.0)


def plan_for(run: RunState) -> Plan:
    """The plan of the version with which a run began. Raises SagaOperationRefused where this process lacks it."""
    saga = definition_of(run.name, run.version)
    if saga is None:
        raise SagaOperationRefused(
            f"run {run.run_id}: this process does not know version {run.version} of saga {run.name!r}. Import the "
            "module that declares it."
        )
    return saga.__plan__


def _register(saga: type[Saga]) -> None:
    if not getattr(saga, "__home__", ""):
        raise SagaDefinitionError(
            f"{_path(saga)}: expected __home__ to name the database in which its runs are kept, found none"
        )
    saga.__plan__ = planned(_path(saga), [value for value in _members(saga).values() if isinstance(value, Step)])
    known = _classes.get((saga.__saga_name__, saga.__version__))
    if known is not None and _path(known) != _path(saga):
        raise SagaDefinitionError(
            f"{_path(saga)} and {_path(known)} both are version {saga.__version__} of saga {saga.__saga_name__!r}. "
            "Give one of them another __saga_name__ or __version__."
        )
    _classes[saga.__saga_name__, saga.__version__] = saga  # a module that is loaded again replaces its own


def _members(saga: type[Saga]) -> dict[str, object]:
    members: dict[str, object] = {}
    for base in reversed(saga.__mro__):
        members.update(vars(base))
    return members


def _path(saga: type[Saga]) -> str:
    return f"{saga.__module__}.{saga.__qualname__}"

"""Compensations: functions known by a name that is stored, so that any worker can call them.

Their arguments are stored as JSON, and are refused early where JSON would not give back what was put in.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from crosstie.sagas.errors import EffectInvalid

__all__ = [
    "Compensation",
    "call",
    "compensation",
    "dump_arguments",
    "find_compensation",
    "load_arguments",
    "registered",
    "registered_names",
    "require_plain",
]

F = TypeVar("F", bound=Callable[..., object])
T = TypeVar("T")

KEY: Final = "idempotency_key"


@dataclass(frozen=True)
class Compensation:
    """A registered function; `name` is what the databases store of it."""

    name: str
    function: Callable[..., object]

    def __call__(self, arguments: str, idempotency_key: str) -> None:
        """Call the function with stored arguments. Raises what it raises."""
        args, kwargs = load_arguments(arguments)
        call(self.function, args, kwargs, idempotency_key)

    def require_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise EffectInvalid for arguments with which the function cannot be called."""
        try:
            inspect.signature(self.function).bind(*args, **kwargs, **_key(self.function, ""))
        except TypeError as error:
            raise EffectInvalid(
                f"compensation {self.name!r}: expected arguments for {_name(self.function)}"
                f"{inspect.signature(self.function)}: {error}. It gets those of the call that it takes back."
            ) from None


_compensations: dict[str, Compensation] = {}


def compensation(name: str) -> Callable[[F], F]:
    """Register the function under this name, for good: rows that workers find later refer to it.

    It takes back an effect outside databases, and is called at least once, perhaps for one that never came about. It
    may have a parameter `idempotency_key`, which is the same text at each attempt and was the call's own. Where it
    raises, it is called again later. Raises EffectInvalid for a name that another function has, and a coroutine
    function.
    """
    if not name or len(name) > 200:
        raise EffectInvalid(f"expected the name of a compensation, of 1 to 200 characters, and found {name!r}.")

    def register(function: F) -> F:
        require_plain(function)
        known = _compensations.get(name)
        if known is not None and _name(known.function) != _name(function):  # a module loaded again replaces its own
            raise EffectInvalid(
                f"compensation {name!r} is {_name(known.function)} already, and {_name(function)} wants the name too. "
                "Stored rows refer to compensations by name: give each one of its own."
            )
        _compensations[name] = Compensation(name, function)
        return function

    return register


def find_compensation(wanted: str | Callable[..., object]) -> Compensation | None:
    """The compensation of this name, or this function as it is registered; None where there is none."""
    if isinstance(wanted, str):
        return _compensations.get(wanted)
    return next((one for one in _compensations.values() if one.function == wanted), None)


def registered(wanted: str | Callable[..., object]) -> Compensation:
    """The same. Raises EffectInvalid where there is none."""
    found = find_compensation(wanted)
    if found is None:
        shown = repr(wanted) if isinstance(wanted, str) else _name(wanted)
        raise EffectInvalid(
            f'expected a registered compensation and found {shown}: put @compensation("a-name-for-good") on the '
            f"function, in a module that workers import. Known: {', '.join(sorted(_compensations)) or 'none'}."
        )
    return found


def require_plain(function: Callable[..., object]) -> None:
    """Raise EffectInvalid for a coroutine function."""
    if inspect.iscoroutinefunction(function):
        raise EffectInvalid(f"expected a plain function and found the coroutine function {_name(function)}.")


def registered_names() -> set[str]:
    """The names of this process's compensations."""
    return set(_compensations)


def call(function: Callable[..., T], args: Sequence[Any], kwargs: Mapping[str, Any], idempotency_key: str) -> T:
    """Call a function, with the key if it has a parameter for it. Raises what it raises."""
    return function(*args, **kwargs, **_key(function, idempotency_key))


def _takes_key(function: Callable[..., object]) -> bool:
    """Whether the function has a parameter `idempotency_key`."""
    try:
        found = inspect.signature(function).parameters.get(KEY)
    except (TypeError, ValueError):  # some builtins have no signature
        return False
    return found is not None and found.kind in {found.POSITIONAL_OR_KEYWORD, found.KEYWORD_ONLY}


def _key(function: Callable[..., object], idempotency_key: str) -> dict[str, str]:
    return {KEY: idempotency_key} if _takes_key(function) else {}


def dump_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The arguments as JSON. Raises EffectInvalid where they would not come back as they are."""
    if KEY in kwargs:
        raise EffectInvalid(f"{KEY} is given by the saga to functions that have such a parameter: leave it out.")
    given = {"args": list(args), "kwargs": dict(kwargs)}
    try:
        text = json.dumps(given, allow_nan=False, ensure_ascii=False)
        same = json.loads(text) == given
    except (TypeError, ValueError) as error:
        raise EffectInvalid(_refusal(str(error))) from None
    if not same:
        raise EffectInvalid(_refusal("JSON would change them (a tuple becomes a list, a key of a dict becomes text)"))
    return text


def _refusal(reason: str) -> str:
    return (
        "expected arguments that JSON can hold (text, int, float, bool, None, and lists and dicts of them), because a "
        f"worker may have to compensate: {reason}. Pass a key or a text instead of an object."
    )


def load_arguments(text: str) -> tuple[list[Any], dict[str, Any]]:
    """What `dump_arguments` was given."""
    given = json.loads(text)
    return given["args"], given["kwargs"]


def _name(function: Callable[..., object]) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"

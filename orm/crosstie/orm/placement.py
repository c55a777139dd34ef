"""Which database a model is in, where that is decided anew for each statement: tenants, shards, a function.

`connected_to(tenant="acme")` chooses for a block of the running thread or task; a thread started inside the block
begins with no choice. What is chosen only selects among the configured connections: no name is made from input that
nobody has configured.
"""

from __future__ import annotations

import re
import string
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import ConfigurationError, ModelDefinitionError, NoTenantChosen, UnknownConnection

__all__ = [
    "Computed",
    "Place",
    "Placed",
    "Placement",
    "ShardMap",
    "Tenants",
    "chosen",
    "connected_to",
    "connections_of",
    "resolve",
]

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
_choices: ContextVar[Mapping[str, Any]] = ContextVar("crosstie.choices", default=_NOTHING)


class Placed(NamedTuple):
    """One of the databases that a placement can lead to, and the choices that lead there."""

    choices: Mapping[str, Any]
    connection: str


class Placement(ABC):
    """A rule that leads from what `connected_to` has chosen to the name of a connection."""

    @abstractmethod
    def choose(self, choices: Mapping[str, Any]) -> str:
        """The name for these choices; whether it is configured is for the caller to check. Raises NoTenantChosen."""

    @abstractmethod
    def reachable(self) -> list[Placed] | None:
        """The configured, writable connections that some choice leads to; None where nobody can know them."""

    @property
    def spelt(self) -> str:
        """What stands for the connections in names: `tenant_{tenant}`, `{region}`."""
        return str(self)

    def may_be(self, name: str) -> bool:
        """Whether some choice leads to the configured connection of this name."""
        return any(placed.connection == name for placed in self.reachable() or ())


Place = str | Placement
"""What a model says about its database: the name of a connection, or a rule that finds one."""


class Tenants(Placement):
    """A connection for each tenant: `Tenants("tenant_{tenant}")` with `connected_to(tenant="acme")`.

    The pattern may have several placeholders, each filled with what was chosen under its name: a string or an integer.
    Raises ModelDefinitionError for a pattern without a placeholder, or with one that is no plain name.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        parsed: list[tuple[str, str | None]] = []
        try:
            for literal, name, spec, conversion in string.Formatter().parse(pattern):
                if name is not None and (not name.isidentifier() or spec or conversion):
                    raise ValueError(f"{{{name}}} is no plain name")
                parsed.append((literal, name))
        except ValueError as error:
            raise ModelDefinitionError(
                f"Tenants({pattern!r}): expected placeholders such as {{tenant}}: {error}."
            ) from None
        self.names: tuple[str, ...] = tuple(dict.fromkeys(name for _, name in parsed if name is not None))
        if not self.names:
            raise ModelDefinitionError(f"Tenants({pattern!r}): expected a placeholder, as in 'tenant_{{tenant}}'.")
        self._matching = re.compile(_regex(parsed), re.DOTALL)

    def __repr__(self) -> str:
        return f"Tenants({self.pattern!r})"

    def __str__(self) -> str:
        return self.pattern

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tenants) and other.pattern == self.pattern

    def __hash__(self) -> int:
        return hash(self.pattern)

    def choose(self, choices: Mapping[str, Any]) -> str:
        """The pattern with the choices filled in."""
        values = {}
        for name in self.names:
            value = values[name] = _choice(choices, name, self)
            if isinstance(value, bool) or not isinstance(value, str | int):
                raise UnknownConnection(f"{name}={value!r}: expected a string or an integer to fill {self!r} with.")
        return self.pattern.format_map(values)

    def reachable(self) -> list[Placed] | None:
        """Every configured connection whose name fits the pattern, but those that are read_only."""
        matches = ((name, self._matching.fullmatch(name)) for name in ConnectionManager.names(writable=True))
        return [Placed(match.groupdict(), name) for name, match in matches if match is not None]


def _regex(parsed: list[tuple[str, str | None]]) -> str:
    parts: list[str] = []
    seen: set[str] = set()
    for literal, name in parsed:
        parts.append(re.escape(literal))
        if name is not None:
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>.+)")
            seen.add(name)
    return "".join(parts)


class ShardMap(Placement):
    """A connection for each shard: `ShardMap({"eu": "orders_eu", "us": "orders_us"})` with `connected_to(shard="eu")`.

    Instead of a mapping it may be given a function from the chosen value, say a customer's number, to a name.
    `by` is the name under which `connected_to` chooses. One statement is for one shard; none asks all of them.
    """

    def __init__(self, shards: Mapping[Any, str] | Callable[[Any], str], *, by: str = "shard") -> None:
        self.by = by
        self._shards = dict(shards) if isinstance(shards, Mapping) else shards
        if isinstance(self._shards, dict) and not all(isinstance(name, str) for name in self._shards.values()):
            raise ModelDefinitionError(f"ShardMap: expected the names of connections, and found {self._shards!r}.")

    def __repr__(self) -> str:
        return f"ShardMap({self._shards!r}, by={self.by!r})"

    @property
    def spelt(self) -> str:
        """What it is chosen by, in braces."""
        return f"{{{self.by}}}"

    def __str__(self) -> str:
        if isinstance(self._shards, dict):
            return f"one of {', '.join(sorted(set(self._shards.values())))} by {self.by}"
        return f"{getattr(self._shards, '__qualname__', 'a function')}({self.by})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardMap) and (other.by, other._shards) == (self.by, self._shards)

    def __hash__(self) -> int:
        return hash(self.by)

    def choose(self, choices: Mapping[str, Any]) -> str:
        """The name that the map or the function has for the chosen value. Raises UnknownConnection."""
        value = _choice(choices, self.by, self)
        if not isinstance(self._shards, dict):
            return self._shards(value)
        try:
            return self._shards[value]
        except (KeyError, TypeError):
            raise UnknownConnection(f"{self.by}={value!r}: the shard map has no such shard.") from None

    def reachable(self) -> list[Placed] | None:
        """The shards of a mapping, in its order; a function's are unknown."""
        if not isinstance(self._shards, dict):
            return None
        writable = set(ConnectionManager.names(writable=True))
        return [Placed({self.by: value}, name) for value, name in self._shards.items() if name in writable]


class Computed(Placement):
    """A function without arguments that returns the name, called for each statement."""

    def __init__(self, function: Callable[[], str]) -> None:
        self._function = function

    def __repr__(self) -> str:
        return f"Computed({self._function!r})"

    def __str__(self) -> str:
        return f"{getattr(self._function, '__qualname__', 'a function')}()"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Computed) and other._function == self._function

    def __hash__(self) -> int:
        return hash(self._function)

    def choose(self, choices: Mapping[str, Any]) -> str:
        """What the function returns now."""
        return self._function()

    def reachable(self) -> list[Placed] | None:
        """Nobody knows what a function may return."""
        return None


def resolve(place: Place) -> str:
    """The name of the connection that this place means now. Raises NoTenantChosen, UnknownConnection."""
    if isinstance(place, str):
        return place
    name: object = place.choose(_choices.get())  # a user's function returns what it will
    if not isinstance(name, str) or not ConnectionManager.is_configured(name):
        # The names of other tenants are none of the caller's business: no list, no suggestion.
        raise UnknownConnection(f"{place!r} leads to {name!r} now, and no connection of this name is configured.")
    return name


def connections_of(child: Place, parent: Place) -> list[tuple[str, str]]:
    """The pairs of connections that rows of two models may refer between, each pair reached by one choice."""
    pairs = (
        (one.connection, other.connection)
        for one in _reachable(child)
        for other in _reachable(parent)
        if all(str(other.choices.get(name, value)) == str(value) for name, value in one.choices.items())
    )
    return list(dict.fromkeys(pairs))


def _reachable(place: Place) -> list[Placed]:
    return [Placed(_NOTHING, place)] if isinstance(place, str) else place.reachable() or []


def chosen() -> Mapping[str, Any]:
    """What `connected_to` has chosen here; empty outside of it."""
    return _choices.get()


@contextmanager
def connected_to(**choices: Any) -> Iterator[None]:
    """Choose the tenant or the shard for a block: `with` it, `tenant="acme"` for instance.

    Inside another block it adds to what that one has chosen, or chooses differently until its end. The choice holds for
    this thread or asynchronous task. Raises NoTenantChosen for None, ConfigurationError without any choice.
    """
    if not choices:
        raise ConfigurationError('connected_to() expected what to choose, as in connected_to(tenant="acme").')
    missing = [name for name, value in choices.items() if value is None]
    if missing:
        raise NoTenantChosen(f"connected_to({missing[0]}=None) chooses nothing: give the value.")
    before = _choices.get()
    _choices.set(MappingProxyType({**before, **choices}))
    try:
        yield
    finally:
        _choices.set(before)


def _choice(choices: Mapping[str, Any], name: str, placement: Placement) -> Any:
    try:
        return choices[name]
    except KeyError:
        found = ", ".join(f"{key}={value!r}" for key, value in choices.items()) or "nothing"
        raise NoTenantChosen(
            f"{placement!r} needs {name!r}, and {found} is chosen here: run the statement inside "
            f"`with connected_to({name}=...)`, in the same thread."
        ) from None

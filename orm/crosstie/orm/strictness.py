"""Lazy loads that are not wanted: refused, warned of, or counted until they look like one query for each record.

Each load that is watched has one object, which its records share: no other record carries anything for this.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from crosstie.orm import related
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import InvalidQuery, LazyLoadWarning, StrictLoadingViolation

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord
    from crosstie.orm.relation import Relation

__all__ = ["Strictness", "lazily", "require_strictness", "watch"]

Strictness = Literal["raise", "warn", "off"]


class _Load:
    """The records of one query: how strict they are, and which relations were loaded lazily for how many of them."""

    __slots__ = ("lazy", "strict")

    def __init__(self, strict: Strictness | None) -> None:
        self.strict = strict
        self.lazy: Counter[str] = Counter()


def require_strictness(given: object, where: str) -> None:
    """Raise InvalidQuery for anything but "raise", "warn" and "off"."""
    if given not in {"raise", "warn", "off"}:
        raise InvalidQuery(f"{where}: expected 'raise', 'warn' or 'off', and found {given!r}.")


def watch(records: Sequence[ActiveRecord], strict: Strictness | None) -> None:
    """Let the lazy loads of these records be seen, where the query or the configuration asks for it."""
    limited = len(records) > 1 and ConnectionManager.settings().relations.lazy_loads is not None
    if strict is not None or limited:
        load = _Load(strict)
        for record in records:
            related.remember(record, related.LOAD, None, load)


def lazily(record: ActiveRecord, relation: Relation[Any]) -> None:
    """A relation is about to be loaded for one record. Raises StrictLoadingViolation, or warns, or does nothing."""
    found = related.recall(record, related.LOAD, None)
    load: _Load | None = None if found is related.MISSING else found
    declared = type(record).__strict_loading__
    strict = load.strict if load is not None and load.strict is not None else declared
    if strict is not None:
        require_strictness(strict, f"{type(record).__qualname__}.__strict_loading__")
    name = f"{type(record).__qualname__}.{relation.name}"
    if strict in {"raise", "warn"}:
        message = (
            f"{name} was loaded lazily, and strict loading forbids it: load it with the query, "
            f"with_({relation.name!r}), or ask for its rows by {relation.name}.query()."
        )
        if strict == "raise":
            raise StrictLoadingViolation(message)
        warnings.warn(message, LazyLoadWarning, stacklevel=3)
    elif load is not None and strict is None:
        load.lazy[relation.name] += 1
        if load.lazy[relation.name] == ConnectionManager.settings().relations.lazy_loads:
            warnings.warn(
                f"{name} was loaded lazily for {load.lazy[relation.name]} records of one query, a query for each: "
                f"load it with theirs, with_({relation.name!r}).",
                LazyLoadWarning,
                stacklevel=3,
            )

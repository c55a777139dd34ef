"""The way over the tables between two models: only keys are read there, one query for each table."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from crosstie.orm.condition import Membership
from crosstie.orm.keyset import portions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crosstie.orm.link import Link

__all__ = ["Reached", "reached_over"]


class Reached(NamedTuple):
    """Which keys of the last link each starting key leads to."""

    by_start: dict[Any, list[Any]]
    """In the order of the rows in between (by their primary keys), each key once."""
    keys: list[Any]
    """All of them, each once."""


def reached_over(link: Link, starts: Sequence[Any]) -> Reached:
    """Follow all links but the last from these keys of the first; a NULL on the way leads nowhere."""
    by_start: dict[Any, list[Any]] = {start: [start] for start in starts}
    for hop, following in pairwise(link.hops):
        steps = _steps(hop, following, _distinct(by_start))
        by_start = {
            start: list(dict.fromkeys(reached for key in keys for reached in steps.get(key, ())))
            for start, keys in by_start.items()
        }
    return Reached(by_start, _distinct(by_start))


def _distinct(by_start: dict[Any, list[Any]]) -> list[Any]:
    return list(dict.fromkeys(key for keys in by_start.values() for key in keys))


def _steps(hop: Link, following: Link, keys: list[Any]) -> dict[Any, list[Any]]:
    from crosstie.orm.query import Query

    found: dict[Any, list[Any]] = {}
    order = [field.column for field in hop.target.key]
    for values in portions(hop.target, [hop.far.sought(key) for key in keys]):
        rows = Query(hop.target.model).meeting(Membership(hop.far, values)).order_by(*order)
        for far, near in rows.pluck(hop.far.name, following.near.name):
            if near is not None:
                found.setdefault(hop.hashable(far), []).append(following.hashable(near))
    return found

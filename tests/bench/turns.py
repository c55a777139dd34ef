"""In continuous integration, a test over all pairs or trios of databases is run over one: they take turns.

Each test keeps one, which depends on its name alone, so all have about as many tests. `CROSSTIE_TEST_PAIRS`
says `all` or `turns`. A test may have other fixtures take turns: `@pytest.mark.turns("broker", "database")`.
"""

from __future__ import annotations

import os
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import pytest

__all__ = ["kept", "leave_out", "turns_are_taken"]

VARIABLE: Final = "CROSSTIE_TEST_PAIRS"
MARK: Final = "turns"


def turns_are_taken(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the pairs are to take turns. Raises ValueError for a variable that says neither."""
    said = environment.get(VARIABLE) or ("turns" if environment.get("CI") == "true" else "all")
    if said not in {"all", "turns"}:
        raise ValueError(f"{VARIABLE}: expected 'all' or 'turns', found {said!r}")
    return said == "turns"


def kept(test: str, pairs: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The one of the pairs over which this test is run."""
    return pairs[zlib.crc32(test.encode()) % len(pairs)]


def leave_out(
    items: list[pytest.Item], families: Mapping[str, Sequence[tuple[str, ...]]]
) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Part tests into those that are run and those whose pair is not in turn.

    `families` are all pairs of a fixture. A test that names its pairs itself, and not all of them, keeps them all,
    unless it is marked: `turns("one", "other")` has the values of these fixtures take turns, in every combination.
    The ids of values are the values themselves.
    """
    members: dict[tuple[str, str], list[tuple[pytest.Item, tuple[str, ...]]]] = defaultdict(list)
    for item in items:
        found = _marked(item) or _pair_of(item, families)
        if found is not None:
            fixture, name, choice = found
            members[fixture, name].append((item, choice))
    out: set[pytest.Item] = set()
    for (fixture, name), group in members.items():
        there = {choice for _, choice in group}
        choices = families.get(fixture) or sorted(there)
        if there == set(choices):
            stays = kept(name, choices)
            out.update(item for item, choice in group if choice != stays)
    return [item for item in items if item not in out], [item for item in items if item in out]


def _marked(item: pytest.Item) -> tuple[str, str, tuple[str, ...]] | None:
    """No family, the test's name without the values of the fixtures that take turns, and these values."""
    mark = item.get_closest_marker(MARK)
    params = getattr(getattr(item, "callspec", None), "params", {})
    values = [params[fixture] for fixture in (mark.args if mark else ()) if fixture in params]
    choice = tuple(value if isinstance(value, str) else "-".join(value) for value in values)
    name = item.nodeid
    for value in choice:
        name = name.replace(value, "*", 1)
    return ("", name, choice) if choice else None


def _pair_of(item: pytest.Item, fixtures: Mapping[str, object]) -> tuple[str, str, tuple[str, ...]] | None:
    """The fixture, the test's name without the pair, and the pair; None for a test over no pair."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    for fixture in fixtures:
        pair = params.get(fixture)
        if isinstance(pair, tuple):
            return fixture, item.nodeid.replace("-".join(pair), "*", 1), pair
    return None

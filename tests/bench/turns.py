"""In continuous integration, a test over all pairs or trios of databases is run over one: they take turns.

Each test keeps one, which depends on its name alone, so all have about as many tests. `CROSSTIE_TEST_PAIRS`
says `all` or `turns`.
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

    `families` are all pairs of a fixture. A test that names its pairs itself, and not all of them, keeps them all.
    """
    members: dict[tuple[str, str], list[tuple[pytest.Item, tuple[str, ...]]]] = defaultdict(list)
    for item in items:
        found = _pair_of(item, families)
        if found is not None:
            fixture, name, pair = found
            members[fixture, name].append((item, pair))
    out: set[pytest.Item] = set()
    for (fixture, name), group in members.items():
        if {pair for _, pair in group} == set(families[fixture]):
            stays = kept(name, families[fixture])
            out.update(item for item, pair in group if pair != stays)
    return [item for item in items if item not in out], [item for item in items if item in out]


def _pair_of(item: pytest.Item, fixtures: Mapping[str, object]) -> tuple[str, str, tuple[str, ...]] | None:
    """The fixture, the test's name without the pair, and the pair; None for a test over no pair."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    for fixture in fixtures:
        pair = params.get(fixture)
        if isinstance(pair, tuple):
            return fixture, item.nodeid.replace("-".join(pair), "*", 1), pair
    return None

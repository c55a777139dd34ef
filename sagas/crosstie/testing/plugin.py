"""The pytest plugin: fixtures that undo themselves. pytest loads it in every project, so it imports crosstie late."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from crosstie.testing.passing import VirtualTime
    from crosstie.testing.quiet import Left

__all__ = ["crosstie_time", "crosstie_until_quiet"]


@pytest.fixture
def crosstie_time() -> Iterator[VirtualTime]:
    """Time that passes when the test says so: `crosstie_time.advance(60)`."""
    from crosstie.testing.passing import virtual_time

    with virtual_time() as moved:
        yield moved


@pytest.fixture
def crosstie_until_quiet() -> Callable[[], Left]:
    """`run_until_quiet`: do what workers would do until nothing is left."""
    from crosstie.testing.quiet import run_until_quiet

    return run_until_quiet

"""Models with copies must not reach other tests, which would subscribe to their events."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from crosstie.orm.registry import registry


@pytest.fixture(autouse=True)
def models_of_the_test_alone(own_registries: None) -> Iterator[None]:
    """Begin without models, and forget the models, subscribers and event classes that the test has defined."""
    with registry.isolated():
        registry._models = {}  # others' copies would be audited in databases that are not theirs
        registry.generation += 1
        yield

"""Each test of the ORM defines its own models; what one defines, no other sees."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from crosstie.orm.registry import registry


@pytest.fixture(autouse=True)
def models_of_the_test_alone(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hide the models of other test modules, forget those that the test defined.

    Every test module of a run is imported, and two of them may give one table different columns.
    """
    with registry.isolated():
        registry._models = {
            (module, name): model
            for (module, name), model in registry._models.items()
            if module == request.module.__name__ or (module.startswith("orm.") and ".test_" not in module)
        }
        registry.generation += 1
        yield

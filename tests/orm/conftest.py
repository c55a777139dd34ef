"""Each test of the ORM defines its own models; what one defines, no other sees."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from crosstie.orm.registry import registry
from crosstie.orm.routing import router


@pytest.fixture(autouse=True)
def models_of_the_test_alone() -> Iterator[None]:
    """Forget the models that the test defined, and its writes, so that replicas are read again."""
    with registry.isolated():
        yield
    router.forget()

"""The examples define subscribers and event classes, which must not reach other tests."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _own_registries(own_registries: None) -> None:
    """For every test of this folder."""

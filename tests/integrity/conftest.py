"""Fixtures of the audit's tests."""

from __future__ import annotations

import pytest

from bench.databases import Pair
from integrity.tables import Linked, linked


@pytest.fixture
def world(configured: Pair) -> Linked:
    """Linked tables with BIGINT keys, over every pair."""
    return linked(configured)

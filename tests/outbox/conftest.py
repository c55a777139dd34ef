"""Subscriptions and event classes are the process's; here each test has its own."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _own_registries(own_registries: None) -> None:
    """For every test of this folder."""

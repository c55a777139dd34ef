"""Subscriptions and event classes are the process's; here each test has its own. And nothing is in a hurry."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _own_registries(own_registries: None, no_hurry: None) -> None:
    """For every test of this folder."""

"""Subscriptions and event classes are the process's; here each test has its own."""

from __future__ import annotations

import pytest

from crosstie.outbox import doorbell, event, subscription


@pytest.fixture(autouse=True)
def own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start without subscribers and listeners, and forget at the end which classes the test has defined."""
    monkeypatch.setattr(subscription, "_subscriptions", {})
    monkeypatch.setattr(doorbell, "_listeners", [])
    monkeypatch.setattr(event, "_classes", dict(event._classes))

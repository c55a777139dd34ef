"""Subscriptions and event classes are the process's; here each test has its own. And nothing is in a hurry."""

from __future__ import annotations

import pytest

from crosstie.outbox import parking, relay


@pytest.fixture(autouse=True)
def _own_registries(own_registries: None) -> None:
    """For every test of this folder."""


@pytest.fixture(autouse=True)
def _no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that stalls, too, no lane and no key is due again before a test says so (`bank.ready_now`)."""
    monkeypatch.setattr(relay, "HOLD_S", 60.0)
    monkeypatch.setattr(relay, "backoff_s", lambda failures, **_: 60.0 * (failures + 1))
    monkeypatch.setattr(parking, "FIRST_RETRY_S", 600.0)

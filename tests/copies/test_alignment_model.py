"""The rules by which copies are kept right are enough, and none of them can be left out."""

from __future__ import annotations

import pytest

from copies.alignment_model import Rules, wrong_copies

SCHEDULES = 4000


def test_every_copy_is_right_when_no_event_is_left() -> None:
    """Whatever the order of steps, with old events, duplicates and abandoned work."""
    for seed in range(SCHEDULES):
        assert wrong_copies(Rules(), seed) == [], f"seed {seed}"


@pytest.mark.parametrize("rule", ["children_tell", "lock_first", "undo_tells"])
def test_without_a_rule_a_copy_stays_wrong(rule: str) -> None:
    """So each of them is there for a reason."""
    rules = Rules(**{rule: False})
    assert any(wrong_copies(rules, seed) for seed in range(SCHEDULES))

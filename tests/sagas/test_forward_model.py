"""Forward recovery holds in every reachable state, and would not without any one of its safeguards."""

from __future__ import annotations

import pytest

from sagas import forward_model as model


def test_no_crash_pause_or_lost_answer_breaks_a_saga_that_recovers_forward() -> None:
    """Every state that two branches, home, an original and two redoers can reach keeps every promise."""
    result = model.search()

    assert result.violation is None, result.trace
    assert result.states > 1000, "the search visited too few states to mean anything"


@pytest.mark.parametrize("safeguard", list(model.Safeguard), ids=lambda safeguard: safeguard.name.lower())
def test_each_safeguard_of_a_saga_that_recovers_forward_is_needed(safeguard: model.Safeguard) -> None:
    """Without this safeguard the search finds a run that loses or doubles a branch, or misreports the outcome."""
    result = model.search(model.ALL - {safeguard})

    assert result.violation is not None
    assert result.trace[0] == model.State()

"""Effects outside databases share their saga's fate in every reachable state, and would not without each safeguard."""

from __future__ import annotations

import pytest

from sagas import effect_model as model


def test_no_crash_pause_or_slow_call_parts_an_effect_from_its_saga() -> None:
    """Every state that two calls, an original, a recoverer and two workers can reach keeps every promise."""
    result = model.explore()

    assert result.violation is None, result.trace
    assert result.states > 3000, "the search visited too few states to mean anything"


@pytest.mark.parametrize("safeguard", list(model.Safeguard), ids=lambda safeguard: safeguard.name.lower())
def test_each_safeguard_is_needed(safeguard: model.Safeguard) -> None:
    """Without this safeguard the search finds a run that keeps an effect, takes one back, or misreports the outcome."""
    result = model.explore(model.ALL - {safeguard})

    assert result.violation is not None
    assert result.trace[0] == model.State()

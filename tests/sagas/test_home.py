"""Which database decides, and what is refused before anything is committed."""

from __future__ import annotations

import pytest

from crosstie.sagas import SagaNotUndoable
from crosstie.sagas.home import choose_home


@pytest.mark.parametrize(
    ("written", "uncaptured", "declared", "home"),
    [
        (["a", "b"], {}, None, "a"),
        (["a", "b"], {}, "b", "b"),
        (["a", "b"], {"b": ["raw SQL"]}, None, "b"),
        (["a", "b"], {"a": ["raw SQL"]}, None, "a"),
        (["a", "b", "c"], {"c": ["raw SQL"]}, "c", "c"),
        (["a", "b"], {}, "untouched", "a"),
    ],
)
def test_home_is_declared_or_the_one_that_cannot_be_undone_or_the_first(
    written: list[str], uncaptured: dict[str, list[str]], declared: str | None, home: str
) -> None:
    """The declared home wins, then the database with writes that nobody can undo, then the first one written."""
    assert choose_home(written, uncaptured, declared) == home


@pytest.mark.parametrize(
    ("uncaptured", "declared"),
    [({"a": ["raw SQL"], "b": ["a trigger"]}, None), ({"b": ["raw SQL"]}, "a"), ({"a": ["x"], "b": ["y"]}, "b")],
)
def test_two_databases_that_cannot_be_undone_are_refused(
    uncaptured: dict[str, list[str]], declared: str | None
) -> None:
    """The message names both databases, what was written there, and the ways out."""
    with pytest.raises(SagaNotUndoable) as refused:
        choose_home(["a", "b"], uncaptured, declared)

    message = str(refused.value)
    for name, reasons in uncaptured.items():
        assert f"- {name}: {reasons[0]}" in message
    assert "Nothing was committed" in message
    assert "home=" in message

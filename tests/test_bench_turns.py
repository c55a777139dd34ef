"""Pairs that take turns leave none of them untried."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from bench.processes import Child
from bench.turns import kept, turns_are_taken
from conftest import CRASH_PAIRS, PAIRS, TRIOS

PROGRAM = """
import pytest
from conftest import PAIRS

def test_over_all(pair): pass

@pytest.mark.parametrize("number", [1, 2, 3])
def test_over_all_with_numbers(number, pair): pass

@pytest.mark.parametrize("pair", PAIRS[:3], indirect=True)
def test_over_its_own(pair): pass

def test_over_crash_pairs(crash_pair): pass

def test_over_trios(trio): pass

def test_over_none(): pass

@pytest.mark.turns("left", "right")
@pytest.mark.parametrize("point", range(5))
@pytest.mark.parametrize("left", ["the left", "the wrong"])
@pytest.mark.parametrize("right", ["that", "another", "third"])
def test_marked(point, left, right): pass

@pytest.mark.turns("pair", "other")
@pytest.mark.parametrize("pair", PAIRS[:3], indirect=True, ids="-".join)
def test_marked_over_its_own(pair): pass
"""


@pytest.mark.parametrize("pairs", [PAIRS, CRASH_PAIRS, TRIOS])
def test_every_pair_has_its_share_of_the_tests(pairs: list[tuple[str, ...]]) -> None:
    """None is chosen by less than half, or more than twice, of what would be fair."""
    choices = Counter(kept(f"test_{number}", pairs) for number in range(700))
    assert set(choices) == set(pairs)
    assert all(350 / len(pairs) < number < 1400 / len(pairs) for number in choices.values())


def test_turns_are_taken_in_continuous_integration_or_when_asked_for() -> None:
    """And another word in the variable is an error, not the default."""
    assert [turns_are_taken(env) for env in ({}, {"CI": "true"}, {"CI": "true", "CROSSTIE_TEST_PAIRS": "all"})] == [
        False,
        True,
        False,
    ]
    assert turns_are_taken({"CROSSTIE_TEST_PAIRS": "turns"})
    with pytest.raises(ValueError, match="CROSSTIE_TEST_PAIRS: expected 'all' or 'turns', found 'some'"):
        turns_are_taken({"CROSSTIE_TEST_PAIRS": "some"})


@pytest.mark.parametrize(
    ("said", "count"), [("all", 7 + 21 + 3 + 3 + 3 + 1 + 30 + 3), ("turns", 1 + 3 + 3 + 1 + 1 + 1 + 5 + 1)]
)
def test_a_run_collects_those_in_turn(said: str, count: int, tmp_path: Path) -> None:
    """A test that names its pairs keeps them; one that is marked is run over one combination."""
    tests = tmp_path / "test_some.py"
    tests.write_text(PROGRAM)
    plugins = ["-p", "conftest", "-p", "no:cacheprovider", "-p", "no:warnings"]  # only the project knows the mark
    command: list[str | Path] = ["-m", "pytest", *plugins, "-c", "/dev/null"]
    with Child(
        [*command, "--collect-only", "-q", tests], folder=tmp_path, environment={"CROSSTIE_TEST_PAIRS": said}
    ) as run:
        output = run.wait_ok()
    assert sum("::" in line for line in output.splitlines()) == count, output

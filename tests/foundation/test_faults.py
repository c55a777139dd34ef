"""Fault points are where the list says, once each, and do nothing unless a test arms them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from bench.documents import ROOT
from bench.processes import Spawner
from crosstie.orm.faults import FAULT_POINTS, FaultInjected, armed, fault_point

CALL = re.compile(r"\bfault_point\(\s*\"([^\"]+)\"")


def test_every_named_place_is_in_the_code_once() -> None:
    """A crash test over the list reaches all of them, and none is named that does not exist."""
    sources = [path for layer in ("orm", "outbox", "sagas", "workers") for path in (ROOT / layer).rglob("*.py")]
    places = Counter(name for path in sources for name in CALL.findall(path.read_text()))

    assert places == Counter(FAULT_POINTS)


def test_a_place_that_nobody_armed_does_nothing() -> None:
    """In use a fault point is a test of an empty dictionary."""
    fault_point("saga.branch-committed")


def test_an_armed_place_acts_at_the_time_asked_for() -> None:
    """The second time here, and never again after the block."""
    with armed("saga.branch-committed", nth=2):
        fault_point("saga.branch-committed")
        with pytest.raises(FaultInjected, match=r"saga\.branch-committed"):
            fault_point("saga.branch-committed")
    fault_point("saga.branch-committed")


def test_an_unknown_place_cannot_be_armed() -> None:
    """A test that arms a misspelt place would prove nothing."""
    with pytest.raises(ValueError, match=r"no fault point is called 'saga\.nowhere'"), armed("saga.nowhere"):
        pass


@pytest.mark.parametrize("specification", ["saga.branch-committed=explode", "nowhere=kill", "kill"])
def test_a_wrong_environment_is_refused_at_import(specification: str, spawn: Spawner, tmp_path: Path) -> None:
    """A child that was to be killed must not run on because of a slip."""
    child = spawn.code("import crosstie.orm.faults", environment={"CROSSTIE_FAULTS": specification})

    assert child.wait() != 0
    assert "ValueError" in child.output

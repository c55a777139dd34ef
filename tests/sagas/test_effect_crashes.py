"""A real SIGKILL around a call, its decision and its compensation; then sweeps; then all or nothing, outside too."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.databases import Pair
from bench.faults import crash_env
from bench.processes import Spawner
from bench.waiting import eventually
from crosstie.sagas import sweep_effects, sweep_sagas
from sagas import till
from sagas.shop import contents, create_shop, saga_states

PROGRAM = Path(__file__).with_name("effect_program.py")


@pytest.fixture
def shop(configured_crash_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """A shop over two databases, and a till that children share with this process."""
    monkeypatch.setenv(till.VARIABLE, str(tmp_path / "till"))
    create_shop(configured_crash_pair.by_name)
    return configured_crash_pair


def kill_at(spawn: Spawner, shop: Pair, point: str, verb: str = "saga") -> None:
    """Run the program until it is killed at the point."""
    spawn.python(str(PROGRAM), verb, environment=shop.environment | crash_env(point)).wait_killed()


def sweep_until_quiet(shop: Pair) -> None:
    """Let leases and backoffs have passed, and sweep until nobody has to act."""

    def quiet() -> bool:
        shop.first.execute("UPDATE crosstie_effect SET lease_until_ms = 0, next_at_ms = 0")
        sweep_effects("default")
        for name in shop.by_name:
            sweep_sagas(name)
        left = {state for states in saga_states(shop.by_name).values() for state in states}
        effects = {str(state) for (state,) in shop.first.rows("SELECT state FROM crosstie_effect")}
        return not left & {"applied", "aborted"} and not effects & {"open", "due"}

    # The server may take a moment to notice that the killed client is gone, and to release its locks.
    eventually(quiet, describe="nothing is unfinished")


@pytest.mark.parametrize(
    ("point", "committed"),
    [
        ("effect.intended", False),
        ("effect.called", False),
        ("saga.home-recorded", False),
        ("saga.home-committed", True),
    ],
)
def test_a_process_killed_in_a_saga_keeps_its_call_only_if_it_committed(
    point: str, committed: bool, shop: Pair, spawn: Spawner
) -> None:
    """The call and the writes share one fate, and no worker compensates what was committed."""
    before = contents(shop.by_name)
    kill_at(spawn, shop, point)
    sweep_until_quiet(shop)

    assert till.lines("refund") == ([] if committed else ["refund 5 :1"])
    assert till.lines("charge") == ([] if point == "effect.intended" else ["charge 5 :1"])
    assert (contents(shop.by_name) == before) is not committed
    assert shop.first.rows("SELECT state FROM crosstie_effect") == [("settled" if committed else "compensated",)]


@pytest.mark.parametrize(
    ("point", "refunds"), [("recovery.decision-recorded", 1), ("effect.claimed", 1), ("effect.compensated", 2)]
)
def test_a_worker_killed_compensating_leaves_it_to_the_next(
    point: str, refunds: int, shop: Pair, spawn: Spawner
) -> None:
    """The original dies in its call, the first worker too, and the next one finishes with the same key."""
    kill_at(spawn, shop, "effect.called")
    kill_at(spawn, shop, point, verb="sweep")
    sweep_until_quiet(shop)

    assert till.lines("refund") == ["refund 5 :1"] * refunds
    assert saga_states(shop.by_name)["default"] == ["finished"]


def test_a_process_that_is_not_killed_charges_and_commits(shop: Pair, spawn: Spawner) -> None:
    """The program does what the crash tests take it to do when nothing is armed."""
    spawn.python(str(PROGRAM), "saga", environment=shop.environment).wait_ok()
    sweep_until_quiet(shop)
    assert till.lines() == ["charge 5 :1"]
    assert saga_states(shop.by_name) == {"default": ["committed"], "secondary": ["done"]}

"""Workers and operators bring effects outside databases to their end; monitoring sees those that wait."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.databases import Pair
from bench.faults import crash_env
from bench.processes import Spawner
from bench.waiting import eventually
from crosstie.orm.connection import ConnectionManager
from crosstie.sagas import saga
from crosstie.workers import metrics, tasks
from sagas import till
from sagas.shop import create_shop, saga_states
from sagas.till import charge, refund

PROGRAM = Path(__file__).parent.parent / "sagas" / "effect_program.py"


@pytest.fixture
def shop(configured_crash_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """A shop whose databases the command finds, and a till; a compensation has one attempt."""
    monkeypatch.setenv(till.VARIABLE, str(tmp_path / "till"))
    monkeypatch.setenv("CROSSTIE_CONNECTIONS", json.dumps(configured_crash_pair.configuration))
    monkeypatch.setenv("CROSSTIE_SAGA__COMPENSATION_ATTEMPTS", "1")
    ConnectionManager.configure()
    create_shop(configured_crash_pair.by_name)
    return configured_crash_pair


def states(shop: Pair) -> list[str]:
    """The states of the effects, in their order."""
    return [str(state) for (state,) in shop.first.rows("SELECT state FROM crosstie_effect ORDER BY step")]


@pytest.fixture
def stuck(shop: Pair) -> str:
    """A saga whose three refunds wait for an operator: the last of them was refused; its id."""
    till.go_down()
    with pytest.raises(ZeroDivisionError), saga("order", home="default") as s:
        for amount in (5, 6, 7):
            s.call(charge, amount, compensate=refund)
        raise ZeroDivisionError
    till.go_down(False)
    assert states(shop) == ["due", "due", "quarantined"]
    return s.saga_id


def test_a_worker_alone_compensates_what_a_killed_process_has_called(shop: Pair, spawn: Spawner) -> None:
    """It finds the saga in home, aborts it and calls the compensation, which its imports register."""
    spawn.python(str(PROGRAM), "saga", environment=shop.environment | crash_env("effect.called")).wait_killed()
    assert till.lines() == ["charge 5 :1"]
    spawn.worker(environment=shop.environment | {"CROSSTIE_IMPORTS": '["sagas.till"]'})
    eventually(lambda: states(shop) == ["compensated"], describe="the effect is compensated")
    assert till.lines() == ["charge 5 :1", "refund 5 :1"]
    assert saga_states(shop.by_name)["default"] == ["finished"]


def test_a_sweep_by_cron_compensates(cli: Callable, shop: Pair, stuck: str) -> None:
    """And says so."""
    shop.first.execute("UPDATE crosstie_effect SET state = 'due', attempts = 0, lease_until_ms = 0")
    status, out, _ = cli("sweep", "--once")
    assert (status, "effects compensated 3, failed 0, quarantined 0" in out) == (0, True)


def test_the_task_that_sweeps_compensates(shop: Pair, stuck: str) -> None:
    """For who sends it by a beat of their own."""
    shop.first.execute("UPDATE crosstie_effect SET state = 'due', attempts = 0, lease_until_ms = 0")
    tasks.sweep()
    assert states(shop) == ["compensated"] * 3


def test_a_quarantined_effect_is_listed_with_its_error(cli: Callable, shop: Pair, stuck: str) -> None:
    """As a table, in full and as JSON; its arguments only where they are asked for."""
    assert "effects quarantined: 1" in " ".join(cli("sagas", "list")[1].split())
    status, out, _ = cli("sagas", "quarantined", "--json")
    (found,) = json.loads(out)["sagas"]
    assert (status, found["id"], found["quarantined"]) == (1, stuck, [])
    assert [(one["state"], one["attempts"], one["error"]) for one in found["effects"]] == [
        ("due", 0, None), ("due", 0, None), ("quarantined", 1, "Refused: out of order"),
    ]  # fmt: skip
    status, out, _ = cli("sagas", "show", stuck)
    assert (status, "effect 3: quarantined" in out, "Refused: out of order" in out) == (0, True, True)
    assert f"'till.refund', key {stuck}:1" in out
    assert "arguments" not in out
    assert '{"args": [7]' in cli("sagas", "show", stuck, "--show-values")[1]
    assert '"args"' not in cli("sagas", "show", stuck, "--json")[1]


def test_a_retry_has_all_attempts_again(
    cli: Callable, shop: Pair, stuck: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It tries at once, and tells what still stands in the way; earlier effects follow once it succeeds."""
    till.go_down()
    status, out, err = cli("sagas", "retry", stuck)
    assert (status, "unfinished" in out, "out of order" in err) == (1, True, True)
    assert states(shop) == ["due", "due", "quarantined"]
    till.go_down(False)
    with caplog.at_level(logging.WARNING, logger="crosstie.operator"):
        status, out, _ = cli("sagas", "retry", stuck, "--json")
    assert (status, json.loads(out)["finished"], json.loads(out)["effects"]) == (0, True, {})
    assert f"retry saga {stuck}" in caplog.text
    assert till.lines("refund ") == ["refund 7 :3", "refund 6 :2", "refund 5 :1"]


def test_a_skipped_effect_stays_and_lets_the_earlier_ones_go(cli: Callable, shop: Pair, stuck: str) -> None:
    """Without asking, where it is the only one that waits."""
    status, _, err = cli("sagas", "skip", stuck, "--effect", "2", "--yes")
    assert (status, "quarantined effect (3)" in err) == (2, True)
    assert cli("sagas", "skip", stuck, "--yes")[0] == 0
    assert states(shop) == ["compensated", "compensated", "skipped"]
    assert till.lines("refund ") == ["refund 6 :2", "refund 5 :1"]
    assert cli("sagas", "quarantined")[0] == 0


def test_a_forced_effect_is_compensated_out_of_turn(cli: Callable, shop: Pair, stuck: str) -> None:
    """Although a later one of the saga is not."""
    shop.first.execute("UPDATE crosstie_effect SET state = 'quarantined' WHERE step = 1")
    status, _, err = cli("sagas", "force", stuck, "--yes")
    assert (status, "effect 1, effect 3" in err) == (2, True)
    status, out, err = cli("sagas", "force", stuck, "--effect", "1", "--yes")
    assert (status, "unfinished" in out, "effect 3 is quarantined" in err) == (1, True, True)
    assert states(shop) == ["compensated", "due", "quarantined"]
    assert till.lines("refund ") == ["refund 5 :1"]


def test_a_running_saga_that_is_cancelled_has_its_effects_compensated(cli: Callable, shop: Pair) -> None:
    """`retry` refuses it before its expiry, because its process may still be at work."""
    with pytest.raises(ZeroDivisionError), saga("order", home="default") as s:
        s.compensate_with(refund, 5)
        status, _, err = cli("sagas", "retry", s.saga_id)
        assert (status, "has not expired" in err) == (2, True)
        assert cli("sagas", "cancel", s.saga_id, "--yes")[0] == 0
        assert states(shop) == ["compensated"]
        raise ZeroDivisionError


def test_an_effect_that_nobody_compensates_is_left_over(cli: Callable, shop: Pair, stuck: str) -> None:
    """No worker runs, or none imports the module; a quarantined one is no secret, nor are those that wait for it."""
    assert cli("sagas", "leftovers", "--grace", "0")[0] == 0
    shop.first.execute("UPDATE crosstie_effect SET state = 'due', lease_until_ms = 0, updated_at_ms = 1")
    status, out, _ = cli("sagas", "leftovers", "--grace", "0", "--json")
    found = json.loads(out)["leftovers"]
    assert (status, [one["saga_id"] for one in found]) == (1, [stuck]), "the earlier ones wait for their turn"
    assert "'till.refund'" in found[0]["message"]
    shop.first.execute("UPDATE crosstie_effect SET state = 'open', expires_at_ms = 1 WHERE step = 2")
    assert len(json.loads(cli("sagas", "leftovers", "--json")[1])["leftovers"]) == 2
    shop.first.execute("UPDATE crosstie_effect SET state = 'open' WHERE step <> 2")
    assert json.loads(cli("sagas", "leftovers", "--json")[1])["leftovers"] == [], "its process lives"


def test_effects_that_wait_are_metrics(shop: Pair, stuck: str) -> None:
    """By the state in which they wait."""
    text = metrics.exposition().decode()
    assert 'crosstie_saga_effects{source="default",state="due"} 2.0' in text
    assert 'crosstie_saga_effects{source="default",state="quarantined"} 1.0' in text
    assert 'crosstie_saga_effects{source="secondary",state="due"} 0.0' in text

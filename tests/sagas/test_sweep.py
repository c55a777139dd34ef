"""Sweeps find what is unfinished, and leave alone what is not theirs."""

from __future__ import annotations

from decimal import Decimal

import pytest
import sqlalchemy as sa

from bench.databases import Pair
from bench.faults import crash_at
from crosstie.orm import ConnectionManager
from crosstie.orm.errors import DatabaseUnavailable
from crosstie.orm.faults import FaultInjected, armed
from crosstie.sagas import SagaAborted, resolve_saga, saga, sweep_sagas
from crosstie.sagas.touched import touched_keys
from sagas.shop import Order, Stock, contents, create_shop, saga_states


def _order(expiry_s: float = 60.0) -> str:
    with saga("order", expiry_s=expiry_s) as s:
        Order(sku="new", amount=Decimal(1)).save()
        Stock(sku="new").save()
    return s.saga_id


def _leave_half_done(expiry_s: float) -> None:
    """A saga whose branch is applied and whose process has gone, in the same process: its recovery fails too."""
    with crash_at("saga.branch-committed"), crash_at("recovery.before-decision"), pytest.raises(FaultInjected):
        _order(expiry_s)


def test_a_saga_that_may_still_be_running_is_left_alone(configured: Pair) -> None:
    """Before its expiry an undecided saga belongs to its original; afterwards to whoever finds it."""
    create_shop(configured.by_name)
    before = contents(configured.by_name)
    _leave_half_done(expiry_s=60)

    assert sweep_sagas("secondary").aborted == 0
    assert saga_states(configured.by_name)["secondary"] == ["applied"]

    configured.second.execute("UPDATE crosstie_saga SET expires_at_ms = 0")
    assert sweep_sagas("secondary").aborted == 1
    assert contents(configured.by_name) == before
    assert saga_states(configured.by_name) == {"default": ["finished"], "secondary": ["undone"]}


def test_an_abort_that_was_decided_is_finished_before_the_expiry(configured: Pair) -> None:
    """Home's `aborted` is final, so nobody need wait."""
    create_shop(configured.by_name)
    before = contents(configured.by_name)
    with (
        crash_at("saga.branch-committed"),
        crash_at("recovery.decided"),
        pytest.raises(FaultInjected),
    ):
        _order()

    assert sweep_sagas("default").aborted == 1
    assert contents(configured.by_name) == before


def test_many_committed_sagas_are_settled_at_once(configured: Pair) -> None:
    """`applied` becomes `done` in batches, whether or not the sagas have expired."""
    create_shop(configured.by_name)
    for _ in range(5):
        _order()

    assert sweep_sagas("secondary", limit=3).settled == 3
    assert sweep_sagas("secondary", limit=3).settled == 2
    assert saga_states(configured.by_name)["secondary"] == ["done"] * 5


def test_a_saga_whose_home_is_down_waits_and_does_not_stop_the_others(
    configured: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The saga is deferred with back-off and not lost; a saga of another home goes on."""
    monkeypatch.setattr("crosstie.sagas.sweep.backoff_s", lambda failures, **_: 60.0 * (failures + 1))
    create_shop(configured.by_name)
    _order()
    configured.second.execute(
        "INSERT INTO crosstie_saga (saga_id, step, participant, role, state, name, home, participants, undo_log,"
        " created_at_ms, updated_at_ms, expires_at_ms, next_at_ms, attempts)"
        " VALUES ('x', 0, 'secondary', 'branch', 'applied', 'n', 'gone', '[\"gone\", \"secondary\"]', '[]',"
        " 0, 0, 0, 0, 0)"
    )

    report = sweep_sagas("secondary")

    assert (report.settled, report.deferred) == (1, 1)
    assert configured.second.scalar("SELECT attempts FROM crosstie_saga WHERE saga_id = 'x'") == 1
    assert sweep_sagas("secondary").deferred == 0, "it must wait before it is tried again"


def test_a_sweep_of_a_database_that_is_down_says_so() -> None:
    """The caller, a loop over all databases, is told which one."""
    ConnectionManager.configure({"default": "postgresql://root@127.0.0.1:1/nothing"})

    with pytest.raises(DatabaseUnavailable, match="'default'"):
        sweep_sagas("default")


def test_a_worker_that_wins_makes_the_slow_original_abort(configured: Pair) -> None:
    """The original sleeps past its expiry between two commits; its own insert then meets the worker's decision."""
    create_shop(configured.by_name)
    before = contents(configured.by_name)
    impatient = configured.first.config | _IMPATIENT[configured.first.kind]
    ConnectionManager.configure(configured.configuration | {"default": impatient})

    def worker() -> None:
        sweep_sagas("secondary")

    def slow_original() -> None:
        with armed("saga.branch-committed", worker):
            _order(expiry_s=-1)

    if configured.first.kind == "sqlite":
        # The original is home's only writer as long as it lives, so no worker can decide before it.
        slow_original()
        assert saga_states(configured.by_name) == {"default": ["committed"], "secondary": ["applied"]}
    else:
        with pytest.raises(SagaAborted):
            slow_original()
        assert contents(configured.by_name) == before
        assert saga_states(configured.by_name) == {"default": ["finished"], "secondary": ["undone"]}


_IMPATIENT: dict[str, dict[str, object]] = {"sqlite": {"busy_timeout_s": 0.2}, "postgresql": {}, "mariadb": {}}


def test_one_saga_can_be_resolved_by_its_id(configured: Pair) -> None:
    """The doorbell names a saga; of one that is finished nothing is left to do."""
    create_shop(configured.by_name)
    saga_id = _order()

    assert resolve_saga(saga_id, "default").settled == 1
    assert saga_states(configured.by_name) == {"default": ["committed"], "secondary": ["done"]}
    assert resolve_saga("unknown", "default").settled == 0


def test_rows_in_the_hands_of_an_open_saga_are_known(configured: Pair) -> None:
    """An audit asks for the keys that a branch has written, until the saga has been settled for long enough."""
    create_shop(configured.by_name)
    now = 0

    _order()
    new = configured.second.scalar("SELECT max(id) FROM stock")
    assert touched_keys("secondary", since_ms=2**60) == {("stock", (str(new),))}
    assert touched_keys("default", since_ms=now) == set()

    sweep_sagas("secondary")
    assert touched_keys("secondary", since_ms=now) == {("stock", (str(new),))}
    assert touched_keys("secondary", since_ms=2**60) == set()


def test_a_participant_that_is_down_costs_one_attempt_and_not_one_for_each_saga(configured: Pair) -> None:
    """A sweep would otherwise wait for a connection as often as there are sagas."""
    create_shop(configured.by_name)
    ConnectionManager.configure(configured.configuration | {"gone": "postgresql://root@127.0.0.1:1/nothing"})
    for number in range(4):
        configured.first.execute(
            "INSERT INTO crosstie_saga (saga_id, step, participant, role, state, name, home, participants, undo_log,"
            " created_at_ms, updated_at_ms, expires_at_ms, next_at_ms, attempts)"
            " VALUES (%s, 0, 'default', 'home', 'aborted', 'n', 'default', '[\"default\", \"gone\"]', '[]',"
            " 0, 0, 0, 0, 0)",
            (f"saga-{number}",),
        )
    attempts: list[object] = []
    sa.event.listen(ConnectionManager.get("gone").engine, "do_connect", lambda *_: attempts.append(1))

    assert sweep_sagas("default").deferred == 4

    assert len(attempts) == 1
    assert configured.first.scalar("SELECT count(*) FROM crosstie_saga WHERE attempts = 1") == 4

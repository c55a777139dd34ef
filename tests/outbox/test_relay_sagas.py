"""Events of a saga's branch leave when home has decided for the saga, and never if it has decided against it.

The records are written by hand, in each state in which the relay may meet them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import pytest

from bench.databases import Pair, TestDatabase
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.transaction import transaction
from crosstie.outbox import batch, decision, drain, sweep_lanes
from crosstie.outbox.batch import OutboxRow, sort_out
from crosstie.outbox.publish import enqueue
from outbox import bank
from outbox.bank import Moved

SAGA = "saga-1"


@pytest.fixture
def branch(configured_crash_pair: Pair) -> Pair:
    """`default` is a branch, whose outbox the relay drains into `secondary`, which is also home."""
    bank.open_bank()
    return configured_crash_pair


def publish(number: int, saga_id: str | None = None, account: str = "a") -> None:
    """An event of an account, written by a branch of the saga if one is named."""
    with transaction("default") as tx:
        if saga_id is not None:
            tx.ledger("outbox.saga_id").append(saga_id)
        enqueue(tx, [Moved(account=account, number=number)])


def put_record(
    database: TestDatabase, role: str, state: str, *, participant: str, home: str = "secondary", saga_id: str = SAGA
) -> None:
    """A record as a saga writes it."""
    database.execute(
        "INSERT INTO crosstie_saga (saga_id, step, participant, role, state, name, home, participants, undo_log,"
        " created_at_ms, updated_at_ms, expires_at_ms, next_at_ms, attempts)"
        " VALUES (%s, 0, %s, %s, %s, 'test', %s, '[]', '[]', 0, 0, 0, 0, 0)",
        (saga_id, participant, role, state, home),
    )


def in_branch(pair: Pair, state: str | None) -> None:
    """The branch's record."""
    if state is not None:
        put_record(pair.first, "branch", state, participant="default")


def in_home(pair: Pair, state: str | None) -> None:
    """Home's record."""
    if state is not None:
        put_record(pair.second, "home", state, participant="secondary")


def arrived(pair: Pair) -> list[int]:
    """The numbers of the movements that arrived."""
    return [number for _, number in bank.arrivals(pair.second)]


@pytest.mark.parametrize(
    ("state", "home"), [(None, None), ("done", None), ("done", "committed"), ("applied", "committed")]
)
def test_events_of_a_committed_saga_leave(branch: Pair, state: str | None, home: str | None) -> None:
    """A branch record that is done or pruned says so by itself; one that is applied asks home."""
    publish(1)
    publish(2, SAGA)
    publish(3)
    in_branch(branch, state)
    in_home(branch, home)
    assert sweep_lanes("default", owner="one") == 3
    assert arrived(branch) == [1, 2, 3]
    assert bank.stored(branch.first) == 0


@pytest.mark.parametrize("home", [None, "finished"])
def test_events_of_an_undecided_saga_stop_their_lane(branch: Pair, home: str | None) -> None:
    """What stands before them leaves; they and what follows wait, without being called a failure."""
    publish(1)
    publish(2, SAGA)
    publish(3)
    in_branch(branch, "applied")
    in_home(branch, home)
    assert sweep_lanes("default", owner="one") == 1
    assert arrived(branch) == [1]
    assert bank.stored(branch.first) == 2
    assert branch.first.rows("SELECT failures, owner FROM crosstie_lane WHERE ready_at_ms > 0") == [(0, "")]


def test_a_decision_lets_the_lane_go_on_in_order(branch: Pair) -> None:
    """As soon as home says committed, what waited leaves in the order of its ids."""
    publish(1, SAGA)
    publish(2)
    in_branch(branch, "applied")
    assert sweep_lanes("default", owner="one") == 0
    in_home(branch, "committed")
    bank.ready_now(branch.first)
    assert sweep_lanes("default", owner="one") == 2
    assert arrived(branch) == [1, 2]


@pytest.mark.parametrize(("state", "home"), [("applied", "aborted"), ("undone", None), ("refused", None)])
def test_events_of_an_aborted_saga_never_leave(branch: Pair, state: str, home: str | None) -> None:
    """They are deleted unseen, and hold nobody up."""
    publish(1, SAGA)
    publish(2)
    publish(3, SAGA)
    in_branch(branch, state)
    in_home(branch, home)
    assert sweep_lanes("default", owner="one") == 1
    assert arrived(branch) == [2]
    assert bank.stored(branch.first) == 0


def test_only_the_lane_of_an_undecided_event_stops(branch: Pair) -> None:
    """Another account's events are in another lane, and leave."""
    publish(1, SAGA)
    publish(1, account="b")
    in_branch(branch, "applied")
    assert sweep_lanes("default", owner="one") == 1
    assert bank.arrivals(branch.second) == [("b", 1)]


def test_a_home_that_cannot_be_asked_makes_the_lane_back_off(branch: Pair) -> None:
    """What stands before the event still leaves, and the lane says whom it waits for."""
    publish(1)
    publish(2, SAGA)
    put_record(branch.first, "branch", "applied", participant="default", home="nowhere")
    assert sweep_lanes("default", owner="one") == 1
    ((failures, error),) = branch.first.rows("SELECT failures, last_error FROM crosstie_lane WHERE failures > 0")
    assert failures == 1
    assert "waits for the decision of saga saga-1" in error
    assert "'nowhere'" in error


def test_an_abort_between_reading_and_asking_home_is_seen(branch: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader was paused: meanwhile the saga was aborted, undone, and its records pruned. Nothing leaves."""
    publish(1, SAGA)
    in_branch(branch, "applied")
    ask = batch.home_states

    def paused(*arguments: object) -> Mapping[str, str]:
        branch.first.execute("DELETE FROM crosstie_outbox WHERE saga_id IS NOT NULL")
        branch.first.execute("DELETE FROM crosstie_saga WHERE saga_id = %s", (SAGA,))
        return ask(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(decision, "home_states", paused)
    assert sweep_lanes("default", owner="one") == 0
    bank.ready_now(branch.first)
    assert sweep_lanes("default", owner="one") == 0
    assert arrived(branch) == []


def test_home_is_asked_once_for_a_batch(branch: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many of its sagas the batch holds."""
    asked = []
    ask = batch.home_states

    def noted(database: object, saga_ids: Iterable[str]) -> Mapping[str, str]:
        asked.append(sorted(saga_ids))
        return ask(database, saga_ids)  # type: ignore[arg-type]

    monkeypatch.setattr(decision, "home_states", noted)
    for number in range(1, 6):
        saga_id = f"saga-{number}"
        publish(number, saga_id)
        put_record(branch.first, "branch", "applied", participant="default", saga_id=saga_id)
        put_record(branch.second, "home", "committed", participant="secondary", saga_id=saga_id)
    assert sweep_lanes("default", owner="one") == 5
    assert asked == [[f"saga-{number}" for number in range(1, 6)]]


def test_a_second_name_of_the_same_database_does_not_let_events_out(configured_crash_pair: Pair) -> None:
    """A saga wrote through the name `alias`, the relay drains as `default`: the record is found all the same."""
    pair = configured_crash_pair
    ConnectionManager.configure(pair.configuration | {"alias": pair.first.config})
    bank.open_bank()
    publish(1, SAGA)
    put_record(pair.first, "branch", "applied", participant="alias")
    assert sweep_lanes("default", owner="one") == 0
    bank.ready_now(pair.first)
    assert drain("alias", "secondary", owner="two") == 0
    in_home(pair, "committed")
    bank.ready_now(pair.first)
    assert drain("alias", "secondary", owner="two") == 1
    assert arrived(pair) == [1]


def row(number: int, state: str | None = None, saga_id: str | None = SAGA) -> OutboxRow:
    """A row as it was read from the lane."""
    home = None if state is None else "h"
    return OutboxRow(number, str(number), "k", "t", 1, "{}", "{}", saga_id, state, home)


@pytest.mark.parametrize(
    ("state", "decision", "fate"),
    [
        (None, None, "apply"),
        ("done", None, "apply"),
        ("applied", "committed", "apply"),
        ("applied", "aborted", "drop"),
        ("applied", "finished", "held"),
        ("applied", None, "held"),
        ("undone", None, "drop"),
        ("refused", None, "drop"),
    ],
)
def test_what_becomes_of_a_row(state: str | None, decision: str | None, fate: str) -> None:
    """The whole table of decisions, as a pure function."""
    plain: Callable[[int], OutboxRow] = lambda number: row(number, saga_id=None)  # noqa: E731
    verdict = sort_out([plain(1), row(2, state), plain(3)], {SAGA: decision} if decision else {})
    rest = [] if fate == "held" else [3]
    assert [one.id for one in verdict.apply] == [1, *([2] if fate == "apply" else []), *rest]
    assert list(verdict.drop) == ([2] if fate == "drop" else [])
    assert (verdict.held.id if verdict.held else None) == (2 if fate == "held" else None)

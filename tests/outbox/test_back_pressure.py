"""Batches are as large as the target takes them in time, and a target has no more workers on it than it is given."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import pytest

from bench.databases import Pair
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.transaction import transaction
from crosstie.outbox import drain, sweep, sweep_lanes, target
from crosstie.outbox.batch import OutboxRow
from crosstie.outbox.errors import BatchRefused, DeliveryFailed, TargetFailed
from crosstie.outbox.isolation import isolate
from crosstie.outbox.lane import Lease
from crosstie.outbox.pace import Pace
from outbox import bank


def configure(pair: Pair, monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    """With other settings of the outbox."""
    for name, value in settings.items():
        monkeypatch.setenv(f"CROSSTIE_OUTBOX__{name}", value)
    ConnectionManager.configure(pair.configuration)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many events each transaction of a target is given."""
    seen: list[int] = []
    apply = target.DatabaseTarget.apply

    def noted(self: target.DatabaseTarget, lease: Lease, rows: Sequence[OutboxRow]) -> frozenset[int]:
        seen.append(len(rows))
        return apply(self, lease, rows)

    monkeypatch.setattr(target.DatabaseTarget, "apply", noted)
    return seen


def publish(count: int) -> None:
    """Events of one key, in one transaction."""
    with transaction("default"):
        for number in range(count):
            bank.Moved(account="a", number=number).publish()


def test_batches_double_while_the_target_is_quick(
    configured_crash_pair: Pair, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    """Up to the configured most."""
    configure(configured_crash_pair, monkeypatch, BATCH_TARGET_S="60", BATCH_SIZE="600")
    bank.open_bank()
    publish(1400)
    assert sweep_lanes("default", owner="one", limit_s=60) == 1400
    assert sizes == [250, 500, 600, 50]


def test_lanes_that_have_a_backlog_move_on_together(configured: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """None waits until another is empty; a lane is given back in the transaction that acknowledges its batch."""
    configure(configured, monkeypatch, BATCH_SIZE="10")
    monkeypatch.setattr(sweep, "VISIT_S", 0.0)
    bank.open_bank()
    with transaction("default"):
        for number in range(30 * 4):
            bank.Moved(account=f"account {number % 20}", number=number).publish()
    lengths = dict(configured.first.rows("SELECT lane, count(*) FROM crosstie_outbox GROUP BY lane"))
    assert len(lengths) > 1
    visited: list[int] = []
    apply = target.DatabaseTarget.apply

    def noted(self: target.DatabaseTarget, lease: Lease, rows: Sequence[OutboxRow]) -> frozenset[int]:
        visited.append(lease.lane)
        return apply(self, lease, rows)

    monkeypatch.setattr(target.DatabaseTarget, "apply", noted)
    assert drain("default", "secondary", owner="one", limit_s=60) == 120
    left = {lane: -(-length // 10) for lane, length in lengths.items()}
    while left:  # one batch of each lane that still has any, in whatever order
        turn, visited = visited[: len(left)], visited[len(left) :]
        assert sorted(turn) == sorted(left)
        left = {lane: batches - 1 for lane, batches in left.items() if batches > 1}
    assert not visited
    assert configured.first.scalar("SELECT count(*) FROM crosstie_lane WHERE owner <> ''") == 0


def test_batches_shrink_where_the_target_is_slow(
    configured_crash_pair: Pair, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    """Any batch takes longer than this."""
    configure(configured_crash_pair, monkeypatch, BATCH_TARGET_S="0.000001")
    bank.open_bank()
    publish(550)
    assert sweep_lanes("default", owner="one", limit_s=60) == 550
    assert sizes == [250, 125, 62, 50, 50, 13]


def test_no_more_lanes_of_a_route_are_claimed_than_the_target_is_to_serve(
    configured_crash_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two others have two of them: a third worker leaves the rest alone, until one is given back."""
    configure(configured_crash_pair, monkeypatch, LANES_PER_TARGET="2")
    bank.open_bank()
    for name in "abc":
        bank.transfer(name)
    busy = (
        "UPDATE crosstie_lane SET owner = 'x', lease_until_ms = 99999999999999 WHERE route = 'secondary' AND lane = %s"
    )
    with_events = [row[0] for row in configured_crash_pair.first.rows("SELECT DISTINCT lane FROM crosstie_outbox")]
    idle = [lane for lane in range(4) if lane not in with_events][:1] or [with_events.pop()]
    for lane in [idle[0], with_events.pop()]:
        configured_crash_pair.first.execute(busy, (lane,))
    assert sweep_lanes("default", owner="one") == 0
    assert configured_crash_pair.first.scalar("SELECT max(epoch) FROM crosstie_lane") == 0
    bank.ready_now(configured_crash_pair.first)
    assert sweep_lanes("default", owner="one") == 3


def test_the_pace_follows_the_time_that_batches_take() -> None:
    """Twice as many at most, half as many at least, never fewer than 50, and only after full batches."""
    pace = Pace(1000, 0.5)
    taken = []
    for count, seconds in [(250, 0.1), (30, 0.1), (500, 0.4), (1000, 0.4), (1000, 0.7), (714, 5.0)]:
        pace.applied(count, seconds)
        taken.append(pace.size)
    assert taken == [500, 500, 1000, 1000, 714, 357]
    for _ in range(9):
        pace.applied(pace.size, 5.0)
    assert pace.size == 50


def test_a_refusal_makes_the_next_batches_small_until_it_is_found() -> None:
    """Then they grow again."""
    pace = Pace(1000, 0.5)
    pace.refused(0)
    assert pace.size == 1
    for size in (2, 4, 8):
        pace.applied(pace.size, 0.01)
        assert pace.size == size


def rows(count: int) -> list[OutboxRow]:
    """Events that are numbered from 0."""
    return [OutboxRow(number, str(number), str(number), "t", 1, "{}", "{}") for number in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 8, 50])
def test_a_refused_event_is_found_in_few_attempts(count: int) -> None:
    """However the target refuses: the part before it goes through, or it is left alone."""
    for bad in range(count):
        attempts = 0

        def apply(part: Sequence[OutboxRow], bad: int = bad) -> None:
            nonlocal attempts
            attempts += 1
            if any(row.id == bad for row in part):
                raise BatchRefused

        applied: list[int] = []
        done = isolate(rows(count), apply, lambda _, __: False)
        while done.bad is None:
            applied += [row.id for row in done.applied]
            done = isolate(rows(count)[len(applied) :], apply, lambda _, __: False)
        assert (done.bad.id, applied) == (bad, list(range(bad)))
        assert attempts <= count.bit_length() * (count.bit_length() + 1)


def failing_at(position: int, *, passing: bool = False, taken: int | None = None) -> Sequence[Exception]:
    """What the target raises."""
    if taken is not None:
        return [TargetFailed("no luck", taken=taken)]
    return [DeliveryFailed("no luck", position=position, passing=passing)]


@pytest.mark.parametrize("error", [failing_at(3, passing=True)[0], failing_at(0, taken=3)[0]])
def test_a_failure_keeps_what_it_says_beside_its_message_when_it_is_pickled(error: Exception) -> None:
    """Celery's workers send exceptions from one process to another."""
    back = pickle.loads(pickle.dumps(error))  # noqa: S301 - made on the line itself
    assert (type(back), str(back), vars(back)) == (type(error), "no luck", vars(error))
    assert 3 in vars(back).values()


@pytest.mark.parametrize(
    ("errors", "stops", "applied", "bad"),
    [
        (failing_at(2), False, 2, 2),
        (failing_at(0), False, 0, 0),
        (failing_at(2), True, 2, None),
        (failing_at(2, passing=True), True, 0, None),
        (failing_at(2, passing=True), False, 2, 2),
        ([*failing_at(3), *failing_at(1)], False, 1, 1),
        ([*failing_at(3), BatchRefused()], False, 1, None),
        (failing_at(0, taken=3), False, 3, None),
    ],
)
def test_what_goes_through_before_a_failure(
    errors: Sequence[Exception], stops: bool, applied: int, bad: int | None
) -> None:
    """By kind of failure; each error is raised once, in this order."""
    left = list(errors)

    def apply(_: Sequence[OutboxRow]) -> None:
        if left:
            raise left.pop(0)

    done = isolate(rows(5), apply, lambda _, __: stops)
    assert [row.id for row in done.applied] == list(range(applied))
    assert (done.bad.id if done.bad else None) == bad


def test_a_target_that_took_nothing_is_the_callers_affair() -> None:
    """The lane backs off."""

    def apply(_: Sequence[OutboxRow]) -> None:
        raise TargetFailed

    with pytest.raises(TargetFailed):
        isolate(rows(3), apply, lambda _, __: False)

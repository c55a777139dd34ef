"""A write that nobody would be told of is refused, and passes by itself once the routes are stored."""

from __future__ import annotations

import pytest

from bench.databases import Pair
from copies import forum
from crosstie.orm import ConnectionManager
from crosstie.orm.transaction import transaction
from crosstie.outbox import Event, subscriber, sweep_lanes, sync_routes
from crosstie.outbox.backlog import pending
from crosstie.outbox.errors import CacheUnrouted, CopyUnrouted, ReferenceUnrouted, Unrouted


class Renamed(Event):
    """A user calls itself otherwise."""

    __event_type__ = "test.unrouted.renamed"
    __key__ = "user_id"

    user_id: int
    username: str


def unroute(pair: Pair) -> None:
    """The users' database forgets who keeps copies, as if no worker had started since the copies were declared."""
    gone = "DELETE FROM crosstie_route WHERE event_type <> %s"
    assert pair.first.execute(gone, (Renamed.__event_type__,))
    ConnectionManager.configure(pair.configuration)  # which remembers no route that it has seen


@pytest.mark.parametrize("kind", [CacheUnrouted, CopyUnrouted, ReferenceUnrouted])
def test_the_error_says_that_the_same_call_may_pass_later(kind: type[Unrouted]) -> None:
    """For callers that look at `retryable`, and for the relay."""
    assert kind.retryable
    assert kind.code != Unrouted.code


@pytest.mark.parametrize("when", ["at once", "before the commit"])
def test_a_subscriber_whose_write_is_unrouted_waits_for_the_routes(
    configured_crash_pair: Pair, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Its event is not given up after the only attempt that it has; nobody need redrive it."""
    monkeypatch.setenv("CROSSTIE_OUTBOX__ATTEMPTS", "1")
    ConnectionManager.configure(configured_crash_pair.configuration)
    models = forum.define()

    @subscriber(Renamed, database="default")
    def rename(event: Renamed) -> None:
        def write() -> None:
            models.User.find(event.user_id).update(username=event.username)

        if when == "at once":
            write()
        else:
            with transaction("default") as tx:
                tx.before_commit(lambda _: write())

    forum.open_forum(models)
    ann = models.User(username="ann").save()
    models.Post(user_id=ann.id).save()
    forum.settle(configured_crash_pair.databases)
    unroute(configured_crash_pair)
    with transaction("secondary"):
        Renamed(user_id=ann.id, username="anna").publish()

    sweep_lanes("secondary", owner="test")
    (waiting,) = [one for one in pending("secondary") if one.route == "default"]
    assert (waiting.depth, waiting.parked, waiting.dead) == (1, 0, 0)
    assert "Run `crosstie init`" in str(waiting.last_error)
    assert configured_crash_pair.first.scalar("SELECT username FROM users") == "ann"

    assert not sync_routes().failed
    forum.settle(configured_crash_pair.databases)
    assert configured_crash_pair.first.scalar("SELECT username FROM users") == "anna"
    assert forum.copied(configured_crash_pair) == [(ann.id, "anna")]

"""Ringing never costs the caller anything, whatever the broker does."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator

import pytest

from bench.processes import Spawner
from bench.waiting import eventually
from crosstie.sagas.record import SagaHeader
from crosstie.workers import doorbell
from crosstie.workers.doorbell import PENDING_LIMIT, Bell, DrainRing, ResolveRing, Ring


class Sender:
    """A broker that records, and that a test can block or break."""

    def __init__(self) -> None:
        self.batches: list[list[Ring]] = []
        self.entered = threading.Event()
        self.passing = threading.Event()
        self.passing.set()
        self.error: Exception | None = None

    def __call__(self, batch: list[Ring]) -> None:
        self.batches.append(batch)
        self.entered.set()
        assert self.passing.wait(60)
        if self.error is not None:
            raise self.error


@pytest.fixture
def sender() -> Iterator[Sender]:
    """A sender that is unblocked at the test's end."""
    made = Sender()
    yield made
    made.passing.set()


RING = DrainRing("default", "secondary")


def test_a_ring_is_sent(sender: Sender) -> None:
    """By another thread than the one that rang."""
    bell = Bell(sender)
    bell.ring(RING)
    assert bell.flush(60)
    assert sender.batches == [[RING]]


def test_a_broker_that_hangs_holds_up_no_caller(sender: Sender) -> None:
    """The sender is stuck inside the first batch, and a thousand rings return meanwhile."""
    bell = Bell(sender)
    sender.passing.clear()
    bell.ring(RING)
    assert sender.entered.wait(60)
    for number in range(1000):
        bell.ring(DrainRing("default", f"route {number % 3}"))
    assert len(sender.batches) == 1  # still in it: nothing that was rung needed the sender to return
    sender.passing.set()
    assert bell.flush(60)
    assert sender.batches[1:] == [[DrainRing("default", f"route {number}") for number in range(3)]]


def test_rings_that_nobody_sends_are_bounded(sender: Sender) -> None:
    """A broker that hangs for an hour costs no memory: the sweep finds what was dropped."""
    bell = Bell(sender)
    sender.passing.clear()
    bell.ring(RING)
    assert sender.entered.wait(60)
    for number in range(5 * PENDING_LIMIT):
        bell.ring(ResolveRing(f"saga {number}", "default"))
    sender.passing.set()
    assert bell.flush(60)
    assert sum(map(len, sender.batches)) == PENDING_LIMIT + 1


def test_a_dead_broker_is_logged_once_and_left_alone_for_a_while(
    sender: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    """During the pause rings are dropped; after it the next ring tries again, and success ends the outage."""
    caplog.set_level(logging.INFO)
    bell = Bell(sender, pause_s=3600)
    sender.error = ConnectionRefusedError("for a test")
    bell.ring(RING)
    assert bell.flush(60)
    for _ in range(10):
        bell.ring(RING)
    assert bell.flush(60)
    assert len(sender.batches) == 1

    bell.pause_s = 0
    bell._quiet_until_s = 0  # the hour has passed
    bell.ring(RING)
    assert bell.flush(60)
    sender.error = None
    bell.ring(RING)
    assert bell.flush(60)
    messages = [record.message for record in caplog.records]
    assert [message.partition(":")[0] for message in messages] == [
        "the doorbell fails, and is tried again (the sweep finds what it would have rung for)",
        "the doorbell works again",
    ]


def test_leaving_the_process_sends_what_is_left_but_waits_for_no_broker(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that publishes and ends rings; one whose broker hangs still ends."""
    bell = Bell(sender)
    bell.ring(RING)
    with monkeypatch.context() as patient:
        patient.setattr(doorbell, "FLUSH_AT_EXIT_S", 60.0)
        bell.close()
    assert sender.batches == [[RING]]
    bell.ring(RING)
    assert bell.flush(0)
    hanging = Bell(sender)
    sender.passing.clear()
    hanging.ring(RING)
    hanging.close()
    assert not hanging.flush(0)


def test_a_forked_child_rings_by_itself_and_repeats_nothing(sender: Sender) -> None:
    """The parent's thread does not exist in the child, and what the parent was sending is the parent's to send."""
    bell = Bell(sender)
    sender.passing.clear()
    bell.ring(RING)
    assert sender.entered.wait(60)
    bell.ring(DrainRing("default", "tertiary"))
    read, write = os.pipe()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bell, "send", lambda batch: os.write(write, repr(batch).encode()))
        pid = os.fork()
        if pid == 0:
            bell.after_fork()
            bell.ring(RING)
            os._exit(0 if bell.flush(60) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(write)
    assert os.read(read, 1000).decode() == repr([RING])
    os.close(read)
    sender.passing.set()
    assert bell.flush(60)
    assert sender.batches == [[RING], [DrainRing("default", "tertiary")]]


def test_a_process_that_works_itself_rings_itself() -> None:
    """The sweeper hears what its handlers publish, without any broker."""
    heard: list[str] = []
    doorbell.deliver_locally(heard.append)
    try:
        doorbell.ring_for_drain("default", "secondary")
        doorbell.ring_for_saga(SagaHeader("1", "order", "tertiary", ("tertiary", "default")))
    finally:
        doorbell.deliver_locally(None)
    assert heard == ["default", "tertiary"]


PUBLISHING = """
    import os, threading
    from crosstie.orm import ConnectionManager, transaction
    from crosstie.outbox import Event, create_tables, subscriber, sync_routes
    from crosstie.workers import doorbell

    doorbell.FLUSH_AT_EXIT_S = doorbell._bell.pause_s = 60  # one outage, and it is told, however slow the machine is

    class Happened(Event):
        __event_type__ = "happened"
        number: int

    @subscriber(Happened, database="default")
    def note(event): ...

    ConnectionManager.configure({"default": "sqlite:///here.sqlite3"})
    create_tables(ConnectionManager.get("default"))
    sync_routes()
    for number in range(3):
        with transaction("default"):
            Happened(number=number).publish()
    print("published", threading.current_thread().name)
"""


@pytest.mark.parametrize("url", ["redis://127.0.0.1:9/0", "amqp://nobody:secret@127.0.0.1:9//"])
def test_publishing_with_a_dead_broker_succeeds_and_the_process_ends(spawn: Spawner, url: str) -> None:
    """Every commit stands, the outage is told once, and no password is in it."""
    output = spawn.code(PUBLISHING, environment={"CROSSTIE_BROKER_URL": url}).wait_ok()
    assert "published MainThread" in output
    assert output.count("the doorbell fails") == 1
    assert "secret" not in output
    events = eventually(lambda: sorted(path.name for path in spawn.folder.iterdir()))
    assert "here.sqlite3" in events

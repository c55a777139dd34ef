"""The broker in a file: for several processes at once, with nothing left over."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, Exchange, Producer, Queue
from sqlalchemy import event

from bench.processes import Spawner
from crosstie.workers import embedded

QUEUE = Queue("bells", Exchange("bells"), routing_key="bells")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Connection]:
    """A connection to a broker in the test's folder."""
    embedded.register()
    with Connection(embedded.embedded_url(tmp_path)) as connection:
        yield connection


def file_of(folder: Path) -> Path:
    """Where the embedded broker of this folder is."""
    return folder / ".crosstie" / "broker.sqlite3"


def send(connection: Connection, numbers: range) -> None:
    """Publish a message for each number."""
    with connection.channel() as channel:
        for number in numbers:
            Producer(channel).publish({"number": number}, exchange=QUEUE.exchange, routing_key="bells", declare=[QUEUE])


def receive_all(connection: Connection) -> list[int]:
    """Take every message from the queue."""
    numbers = []
    with connection.channel() as channel:
        queue = QUEUE(channel)
        queue.declare()
        while (message := queue.get()) is not None:
            message.ack()
            numbers.append(message.payload["number"])
    return numbers


def test_messages_arrive_in_order_and_leave_nothing_in_the_file(broker: Connection, tmp_path: Path) -> None:
    """Kombu's own transport keeps every message for ever."""
    send(broker, range(20))
    assert receive_all(broker) == list(range(20))
    assert receive_all(broker) == []
    with closing(sqlite3.connect(file_of(tmp_path))) as raw:
        assert raw.execute("SELECT count(*) FROM kombu_message").fetchone() == (0,)


def test_a_queue_that_nobody_empties_keeps_its_newest_messages_only(
    broker: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deployment whose workers are stopped for a week must not fill its disk with doorbells."""
    monkeypatch.setattr(embedded, "QUEUE_LIMIT", 5)
    send(broker, range(50))
    assert receive_all(broker) == [45, 46, 47, 48, 49]


def test_a_queue_can_be_counted_and_purged(broker: Connection) -> None:
    """What `celery purge` asks of a transport."""
    send(broker, range(3))
    with broker.channel() as channel:
        queue = QUEUE(channel)
        declared: Any = queue.queue_declare(passive=True)
        assert declared.message_count == 3
        assert queue.purge() == 3
    assert receive_all(broker) == []


PROCESS = """
    import sys
    from pathlib import Path
    from kombu import Connection, Exchange, Producer, Queue
    from crosstie.workers import embedded
    embedded.register()
    queue = Queue("bells", Exchange("bells"), routing_key="bells")
    print("up")
    sys.stdout.flush()
    while not Path("go").exists(): pass
    with Connection(embedded.embedded_url(Path.cwd())) as connection, connection.channel() as channel:
        for number in range(40):
            Producer(channel).publish({"number": number}, exchange=queue.exchange, routing_key="bells", declare=[queue])
"""


def test_processes_that_start_at_once_share_the_file(spawn: Spawner, broker: Connection, tmp_path: Path) -> None:
    """All create its tables, all write, and nobody is refused."""
    assert spawn.folder == tmp_path
    children = [spawn.code(PROCESS, name=f"sender {number}") for number in range(4)]
    for child in children:
        child.wait_for_line("up")
    (tmp_path / "go").touch()
    for child in children:
        child.wait_ok()
    assert sorted(receive_all(broker)) == sorted(list(range(40)) * 4)


def test_two_consumers_never_take_the_same_message(broker: Connection, tmp_path: Path) -> None:
    """Whoever deletes the row has the message; the other looks for the next one."""
    send(broker, range(3))
    with broker.channel() as channel, Connection(embedded.embedded_url(tmp_path)) as other, other.channel() as rival:
        assert isinstance(channel, embedded.Channel)
        engine = channel._open()[0]
        stolen: list[int] = []

        def before(_: object, __: object, statement: str, *___: object) -> None:
            if statement.startswith("DELETE") and not stolen:
                stolen.append(-1)  # first: the rival's own DELETE comes through here too
                taken: Any = QUEUE(rival).get(no_ack=True)
                stolen[0] = taken.payload["number"]

        event.listen(engine, "before_cursor_execute", before)
        message = QUEUE(channel).get(no_ack=True)
        assert message is not None
        assert (stolen, message.payload["number"]) == ([0], 1)


def test_only_the_user_can_read_the_brokers_folder(broker: Connection, tmp_path: Path) -> None:
    """Whoever can write doorbells can make workers busy."""
    send(broker, range(1))
    assert file_of(tmp_path).parent.stat().st_mode & 0o077 == 0

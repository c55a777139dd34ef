"""Streams of numbered events from `default` to `secondary`, and the processes that write them until killed.

Each number of a stream is written down in `stream_written` in the transaction that publishes it, so what must arrive is
known to the source alone, whatever a producer was told.
"""

from __future__ import annotations

import random
import sys
import threading
from functools import partial

import sqlalchemy as sa

from crosstie.orm import ActiveRecord, ConnectionManager, CrosstieError, transaction
from crosstie.orm.field import IntegerPKMixin
from crosstie.outbox import Event, publish
from crosstie.sagas import saga
from crosstie.workers import doorbell
from storm.mill import grind

__all__ = [
    "LATE_S",
    "MODELS",
    "STREAMS",
    "Applied",
    "Counted",
    "Stepped",
    "Stream",
    "Walked",
    "Written",
    "pause",
    "produce",
]

STREAMS = 24
LATE_S = 0.15
"""About so late a transaction commits that has its event's id."""


class Stream(IntegerPKMixin, ActiveRecord):
    """Whoever writes the next event of a stream holds its row, so that the order of commits is the order of numbers."""

    __table_name__ = "stream_streams"
    __connection__ = "default"

    id: int | None = None
    number: int = 0


class Written(IntegerPKMixin, ActiveRecord):
    """An event that was committed."""

    __table_name__ = "stream_written"
    __connection__ = "default"

    id: int | None = None
    stream: str
    number: int


class Aside(IntegerPKMixin, ActiveRecord):
    """The other branch of a saga."""

    __table_name__ = "stream_asides"
    __connection__ = "secondary"

    id: int | None = None
    stream: str


class Applied(IntegerPKMixin, ActiveRecord):
    """An event that took effect; ids tell the order in which events did."""

    __table_name__ = "stream_applied"
    __connection__ = "secondary"

    id: int | None = None
    stream: str
    number: int


class Counted(IntegerPKMixin, ActiveRecord):
    """How many events of a stream took effect, added up; the last row is for the events of sagas."""

    __table_name__ = "stream_counted"
    __connection__ = "secondary"

    id: int | None = None
    events: int = 0


MODELS: list[type[ActiveRecord]] = [Stream, Written, Aside, Applied, Counted]


class Stepped(Event):
    """Applied one at a time."""

    __event_type__ = "stream.stepped"
    __key__ = "stream"

    stream: str
    number: int


class Walked(Event):
    """Applied many at a time; of the same streams as the others."""

    __event_type__ = "stream.walked"
    __key__ = "stream"

    stream: str
    number: int


class GivenUp(Exception):
    """Raised where a producer thinks better of what it has written."""


class Producer:
    """Writes one random thing after another."""

    def __init__(self, name: str, seed: int) -> None:
        self._name = name
        self._choose = random.Random(seed)
        self._done = 0

    def step(self) -> int:
        """One transaction or saga, which may raise; returns how many events it has committed."""
        self._done += 1
        act = self._choose.choices([self.ordinary, self.late, self.given_up, self.story], weights=[8, 4, 1, 1])[0]
        return act()

    def ordinary(self, first: int = 1) -> int:
        """Some events of a stream, from the `first` on, written as the last act of their transaction."""
        key = self._choose.randint(first, STREAMS)
        with transaction("default"):
            stream = Stream.find_all().where(id=key).for_update().first()
            assert stream is not None
            return self._extend(stream)

    def given_up(self) -> int:
        """The same, rolled back: these events must never be seen, and their numbers are used again."""
        try:
            with transaction("default"):
                self.ordinary()
                raise GivenUp
        except GivenUp:
            return 0

    def late(self) -> int:
        """An event that has its id, and commits when those with greater ids may have been delivered."""
        with ConnectionManager.get("default").engine.begin() as connection:
            key = self._choose.randint(1, STREAMS // 2)
            streams, written = sa.table("stream_streams", sa.column("id"), sa.column("number")), "stream_written"
            mine = streams.c.id == key
            connection.execute(sa.update(streams).where(mine).values(number=streams.c.number + 1))
            number = int(connection.execute(sa.select(streams.c.number).where(mine)).scalar_one())
            table = sa.table(written, sa.column("stream"), sa.column("number"))
            connection.execute(sa.insert(table).values(stream=str(key), number=number))
            publish(Stepped(stream=str(key), number=number), connection)
            others = 0
            for _ in range(self._choose.randint(1, 6)):
                pause(self._choose.uniform(0, LATE_S / 2))
                if connection.dialect.name != "sqlite":  # which has one writer at a time
                    # Of the other half, whose holders wait for nobody: else two producers could wait for each other.
                    others += self.ordinary(STREAMS // 2 + 1)
        return others + 1

    def story(self) -> int:
        """A stream of one event, in a saga that is sometimes given up; its events may wait for the saga's home."""
        name = f"{self._name}-{self._done}"
        try:
            with saga("stream", home=self._choose.choice(["default", "secondary"]), expiry_s=0.5):
                Written(stream=name, number=1).save()
                Aside(stream=name).save()
                Stepped(stream=name, number=1).publish("default")
                if self._choose.random() < 0.3:
                    raise GivenUp
        except GivenUp:
            return 0
        return 1

    def _extend(self, stream: Stream) -> int:
        first, count = stream.number + 1, self._choose.randint(1, 10)
        stream.update(number=stream.number + count)
        numbers = range(first, first + count)
        Written.bulk_create([Written(stream=str(stream.id), number=number) for number in numbers])
        for number in numbers:
            self._choose.choice([Stepped, Walked, Walked])(stream=str(stream.id), number=number).publish("default")
        return count


def pause(seconds: float) -> None:
    """Let time pass: these programs have a pace, and nothing to wait for."""
    threading.Event().wait(seconds)


def write(number: int, seed: int, *, per_second: float) -> int:
    """Write until killed; a failed write is as good as any."""
    if number % 3:  # were all of them to ring, the doorbells would cost more than the events
        doorbell.deliver_locally(lambda _: None)
    name = f"producer {number}"
    producer = Producer(name, seed)
    while True:
        try:
            pause(max(1, producer.step()) / per_second)
        except (CrosstieError, sa.exc.SQLAlchemyError) as error:
            sys.stdout.write(f"{name}: {type(error).__name__}\n")
            sys.stdout.flush()
            pause(0.02)


def produce(count: int, seed: int, per_second: float) -> None:
    """Keep so many producers."""
    import storm.stream_worker  # noqa: F401 - its app carries the doorbells

    ConnectionManager.configure()
    grind(partial(write, per_second=per_second), count, seed)

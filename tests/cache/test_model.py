"""Random schedules of readers, writers that die, relays that deliver twice, and evictions, against a real Redis.

The databases are dictionaries here; the cache's part is the real one. Promise: what a reader finds is the row as it is,
or a change of it has been committed whose event has not been delivered yet.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import pytest
import redis
from pydantic import SecretStr

from crosstie.orm.cache import redis_rows
from crosstie.orm.cache.redis_rows import Looked, RedisRows
from crosstie.orm.cache.request import Shelf
from crosstie.orm.configuration import CacheSettings

KEYS: Final = ("1", "2", "3")
SHELVES: Final = [Shelf("default", "authors", "id", form) for form in ("narrow", "wide")]
STEPS: Final = 400


@pytest.fixture
def rows(redis_url: str, prefix: str) -> Iterator[RedisRows]:
    """The cache's part."""
    made = RedisRows(CacheSettings(redis_url=SecretStr(redis_url), prefix=prefix, timeout_s=5))
    yield made
    made.close()


@pytest.fixture
def redis_server(redis_url: str, prefix: str) -> tuple[str, str]:
    """Its URL, and how the test's names begin."""
    return redis_url, prefix


@dataclass
class Reader:
    """Somebody between a look and a fill."""

    shelf: Shelf
    looked: Looked
    read: dict[str, str] | None = None


@dataclass
class World:
    """A table, its outbox, and who is at work."""

    rows: RedisRows
    chance: random.Random
    redis: redis.Redis
    prefix: str
    table: dict[str, int | None] = field(default_factory=lambda: dict.fromkeys(KEYS, 0))
    outbox: list[tuple[str, ...] | None] = field(default_factory=list)
    """Keys of changed rows; None for all of the table."""
    readers: list[Reader] = field(default_factory=list)
    versions: int = 0
    hits: int = 0
    refused: int = 0

    def look(self) -> None:
        """Begin to read, and check what was found."""
        shelf = self.chance.choice(SHELVES)
        looked = self.rows.look(shelf, self.some_keys(), lease=self.chance.random() < 0.9)
        self.hits += len(looked.rows)
        for key, row in looked.rows.items():
            told = all(event is not None and key not in event for event in self.outbox)
            assert not told or row.decode() == str(self.table[key]), f"{key} is {row!r} and was {self.table[key]}"
        if looked.leases:
            self.readers.append(Reader(shelf, looked))

    def read(self) -> None:
        """Ask the database."""
        waiting = [reader for reader in self.readers if reader.read is None]
        if waiting:
            reader = self.one_of(waiting)
            there = {key: self.table[key] for key in reader.looked.leases}
            reader.read = {key: str(value) for key, value in there.items() if value is not None}

    def fill(self) -> None:
        """Bring what was read, however late."""
        ready = [reader for reader in self.readers if reader.read is not None]
        if ready:
            reader = self.one_of(ready)
            self.readers.remove(reader)
            assert reader.read is not None
            filled = self.rows.fill(reader.shelf, reader.read, reader.looked, ttl_s=60)
            self.refused += len(reader.read) - filled

    def write(self) -> None:
        """Commit a change and its event; the short way is taken, or the writer dies."""
        keys = tuple(self.some_keys())
        self.versions += 1
        self.table.update(dict.fromkeys(keys, None if self.chance.random() < 0.2 else self.versions))
        event = keys if self.chance.random() < 0.8 else None
        self.outbox.append(event)
        if self.chance.random() < 0.5:
            self.tell(event)

    def deliver(self) -> None:
        """Carry an event, in any order; its acknowledgement may be lost."""
        if self.outbox:
            event = self.chance.choice(self.outbox)
            self.tell(event)
            if self.chance.random() < 0.7:
                self.outbox.remove(event)

    def evict(self) -> None:
        """Redis loses one of its names, or the time of all leases runs out."""
        word = self.chance.choice(("*", "lease:*"))
        names = sorted(self.redis.scan_iter(f"{self.prefix}:{word}"))
        if names:
            self.redis.delete(*(names if word == "lease:*" else [self.chance.choice(names)]))

    def tell(self, event: tuple[str, ...] | None) -> None:
        """Have Redis forget."""
        self.rows.forget("default", {"authors": None if event is None else {"id": list(event)}})

    def one_of(self, readers: list[Reader]) -> Reader:
        """Mostly the last; now and then one that has stood still."""
        return readers[-1] if self.chance.random() < 0.7 else self.chance.choice(readers)

    def some_keys(self) -> list[str]:
        """One or more."""
        return self.chance.sample(KEYS, self.chance.randint(1, len(KEYS)))


def run(world: World) -> None:
    """A schedule of steps; then everything is delivered, and nothing that was read before comes in."""
    steps = [world.look] * 6 + [world.read] * 4 + [world.fill] * 4 + [world.write] * 2 + [world.deliver] * 2
    for _ in range(STEPS):
        world.chance.choice([*steps, world.evict, world.evict])()
    while world.outbox:
        world.deliver()
    while any(reader.read is not None for reader in world.readers):
        world.fill()
    for _ in range(10):
        world.look()


@pytest.mark.parametrize("seed", range(20))
def test_what_is_found_is_as_old_as_its_event_at_most(rows: RedisRows, redis_url: str, prefix: str, seed: int) -> None:
    """In any order of steps."""
    with redis.Redis.from_url(redis_url) as client:
        world = World(rows, random.Random(seed), client, prefix)
        run(world)
    assert world.hits > 0, "the cache was of use"
    assert world.refused > 0, "a late reader came"


@pytest.mark.parametrize(
    ("script", "safeguard", "without"),
    [
        ("_FILL", "redis.call('GET', KEYS[i + 1]) == ARGV[3] .. ARGV[2]", "true"),
        ("_LOOK", "has(row)", "row"),
    ],
    ids=["the lease", "the generation"],
)
def test_each_safeguard_is_missed(
    redis_server: tuple[str, str], monkeypatch: pytest.MonkeyPatch, script: str, safeguard: str, without: str
) -> None:
    """Left out, some schedule finds a row that is older than it may be: the model can fail."""
    redis_url, prefix = redis_server
    text = getattr(redis_rows, script)
    assert safeguard in text
    monkeypatch.setattr(redis_rows, script, text.replace(safeguard, without))
    rows = RedisRows(CacheSettings(redis_url=SecretStr(redis_url), prefix=prefix, timeout_s=5))
    try:
        with redis.Redis.from_url(redis_url) as client, pytest.raises(AssertionError, match="and was"):
            for seed in range(100):
                run(World(rows, random.Random(seed), client, prefix))
                for name in client.scan_iter(f"{prefix}:*"):
                    client.delete(name)
    finally:
        rows.close()

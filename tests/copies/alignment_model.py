"""A model of how copies are kept right: writers, sagas and workers, whose steps are interleaved at random.

Its three rules can be left out one by one: the tests show that a copy stays wrong then.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["Rules", "World", "wrong_copies"]

PARENTS = (1, 2)
CROWD = 6
"""Actors at once."""


@dataclass(frozen=True)
class Rules:
    """What the design rests on."""

    children_tell: bool = True
    """A row that is written with a looked-up value has an event of its own."""
    lock_first: bool = True
    """A worker reads the originals after it has locked the rows."""
    undo_tells: bool = True
    """An undo writes events for what it brings back."""


@dataclass
class World:
    """What is committed in both databases."""

    rules: Rules
    choose: random.Random
    originals: dict[int, int] = field(default_factory=lambda: dict.fromkeys(PARENTS, 0))
    children: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By key: the foreign key and the copy."""
    locked: dict[int, object] = field(default_factory=dict)
    events: list[tuple[str, int, int]] = field(default_factory=list)
    """What is to be looked at, its key, and a number."""
    values: int = 0

    def next_value(self) -> int:
        """A value that was never there before."""
        self.values += 1
        return self.values

    def tell(self, kind: str, key: int) -> None:
        """Write an event, in the transaction of this step."""
        self.events.append((kind, key, self.next_value()))

    def lock(self, keys: list[int], owner: object) -> Iterator[None]:
        """Wait for these rows, in order."""
        for key in keys:
            while self.locked.get(key, owner) is not owner:
                yield
            self.locked[key] = owner

    def unlock(self, owner: object) -> None:
        """Commit or rollback."""
        self.locked = {key: other for key, other in self.locked.items() if other is not owner}

    # -- actors: each step up to a `yield` is atomic --------------------------------------------------------

    def rename(self, key: int) -> Iterator[None]:
        """Write an original and its event in one transaction."""
        self.originals[key] = self.next_value()
        self.tell("original", key)
        yield

    def saga(self, key: int) -> Iterator[None]:
        """A branch that commits a value, and later the decision; its event leaves only if it is committed."""
        before = self.originals[key]
        self.originals[key] = mine = self.next_value()
        yield
        if self.choose.random() < 0.5:
            self.tell("original", key)
        elif self.originals[key] == mine:  # else the undo is a conflict, and somebody has told of the new value
            self.originals[key] = before
            if self.rules.undo_tells:
                self.tell("original", key)
        yield

    def insert(self, child: int, key: int) -> Iterator[None]:
        """Look the original up, and commit the row later."""
        value = self.originals[key]
        yield
        self.children[child] = (key, value)
        self._tell_of(child)
        yield

    def move(self, child: int, key: int) -> Iterator[None]:
        """Give a row another parent, with the copy that was looked up before the row was locked."""
        value = self.originals[key]
        yield
        if child not in self.children:
            return
        owner = object()
        yield from self.lock([child], owner)
        yield
        self.children[child] = (key, value)
        self._tell_of(child)
        self.unlock(owner)

    def _tell_of(self, child: int) -> None:
        if self.rules.children_tell:
            self.tell("child", child)

    def work(self) -> Iterator[None]:
        """Apply any event, which may be an old one, may be applied by another worker too, and may be abandoned."""
        if not self.events:
            return
        kind, key, _ = event = self.choose.choice(self.events)
        owner, crashes = object(), self.choose.random() < 0.2
        read = dict(self.originals)
        yield
        rows = [key] if kind == "child" else sorted(c for c, (foreign, _) in self.children.items() if foreign == key)
        yield from self.lock(rows, owner)
        if self.rules.lock_first:
            yield
            read = dict(self.originals)
        yield
        if not crashes:
            for row in rows:
                foreign, _ = self.children[row]
                if kind == "child" or foreign == key:
                    self.children[row] = (foreign, read[foreign])
        self.unlock(owner)
        yield
        if not crashes and event in self.events:
            self.events.remove(event)


def wrong_copies(rules: Rules, seed: int) -> list[int]:
    """Run one random schedule to its end, until no event is left; the children whose copy is not the original."""
    choose = random.Random(seed)
    world = World(rules, choose)
    waiting: list[Iterator[None]] = [
        *(world.rename(choose.choice(PARENTS)) for _ in range(3)),
        *(world.saga(choose.choice(PARENTS)) for _ in range(2)),
        *(world.insert(child, choose.choice(PARENTS)) for child in range(4)),
        *(world.move(choose.randrange(4), choose.choice(PARENTS)) for _ in range(2)),
    ]
    choose.shuffle(waiting)
    running: list[Iterator[None]] = []
    while waiting or running or world.events:
        if waiting and len(running) < CROWD and choose.random() < 0.3:
            running.append(waiting.pop())
        if len(running) < CROWD and (choose.random() < 0.3 or not (waiting or running)):
            running.append(world.work())
        if running:
            actor = choose.choice(running)
            if next(actor, running) is running:
                running.remove(actor)
    return [child for child, (foreign, copy) in world.children.items() if copy != world.originals[foreign]]

"""The relay's protocol as a few lines of plain Python, run over random schedules.

One lane, a source and a target. A step is one transaction of one participant, or less than that where it may be paused
or killed in between. Writers hold their key's lock from before an event gets its id until they commit, so that ids of a
key ascend in commit order; across keys a smaller id may become visible later. Every safeguard of the protocol can be
switched off, so that a test can show what it is for.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

__all__ = ["FULL", "Outcome", "Protocol", "run"]

KEYS: Final = 4
WORKERS: Final = 3
LEASE: Final = 6
STEPS: Final = 260


@dataclass(frozen=True)
class Protocol:
    """Which safeguards are in force."""

    target_fence: bool = True
    """The target refuses an owner whose epoch is older than the one that it has seen."""
    source_fence: bool = True
    """An acknowledgement is refused where the lane's epoch is no longer the owner's."""
    recovery: bool = True
    """A new owner first learns from the inbox what was applied, and acknowledges that."""
    explicit_ids: bool = True
    """Events are acknowledged by their ids, not by the range that they span."""
    from_the_start: bool = True
    """A lane is read from its first event, not from behind the last one that was acknowledged."""


FULL: Final = Protocol()


@dataclass(frozen=True)
class Event:
    """A committed event: `version` counts the changes of its key."""

    id: int
    key: int
    version: int


@dataclass(frozen=True)
class Outcome:
    """What a schedule ended with."""

    duplicates: int
    lost: int
    out_of_order: int
    delivered: int

    @property
    def correct(self) -> bool:
        """Every committed event was applied once, those of a key in order."""
        return not (self.duplicates or self.lost or self.out_of_order)


@dataclass
class Worker:
    """An owner of the lane, or one who believes to be."""

    step: str = "claim"
    epoch: int = 0
    learnt: frozenset[int] = frozenset()
    batch: list[Event] = field(default_factory=list)

    def restart(self) -> None:
        """What a crash leaves: nothing."""
        self.step, self.learnt, self.batch = "claim", frozenset(), []


class World:
    """Both databases, their writers and the workers between them."""

    def __init__(self, seed: int, protocol: Protocol) -> None:
        self.random = random.Random(seed)
        self.protocol = protocol
        self.now = 0
        self.next_id = 1
        self.versions = [0] * KEYS
        self.uncommitted: list[Event] = []
        self.committed: list[Event] = []
        self.outbox: dict[int, Event] = {}
        self.last_acknowledged = 0
        self.lane_epoch = 0
        self.lease_until = -1
        self.inbox_epoch = 0
        self.inbox_ids: frozenset[int] = frozenset()
        self.applied: list[Event] = []
        self.workers = [Worker() for _ in range(WORKERS)]

    # -- writers ---------------------------------------------------------------------------------------------------

    def write(self) -> None:
        """Begin a transaction on a key that nobody has locked, or end one: nine times out of ten it commits."""
        if self.uncommitted and self.random.random() < 0.5:
            event = self.uncommitted.pop(self.random.randrange(len(self.uncommitted)))
            if self.random.random() < 0.9:
                self.commit(event)
            else:
                self.versions[event.key] -= 1
            return
        key = self.random.randrange(KEYS)
        if any(event.key == key for event in self.uncommitted):
            return
        self.versions[key] += 1
        self.uncommitted.append(Event(self.next_id, key, self.versions[key]))
        self.next_id += 1

    def commit(self, event: Event) -> None:
        """The event becomes visible, however many greater ids are already."""
        self.committed.append(event)
        self.outbox[event.id] = event

    # -- the relay, step by step -----------------------------------------------------------------------------------

    def claim(self, worker: Worker) -> None:
        """Compare-and-set in the source."""
        if self.lease_until < self.now:
            self.lane_epoch += 1
            self.lease_until = self.now + LEASE
            worker.epoch = self.lane_epoch
            worker.step = "recover"

    def recover(self, worker: Worker) -> None:
        """One target transaction: fence, and learn what was applied last."""
        if not self.pass_target_fence(worker):
            return
        worker.learnt = self.inbox_ids if self.protocol.recovery else frozenset()
        worker.step = "acknowledge what was learnt"

    def acknowledge_learnt(self, worker: Worker) -> None:
        """One source transaction."""
        if self.pass_source_fence(worker):
            for event_id in worker.learnt:
                self.outbox.pop(event_id, None)
            worker.step = "read"

    def read(self, worker: Worker) -> None:
        """The start of the lane, without a lock."""
        ids = self.readable()[: self.random.choice([1, 2, 3, 5])]
        if ids:
            worker.batch = [self.outbox[event_id] for event_id in ids]
            worker.step = "apply"

    def readable(self) -> list[int]:
        """The ids that a reader would find."""
        start = 0 if self.protocol.from_the_start else self.last_acknowledged
        return sorted(event_id for event_id in self.outbox if event_id > start)

    def apply(self, worker: Worker) -> None:
        """One target transaction: fence, effects, and the record of them."""
        if not self.pass_target_fence(worker):
            return
        self.applied += [event for event in worker.batch if event.id not in self.inbox_ids]
        self.inbox_ids = frozenset(event.id for event in worker.batch)
        worker.step = "acknowledge"

    def acknowledge(self, worker: Worker) -> None:
        """One source transaction, under the renewed lease."""
        if not self.pass_source_fence(worker):
            return
        ids = [event.id for event in worker.batch]
        if not self.protocol.explicit_ids:
            ids = [event_id for event_id in self.outbox if min(ids) <= event_id <= max(ids)]
        for event_id in ids:
            self.outbox.pop(event_id, None)
        self.last_acknowledged = max(self.last_acknowledged, *ids)
        self.lease_until = max(self.lease_until, self.now + LEASE)
        worker.step = "read"

    def pass_target_fence(self, worker: Worker) -> bool:
        """Whether the target still takes anything from this owner; if so, from no earlier one any more."""
        if self.protocol.target_fence:
            if self.inbox_epoch > worker.epoch:
                worker.restart()
                return False
            self.inbox_epoch = worker.epoch
        return True

    def pass_source_fence(self, worker: Worker) -> bool:
        """Whether the lane is still this owner's."""
        if self.protocol.source_fence and self.lane_epoch != worker.epoch:
            worker.restart()
            return False
        return True

    # -- schedules -------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """One step of anybody: a writer, a worker, a crash, or a pause in which leases run out."""
        self.now += 1
        if self.random.random() < 0.45:
            self.write()
            return
        worker = self.random.choice(self.workers)
        chance = self.random.random()
        if chance < 0.10:
            worker.restart()
        elif chance < 0.20:
            self.now += self.random.randrange(2 * LEASE)
        else:
            self.act(worker)

    def act(self, worker: Worker) -> None:
        """The worker's next step."""
        steps: dict[str, Callable[[Worker], None]] = {
            "claim": self.claim,
            "recover": self.recover,
            "acknowledge what was learnt": self.acknowledge_learnt,
            "read": self.read,
            "apply": self.apply,
            "acknowledge": self.acknowledge,
        }
        steps[worker.step](worker)

    def finish(self) -> None:
        """All writers commit, all workers die, and one that nothing disturbs does the rest."""
        for event in self.uncommitted:
            self.commit(event)
        survivor = Worker()
        self.now = self.lease_until + 1
        while survivor.step != "read" or self.readable():
            self.act(survivor)


def run(seed: int, protocol: Protocol = FULL) -> Outcome:
    """Run one random schedule to its end."""
    world = World(seed, protocol)
    for _ in range(STEPS):
        world.advance()
    world.finish()
    ids = [event.id for event in world.applied]
    newest = [0] * KEYS
    out_of_order = 0
    for event in world.applied:
        out_of_order += event.version < newest[event.key]
        newest[event.key] = max(newest[event.key], event.version)
    return Outcome(
        duplicates=len(ids) - len(set(ids)),
        lost=len({event.id for event in world.committed} - set(ids)),
        out_of_order=out_of_order,
        delivered=len(ids),
    )

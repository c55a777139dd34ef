"""The relay's protocol as a few lines of plain Python, run over random schedules.

One lane, a source and a target. A step is one transaction of one participant, or less than that where it may be paused
or killed in between. Some events cannot be applied at first: they are parked, with the later ones of their keys.

Writers hold their key's lock from before an event gets its id until they commit, so that ids of a key ascend in commit
order; across keys a smaller id may become visible later. Every safeguard of the protocol can be switched off, so that a
test can show what it is for.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

__all__ = ["FULL", "STEPS", "Outcome", "Protocol", "World", "run"]

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
    followers: bool = True
    """The later events of a key are parked together with the one that fails, and those to come behind it."""
    fresh_look: bool = True
    """Which keys are parked is read together with the events, not remembered from before the lane was claimed."""
    one_transaction: bool = True
    """An event is put into the parking and deleted from the outbox in one transaction."""
    parked_recovery: bool = True
    """The recovery acknowledges parked events too."""
    unpark_under_lease: bool = True
    """Nobody but the lane's owner takes an event out of the parking."""
    one_at_a_time: bool = True
    """What is applied is acknowledged before anything else is applied."""


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

    step: str = "look"
    seen_epoch: int = 0
    epoch: int = 0
    learnt: frozenset[int] = frozenset()
    parked_keys: frozenset[int] = frozenset()
    redriving: bool = False
    batch: list[Event] = field(default_factory=list)
    done: list[Event] = field(default_factory=list)
    """Those of the batch that the target has."""
    stuck: list[Event] = field(default_factory=list)
    """Those of the batch that failed or must not overtake one that did."""

    def restart(self) -> None:
        """What a crash leaves: nothing."""
        self.step, self.learnt, self.batch, self.done, self.stuck = "look", frozenset(), [], [], []


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
        self.parked: dict[int, Event] = {}
        self.failures_left: dict[int, int] = {}
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
        if self.random.random() < 0.4:
            self.failures_left[event.id] = self.random.randint(1, 3)

    # -- the relay, step by step -----------------------------------------------------------------------------------

    def look(self, worker: Worker) -> None:
        """Read the lane, to claim it if nobody owns it."""
        worker.seen_epoch, worker.parked_keys = self.lane_epoch, self.keys_parked()
        worker.step = "claim"

    def claim(self, worker: Worker) -> None:
        """Compare-and-set in the source."""
        if self.lane_epoch != worker.seen_epoch:
            worker.restart()
        elif self.lease_until < self.now:
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
                if self.protocol.parked_recovery:
                    self.parked.pop(event_id, None)
            worker.step = "read"

    def read(self, worker: Worker) -> None:
        """The start of the lane or of its parking, without a lock."""
        size = self.random.choice([1, 2, 3, 5])
        worker.redriving = bool(self.parked) and self.random.random() < 0.5
        if self.protocol.fresh_look:
            worker.parked_keys = self.keys_parked()
        table = self.parked if worker.redriving else self.outbox
        ids = sorted(table)[:size] if worker.redriving else self.readable()[:size]
        worker.batch = [table[event_id] for event_id in ids]
        worker.done, worker.stuck = [], []
        if ids:
            worker.step = "apply"

    def keys_parked(self) -> frozenset[int]:
        """The keys of which an event is parked now."""
        return frozenset(event.key for event in self.parked.values())

    def readable(self) -> list[int]:
        """The ids that a reader would find."""
        start = 0 if self.protocol.from_the_start else self.last_acknowledged
        return sorted(event_id for event_id in self.outbox if event_id > start)

    def apply(self, worker: Worker) -> None:
        """One target transaction: fence, effects up to the first event that fails, and the record of them."""
        blocked = worker.parked_keys if self.protocol.followers and not worker.redriving else frozenset()
        worker.stuck += [event for event in worker.batch if event.key in blocked and event not in worker.stuck]
        going: list[Event] = []
        for event in worker.batch:
            if event in worker.done or event in worker.stuck:
                continue
            if event.id not in self.inbox_ids and self.failures_left.get(event.id, 0):
                self.failures_left[event.id] -= 1
                worker.stuck += [one for one in worker.batch if self.is_stuck(one, behind=event)]
                break
            going.append(event)
        if going and not self.pass_target_fence(worker):
            return
        if going:
            self.applied += [event for event in going if event.id not in self.inbox_ids]
            self.inbox_ids = frozenset(event.id for event in going)
        worker.done += going
        if self.protocol.one_at_a_time or len(worker.done) + len(worker.stuck) >= len(worker.batch):
            worker.step = "acknowledge"

    def is_stuck(self, event: Event, behind: Event) -> bool:
        """Whether an event of the batch must wait because this one has failed."""
        return event is behind or (self.protocol.followers and event.key == behind.key and event.id > behind.id)

    def acknowledge(self, worker: Worker) -> None:
        """One source transaction, under the renewed lease: delete what was applied, and park what must wait."""
        if not self.pass_source_fence(worker):
            return
        self.lease_until = max(self.lease_until, self.now + LEASE)
        self.delete(worker, [event.id for event in worker.done])
        worker.step = "read"
        if worker.redriving:
            return
        self.parked |= {event.id: event for event in worker.stuck if event.id in self.outbox}
        worker.parked_keys |= {event.key for event in worker.stuck}
        if self.protocol.one_transaction:
            self.delete(worker, [event.id for event in worker.stuck])
        else:
            worker.step = "delete what was parked"

    def delete(self, worker: Worker, ids: list[int]) -> None:
        """By their ids, and not by the range that they span; or else by that."""
        table = self.parked if worker.redriving else self.outbox
        if not self.protocol.explicit_ids and ids:
            ids = [event_id for event_id in table if min(ids) <= event_id <= max(ids)]
        for event_id in ids:
            table.pop(event_id, None)
        if not worker.redriving:
            self.last_acknowledged = max(self.last_acknowledged, *ids, 0)

    def delete_parked(self, worker: Worker) -> None:
        """The second half of a parking that is not one transaction."""
        if self.pass_source_fence(worker):
            self.delete(worker, [event.id for event in worker.stuck])
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
        if not self.protocol.unpark_under_lease and self.parked and self.random.random() < 0.1:
            self.outbox |= self.parked
            self.parked.clear()
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
            "look": self.look,
            "claim": self.claim,
            "recover": self.recover,
            "acknowledge what was learnt": self.acknowledge_learnt,
            "read": self.read,
            "apply": self.apply,
            "acknowledge": self.acknowledge,
            "delete what was parked": self.delete_parked,
        }
        steps[worker.step](worker)

    def finish(self) -> None:
        """All writers commit, all workers die, and one that nothing disturbs does the rest."""
        for event in self.uncommitted:
            self.commit(event)
        survivor = Worker()
        self.now = self.lease_until + 1
        while survivor.step != "read" or self.readable() or self.parked:
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

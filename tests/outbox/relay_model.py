"""The relay's protocol as a few lines of plain Python, run over random schedules.

One lane, a source and a target. A step is one transaction of one participant, or less than that where it may be paused
or killed in between. Some events cannot be applied at first: they are parked, with the later ones of their keys. A few
kill every worker that applies them; what waits behind such a one waits for ever, and nothing else does.

Writers hold their key's lock from before an event gets its id until they commit, so that ids of a key ascend in commit
order; across keys a smaller id may become visible later. Every safeguard of the protocol can be switched off, so that a
test can show what it is for.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from outbox.relay_safeguards import FULL, Protocol

__all__ = ["FULL", "STEPS", "Outcome", "Protocol", "World", "run"]

KEYS: Final = 4
WORKERS: Final = 3
LEASE: Final = 6
STEPS: Final = 260
WARY_AT: Final = 3
CONVICTED_AT: Final = 5
PATIENCE: Final = 300
"""So many workers may die at the end, before the lane is taken to be stuck."""


@dataclass(frozen=True)
class Event:
    """A committed event: `version` counts the changes of its key."""

    id: int
    key: int
    version: int


@dataclass(frozen=True)
class Outcome:
    """What a schedule ended with.

    `stuck`: workers died without end. `blamed`: harmless events that were taken for deadly where nothing else killed.
    """

    duplicates: int
    lost: int
    out_of_order: int
    delivered: int
    stuck: bool = False
    blamed: int = 0

    @property
    def correct(self) -> bool:
        """Every committed event was applied once, those of a key in order."""
        return not (self.duplicates or self.lost or self.out_of_order or self.stuck or self.blamed)


@dataclass
class Worker:
    """An owner of the lane, or one who believes to be."""

    step: str = "look"
    seen_epoch: int = 0
    seen_settled: bool = False
    epoch: int = 0
    learnt: frozenset[int] = frozenset()
    entered: bool = False
    """Earlier owners are shut out of the target, and what they had applied is known here."""
    ever_entered: bool = False
    """They are, whatever is known."""
    inherited: frozenset[int] = frozenset()
    final: int = 0
    parked_keys: frozenset[int] = frozenset()
    redriving: bool = False
    wary: bool = False
    tried: int | None = None
    """The event that was tried alone before."""
    batch: list[Event] = field(default_factory=list)
    done: list[Event] = field(default_factory=list)
    """Those of the batch that the target has."""
    stuck: list[Event] = field(default_factory=list)
    """Those of the batch that failed or must not overtake one that did."""

    def restart(self) -> None:
        """What a crash leaves: nothing."""
        self.step, self.learnt, self.batch, self.done, self.stuck = "look", frozenset(), [], [], []
        self.entered = self.ever_entered = self.wary = False
        self.inherited = frozenset()


class World:
    """Both databases, their writers and the workers between them."""

    def __init__(self, seed: int, protocol: Protocol) -> None:
        self.random = random.Random(seed)
        self.looks = random.Random(~seed)
        self.protocol = protocol
        self.now = 0
        self.next_id = 1
        self.versions = [0] * KEYS
        self.uncommitted: list[Event] = []
        self.committed: list[Event] = []
        self.outbox: dict[int, Event] = {}
        self.parked: dict[int, Event] = {}
        self.failures_left: dict[int, int] = {}
        # To be wary takes many steps: every other schedule has them for what else can go wrong.
        self.deadly_often = 0.05 if seed % 2 else 0.0
        self.deadly: set[int] = set()
        self.dead: set[int] = set()
        """Parked events that nobody tries for now."""
        self.killed = 0
        self.stuck = False
        self.blamed: set[int] = set()
        self.lane_deaths = 0
        self.lane_trying: int | None = None
        self.last_acknowledged = 0
        self.emptied_to = 0
        self.seen = self.final = self.bound = 0
        self.awaited: set[int] = set()
        self.lane_epoch = 0
        self.lane_owned = False
        self.lane_settled = True
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
        if self.deadly_often and self.random.random() < self.deadly_often:
            self.deadly.add(event.id)

    # -- the relay, step by step -----------------------------------------------------------------------------------

    def look(self, worker: Worker) -> None:
        """Read the lane, to claim it if nobody owns it."""
        worker.seen_epoch, worker.parked_keys = self.lane_epoch, self.keys_parked()
        worker.seen_settled = self.lane_settled
        worker.step = "claim"

    def claim(self, worker: Worker) -> None:
        """Compare-and-set in the source."""
        changed = self.protocol.settled_claimed and self.lane_settled != worker.seen_settled
        if self.lane_epoch != worker.seen_epoch or changed:
            worker.restart()
        elif self.lease_until < self.now:
            self.lane_deaths += self.protocol.deaths_counted and bool(self.deadly_often) and self.lane_owned
            self.lane_epoch += 1
            self.lease_until = self.now + LEASE
            self.lane_owned, self.lane_settled = True, False
            worker.epoch, worker.tried = self.lane_epoch, self.lane_trying
            worker.wary = self.lane_deaths >= WARY_AT
            worker.step = "recover" if worker.wary else self.random.choice(["recover", "read"])

    def recover(self, worker: Worker) -> None:
        """One target transaction: fence, and learn what was applied last."""
        if not self.pass_target_fence(worker):
            return
        worker.entered = worker.ever_entered = True
        worker.learnt = self.inbox_ids if self.protocol.recovery else frozenset()
        worker.step = "acknowledge what was learnt"

    def acknowledge_learnt(self, worker: Worker) -> None:
        """One source transaction."""
        if self.pass_source_fence(worker):
            self.renew()
            self.forget(worker.learnt)
            worker.step = "read"

    def forget(self, ids: frozenset[int]) -> None:
        """Delete what an earlier owner had applied, wherever it is."""
        for event_id in ids:
            self.outbox.pop(event_id, None)
            if self.protocol.parked_recovery:
                self.parked.pop(event_id, None)

    def renew(self) -> None:
        """The lane is owned for longer, and not given back any more if it was."""
        self.lease_until = max(self.lease_until, self.now + LEASE)
        self.lane_owned, self.lane_settled = True, False

    def look_for_writers(self) -> None:
        """What was read long enough ago is final: nobody has a smaller id any more who may still commit it."""
        if not self.protocol.writers_awaited:
            self.final = self.seen
        elif not self.awaited & {event.id for event in self.uncommitted}:
            self.final = max(self.final, self.bound)
            self.bound, self.awaited = self.seen, {event.id for event in self.uncommitted}

    def read(self, worker: Worker) -> None:
        """The start of the lane or of its parking, without a lock."""
        size = 1 if worker.wary and self.protocol.one_by_one else self.random.choice([1, 2, 3, 5])
        worker.redriving = bool(self.redrivable()) and self.random.random() < 0.5
        if worker.redriving and not worker.entered:
            worker.step = "recover"
            return
        if self.protocol.fresh_look:
            worker.parked_keys = self.keys_parked()
        table = self.parked if worker.redriving else self.outbox
        ids = (self.redrivable() if worker.redriving else self.readable())[:size]
        worker.batch = [table[event_id] for event_id in ids]
        worker.done, worker.stuck, worker.inherited = [], [], frozenset()
        if ids and not worker.redriving:
            self.seen = max(self.seen, *ids)
            worker.final = self.final
        if ids:
            worker.step = "note" if worker.wary and self.protocol.trials_noted else "apply"
        elif worker.wary and not self.redrivable() and self.pass_source_fence(worker):
            self.lane_deaths, self.lane_trying, worker.wary = 0, None, False
        elif not worker.redriving and self.random.random() < 0.5 and self.pass_source_fence(worker):
            self.give_back(worker)

    def keys_parked(self) -> frozenset[int]:
        """The keys of which an event is parked now."""
        return frozenset(event.key for event in self.parked.values())

    def redrivable(self) -> list[int]:
        """The ids of parked events that may be tried again."""
        closed = {event.key for event in self.parked.values() if event.id in self.dead}
        return sorted(event.id for event in self.parked.values() if event.key not in closed)

    def note(self, worker: Worker) -> None:
        """A wary owner's transaction in the source: which event is tried, or that it is not tried any more."""
        if not self.pass_source_fence(worker):
            return
        first = worker.batch[0]
        if first.id == worker.tried and self.lane_deaths >= CONVICTED_AT:
            self.lane_deaths, self.lane_trying, worker.tried = WARY_AT, None, None
            self.dead.add(first.id)
            worker.stuck = [one for one in worker.batch if self.is_stuck(one, behind=first)]
            worker.step = "acknowledge"
            return
        if first.id != worker.tried:
            self.lane_deaths = WARY_AT
        self.lane_trying = worker.tried = first.id
        worker.step = "apply"

    def readable(self) -> list[int]:
        """The ids that a reader would find."""
        start = self.emptied_to if self.protocol.from_the_start else self.last_acknowledged
        return sorted(event_id for event_id in self.outbox if event_id > start)

    def apply(self, worker: Worker) -> None:
        """One target transaction: fence, effects up to the first event that fails, and the record of them."""
        blocked = worker.parked_keys if self.protocol.followers and not worker.redriving else frozenset()
        worker.stuck += [event for event in worker.batch if event.key in blocked and event not in worker.stuck]
        inherited = self.to_inherit(worker)
        going: list[Event] = []
        for event in worker.batch:
            if event in worker.done or event in worker.stuck:
                continue
            if event.id not in inherited and self.failures_left.get(event.id, 0):
                self.failures_left[event.id] -= 1
                worker.stuck += [one for one in worker.batch if self.is_stuck(one, behind=event)]
                break
            going.append(event)
        if going:
            before = self.inbox_epoch
            if not self.pass_target_fence(worker, entering=not worker.entered):
                return
            if any(event.id in self.deadly and event.id not in inherited for event in going):
                self.inbox_epoch = before
                self.killed += 1
                worker.restart()
                return
            self.applied += [event for event in going if event.id not in inherited]
            self.inbox_ids = frozenset(event.id for event in going) | inherited
            worker.inherited |= inherited
            worker.entered = worker.ever_entered = True
        worker.done += going
        if worker.stuck and not worker.entered:
            worker.step = "recover"
        elif self.protocol.one_at_a_time or len(worker.done) + len(worker.stuck) >= len(worker.batch):
            worker.step = "acknowledge"

    def to_inherit(self, worker: Worker) -> frozenset[int]:
        """What the first batch of an owner leaves in the inbox: nothing that is known to be acknowledged."""
        if worker.entered or worker.seen_settled or not self.protocol.inheriting:
            return frozenset()
        return self.inbox_ids

    def is_stuck(self, event: Event, behind: Event) -> bool:
        """Whether an event of the batch must wait because this one has failed."""
        return event is behind or (self.protocol.followers and event.key == behind.key and event.id > behind.id)

    def acknowledge(self, worker: Worker) -> None:
        """One source transaction, under the renewed lease: delete what was applied, and park what must wait."""
        if not self.pass_source_fence(worker):
            return
        self.renew()
        if self.lane_deaths < WARY_AT:
            self.lane_deaths = 0
        self.delete(worker, [event.id for event in worker.done])
        if self.protocol.inherited_acknowledged:
            self.forget(worker.inherited)
        worker.step = "read"
        if worker.redriving:
            return
        self.note_emptied(worker)
        self.parked |= {event.id: event for event in worker.stuck if event.id in self.outbox}
        worker.parked_keys |= {event.key for event in worker.stuck}
        if self.protocol.one_transaction:
            self.delete(worker, [event.id for event in worker.stuck])
        else:
            worker.step = "delete what was parked"
        if worker.step == "read" and self.random.random() < 0.5:
            self.give_back(worker)

    def note_emptied(self, worker: Worker) -> None:
        """In the same transaction: up to where the lane never has to be read again."""
        final = worker.final if self.protocol.final_before_read else self.final
        gone = {event.id for event in worker.done + worker.stuck}
        left = [event.id for event in worker.batch if event.id not in gone]
        if left and self.protocol.up_to_the_first_left:
            final = min(final, left[0] - 1)
        self.emptied_to = max(self.emptied_to, min(final, worker.batch[-1].id))

    def give_back(self, worker: Worker) -> None:
        """In the same transaction; an owner that never heard of its commit goes on, from asking the target."""
        self.lease_until, self.lane_owned = -1, False
        self.lane_settled = worker.ever_entered or not self.protocol.settled_by_entered
        if self.random.random() < 0.6:
            worker.restart()
        else:
            worker.step, worker.entered = "recover", False

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

    def pass_target_fence(self, worker: Worker, *, entering: bool = False) -> bool:
        """Whether the target still takes anything from this owner; if so, from no earlier one any more."""
        if self.protocol.target_fence and (self.protocol.entering_fence or not entering):
            if self.inbox_epoch > worker.epoch:
                worker.restart()
                return False
            self.inbox_epoch = worker.epoch
        return True

    def pass_source_fence(self, worker: Worker) -> bool:
        """Whether the lane is still this owner's."""
        if self.protocol.source_fence and self.lane_epoch != worker.epoch:
            worker.restart()
            self.lane_deaths = max(0, self.lane_deaths - 1)  # it lives
            return False
        return True

    # -- schedules -------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """One step of anybody: a writer, a worker, a crash, or a pause in which leases run out."""
        self.now += 1
        if self.random.random() < 0.45:
            self.write()
            return
        if self.looks.random() < 0.5:
            self.look_for_writers()  # somebody, an owner of another lane perhaps, while all others go on
        if not self.protocol.unpark_under_lease and self.parked and self.random.random() < 0.1:
            self.outbox |= self.parked
            self.parked.clear()
        if self.dead and self.random.random() < 0.1:
            self.dead.clear()  # ten minutes have passed
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
            "note": self.note,
            "apply": self.apply,
            "acknowledge": self.acknowledge,
            "delete what was parked": self.delete_parked,
        }
        steps[worker.step](worker)

    def finish(self) -> None:
        """All writers commit, all workers die, and others that only events disturb do the rest."""
        for event in self.uncommitted:
            self.commit(event)
        suspected = self.dead | {self.lane_trying}
        self.let_survivors_work()
        self.blamed = self.dead - self.deadly - suspected
        # What was parked for the deaths of workers that something else had killed, an operator has tried again.
        self.dead &= self.deadly
        self.let_survivors_work()

    def let_survivors_work(self) -> None:
        """Until nothing waits that could be applied."""
        survivor, killed = Worker(), self.killed
        self.now = self.lease_until + 1
        while survivor.step != "read" or survivor.wary or self.readable() or self.redrivable():
            self.act(survivor)
            if survivor.step == "look":
                self.now = self.lease_until + 1
            if self.killed > killed + PATIENCE:
                self.stuck = True
                return


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
        lost=len({event.id for event in world.committed} - set(ids) - world.parked.keys()),
        out_of_order=out_of_order,
        delivered=len(ids),
        stuck=world.stuck,
        blamed=len(world.blamed),
    )

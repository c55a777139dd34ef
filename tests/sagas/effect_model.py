"""Effects outside databases as a state machine small enough to be searched exhaustively.

One original makes two calls and decides, while a recoverer may take it for dead and two workers compensate. No clock
is believed: the saga may have expired at any moment, a lease has always run out. Anybody may die between two steps, an
answer may be lost, retention may come at once. `explore` visits every reachable state.

What no protocol can give is left out: a call that takes effect only after a worker has compensated it, and whose
process then dies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto

from bench import search
from bench.search import Result, put

CALLS = 2


class Safeguard(Enum):
    """What the implementation does so that the protocol holds."""

    INTENT_COMES_FIRST = auto()
    """The compensation is durable before the call is made."""
    COMMIT_TESTS_ITS_EFFECTS = auto()
    """Home's commit fails unless each effect of the saga is still open."""
    OPEN_AFTER_A_DECISION_FALLS_DUE = auto()
    """A recoverer that finds open effects has them compensated also if home has decided already."""
    ORIGINAL_HAS_LATE_CALLS_COMPENSATED_AGAIN = auto()
    """A live original that must abort does not believe compensations that may have come before their calls."""
    COMPLETION_IS_FENCED = auto()
    """Who claimed an effect calls it compensated only if nobody has claimed it since, nor had it compensated again."""
    RECOVERER_LOOKS_AGAIN_BEFORE_IT_DECIDES = auto()
    """A recoverer aborts nothing if no effect is open at the moment of its decision."""


ALL = frozenset(Safeguard)


@dataclass(frozen=True)
class Worker:
    """Somebody who compensates: idle, about to call the compensation, or about to say that it is done."""

    phase: str = "idle"
    step: int = 0
    fenced: bool = False
    """The effect's epoch was raised since this worker claimed it."""


@dataclass(frozen=True)
class State:
    """Everything that is durable, the world outside, and where everybody stands."""

    home: str = "absent"
    row: tuple[str, ...] = ("absent",) * CALLS
    world: tuple[str, ...] = ("none",) * CALLS
    """`none`, `done`, or `undone`: compensated after it was done."""
    late: tuple[bool, ...] = (False,) * CALLS
    """The call took effect when its row was no longer open."""
    outcome: str = "undecided"
    """What the saga came to, which outlives every record."""
    original: str = "0:first"
    recovering: bool = False
    workers: tuple[Worker, ...] = (Worker(), Worker())


def original_steps(state: State, safeguards: frozenset[Safeguard]) -> Iterator[State]:
    """What the process of the saga may do next."""
    place = state.original
    if place in {"died", "ended"}:
        return
    yield replace(state, original="died")
    if place == "again":
        yield _compensate_again(state, safeguards)
    elif place == "abort":
        home = "aborted" if state.home == "absent" else state.home
        if state.outcome != "committed":
            yield replace(_due(state), home=home, outcome="aborted", original="ended")
    elif place == "decide":
        yield replace(state, original="again")  # an exception in the block
        yield from _commit(state, safeguards)
    else:
        yield replace(state, original="again")  # an exception in the block
        yield from _first_or_second(state, int(place[0]), place[2:], safeguards)


def _first_or_second(state: State, step: int, half: str, safeguards: frozenset[Safeguard]) -> Iterator[State]:
    """A step is an intent, then a call."""
    intent_first = Safeguard.INTENT_COMES_FIRST in safeguards
    following = f"{step}:second" if half == "first" else ("decide" if step == CALLS - 1 else f"{step + 1}:first")
    if (half == "first") is intent_first:
        yield replace(state, row=put(state.row, step, "open"), original=following)
        return
    made = _call(state, step, intended=intent_first)
    yield replace(made, original=following)
    yield replace(made, original="again")  # it had its effect, and raises


def _call(state: State, step: int, *, intended: bool) -> State:
    late = intended and state.row[step] != "open"
    return replace(state, world=put(state.world, step, "done"), late=put(state.late, step, late))


def _commit(state: State, safeguards: frozenset[Safeguard]) -> Iterator[State]:
    whole = all(row == "open" for row in state.row)
    if state.home != "absent" or (Safeguard.COMMIT_TESTS_ITS_EFFECTS in safeguards and not whole):
        yield replace(state, original="again")
        return
    settled = tuple("settled" if row == "open" else row for row in state.row)
    committed = replace(state, home="committed", row=settled, outcome="committed", original="ended")
    yield committed
    yield replace(committed, original="died")  # durable, and the answer lost


def _compensate_again(state: State, safeguards: frozenset[Safeguard]) -> State:
    if Safeguard.ORIGINAL_HAS_LATE_CALLS_COMPENSATED_AGAIN in safeguards:
        for step, row in enumerate(state.row):
            made = state.world[step] != "none"
            if row in {"due", "compensated"} or (row == "absent" and made):
                state = _fence(replace(state, row=put(state.row, step, "due")), step)
    return replace(state, original="abort")


def _due(state: State) -> State:
    return replace(state, row=tuple("due" if row == "open" else row for row in state.row))


def _fence(state: State, step: int, but: int | None = None) -> State:
    workers = tuple(
        replace(one, fenced=True) if one.step == step and one.phase != "idle" and who != but else one
        for who, one in enumerate(state.workers)
    )
    return replace(state, workers=workers)


def recoverer_steps(state: State, safeguards: frozenset[Safeguard]) -> Iterator[State]:
    """A worker that finds open effects past their expiry, and may stand still before it acts."""
    looks_after_a_decision = Safeguard.OPEN_AFTER_A_DECISION_FALLS_DUE in safeguards
    if not state.recovering:
        if "open" in state.row and (state.home == "absent" or looks_after_a_decision):
            yield replace(state, recovering=True)
        return
    idle = replace(state, recovering=False)
    yield idle
    if state.home != "absent":
        yield _due(idle) if looks_after_a_decision else idle
    elif "open" in state.row or Safeguard.RECOVERER_LOOKS_AGAIN_BEFORE_IT_DECIDES not in safeguards:
        outcome = "aborted" if state.outcome == "undecided" else state.outcome
        yield replace(_due(idle), home="aborted", outcome=outcome)


def worker_steps(state: State, safeguards: frozenset[Safeguard]) -> Iterator[State]:
    """What those who compensate may do next."""
    for who, worker in enumerate(state.workers):

        def at(worker: Worker, state: State = state, who: int = who) -> State:
            return replace(state, workers=put(state.workers, who, worker))

        if worker.phase == "idle":
            due = [step for step, row in enumerate(state.row) if row == "due"]
            if due:
                yield at(Worker("claimed", due[-1]), state=_fence(state, due[-1], but=who))
            continue
        yield at(Worker())  # it dies, or fails
        step = worker.step
        if worker.phase == "claimed":
            world = "undone" if state.world[step] == "done" else state.world[step]
            yield at(replace(worker, phase="called"), state=replace(state, world=put(state.world, step, world)))
        elif state.row[step] == "due" and not (worker.fenced and Safeguard.COMPLETION_IS_FENCED in safeguards):
            yield at(Worker(), state=replace(state, row=put(state.row, step, "compensated")))


def retention_steps(state: State, safeguards: frozenset[Safeguard]) -> Iterator[State]:
    """What may be deleted: home's record if nobody has to act upon an effect, and ended effects."""
    del safeguards
    if state.home != "absent" and not {"open", "due"} & set(state.row):
        yield replace(state, home="absent")
    for step, row in enumerate(state.row):
        if row in {"settled", "compensated"}:
            yield replace(state, row=put(state.row, step, "absent"))


def violation(state: State, *, quiescent: bool) -> str | None:
    """The promise that this state breaks."""
    if state.outcome == "committed":
        if state.home == "aborted":
            return "the saga committed, and home says that it was aborted"
        if "undone" in state.world or "none" in state.world:
            return "the saga committed, and an effect of it was compensated"
    elif quiescent:
        for step, world in enumerate(state.world):
            if world == "done" and not (state.late[step] and state.original == "died"):
                return f"the saga did not commit, and effect {step} of it stays"
    return None


def explore(safeguards: frozenset[Safeguard] = ALL) -> Result[State]:
    """Visit every state that can be reached; stop at the first violation, with the way that led there."""

    def steps(state: State) -> Iterator[State]:
        for some in (original_steps, recoverer_steps, worker_steps, retention_steps):
            yield from some(state, safeguards)

    return search.explore(State(), steps, lambda state, last: violation(state, quiescent=last))

"""The saga protocol as a state machine small enough to be searched exhaustively.

One original runs a saga over some branches and home while two recoverers may look at it at any time, because no clock
is believed. Anything may go wrong between two steps: the original dies, a server ends one of its transactions, an
answer to COMMIT is lost, a recoverer dies. `explore` visits every reachable state and reports the first one that
breaks a promise.

A safeguard that is switched off stands for an implementation without it; the search must then find a violation, or
the safeguard (or this model) would be worth nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto

from bench import search
from bench.search import Result, put

BRANCHES = 2


class Safeguard(Enum):
    """What the implementation does so that the protocol holds."""

    COMMIT_IS_VERIFIED = auto()
    """The COMMIT of a transaction that the server had ended is reported as an error."""
    HOME_TESTS_ITS_REGISTER = auto()
    """Home's commit inserts the record, and so fails where somebody has decided."""
    RECOVERER_DECIDES_IN_HOME = auto()
    """A recoverer inserts `aborted` in home before it undoes anything."""
    RECOVERER_LOOKS_AGAIN_BEFORE_IT_DECIDES = auto()
    """Between its insert of `aborted` and the commit of it, a recoverer looks at the branch that it came for again."""
    ABSENT_BRANCH_GETS_A_TOMBSTONE = auto()
    """An abort refuses a branch that has not applied, instead of passing it by."""
    COMMITTED_OUTLIVES_APPLIED = auto()
    """Home's `committed` is deleted only when no branch is `applied`."""
    TOMBSTONES_OUTLIVE_OLD_TRANSACTIONS = auto()
    """A tombstone is deleted only when no transaction older than it is open there."""


ALL = frozenset(Safeguard)


class Tx(Enum):
    """The original's transaction on one database."""

    OPEN = "open"
    HOLDS_KEY = "has inserted its record, so that other inserts of the key wait"
    GONE = "committed, rolled back or ended by the server"


@dataclass(frozen=True)
class Recoverer:
    """A worker on this saga: idle, about to decide, deciding, or bringing branch after branch to the decision."""

    phase: str = "idle"
    decision: str = ""
    branch: int = 0
    """The branch that it came for; then the branch that it brings to the decision next."""


@dataclass(frozen=True)
class State:
    """Everything that is durable, and where everybody stands."""

    branch: tuple[str, ...] = ("absent",) * BRANCHES
    home: str = "absent"
    applied: tuple[bool, ...] = (False,) * BRANCHES
    home_applied: bool = False
    original: str = "0:insert"
    tx: tuple[Tx, ...] = (Tx.OPEN,) * (BRANCHES + 1)
    recoverers: tuple[Recoverer, ...] = (Recoverer(), Recoverer())

    @property
    def home_key_is_held(self) -> bool:
        """Whether somebody's uncommitted insert makes other inserts of home's key wait."""
        deciding = any(worker.phase == "deciding" for worker in self.recoverers)
        return deciding or self.tx[-1] is Tx.HOLDS_KEY

    @property
    def running(self) -> bool:
        """Whether the original still does something by itself."""
        return ":" in self.original


def _crashed(state: State, *, word: str = "dead") -> State:
    """The original is gone, and every transaction that it had open is rolled back."""
    return replace(state, original=word, tx=(Tx.GONE,) * (BRANCHES + 1))


def original_steps(state: State, safeguards: frozenset[Safeguard]) -> Iterator[State]:
    """What the original process, and the servers under it, may do next."""
    if not state.running:
        return
    yield _crashed(state)
    for index, tx in enumerate(state.tx):
        if tx is not Tx.GONE:
            yield replace(state, tx=put(state.tx, index, Tx.GONE))  # the server ends it; the client does not know yet
    index, step = int(state.original.split(":")[0]), state.original.split(":")[1]
    if index < BRANCHES:
        yield from _branch_step(state, index, step, safeguards)
    else:
        yield from _home_step(state, step, safeguards)


def _branch_step(state: State, index: int, step: str, safeguards: frozenset[Safeguard]) -> Iterator[State]:
    if step == "insert":
        if state.tx[index] is Tx.GONE or state.branch[index] != "absent":
            yield _crashed(state)
        else:
            yield replace(state, tx=put(state.tx, index, Tx.HOLDS_KEY), original=f"{index}:commit")
        return
    after = f"{index + 1}:insert"
    if state.tx[index] is Tx.GONE:
        # The COMMIT of a dead transaction: believed or not.
        yield _crashed(state) if Safeguard.COMMIT_IS_VERIFIED in safeguards else replace(state, original=after)
        return
    durable = replace(
        state,
        branch=put(state.branch, index, "applied"),
        applied=put(state.applied, index, True),
        tx=put(state.tx, index, Tx.GONE),
    )
    yield replace(durable, original=after)
    yield _crashed(durable)  # durable, and the answer lost
    yield _crashed(state)  # not durable, and the answer lost


def _home_step(state: State, step: str, safeguards: frozenset[Safeguard]) -> Iterator[State]:
    if step == "insert":
        blind = Safeguard.HOME_TESTS_ITS_REGISTER not in safeguards
        if not blind and (state.tx[-1] is Tx.GONE or state.home != "absent"):
            yield _crashed(state)
        elif blind or not state.home_key_is_held:
            held = state.tx if state.tx[-1] is Tx.GONE else put(state.tx, BRANCHES, Tx.HOLDS_KEY)
            yield replace(state, tx=held, original=f"{BRANCHES}:commit")
        return
    if state.tx[-1] is Tx.GONE:
        yield _crashed(state)
        return
    durable = replace(state, home="committed", home_applied=True, tx=put(state.tx, BRANCHES, Tx.GONE))
    yield replace(durable, original="told committed")
    yield _crashed(durable)
    yield _crashed(state)


def recoverer_steps(state: State, safeguards: frozenset[Safeguard]) -> Iterator[State]:
    """What either recoverer may do next."""
    for who, worker in enumerate(state.recoverers):

        def at(worker: Recoverer, state: State = state, who: int = who) -> State:
            return replace(state, recoverers=put(state.recoverers, who, worker))

        if worker.phase == "idle":
            for index, record in enumerate(state.branch):
                if record == "applied":
                    yield at(Recoverer("decide", branch=index))
            if state.home == "aborted":
                yield at(Recoverer("bring", "aborted"))
            continue
        yield at(Recoverer())  # it dies; its next life starts from what is durable
        if worker.phase == "decide":
            yield from _decide(state, worker, at, safeguards)
        elif worker.phase == "deciding":
            yield _commit_decision(state, worker, at, safeguards)
        else:
            yield from _bring(state, worker, at, safeguards)


def _decide(
    state: State, worker: Recoverer, at: Callable[..., State], safeguards: frozenset[Safeguard]
) -> Iterator[State]:
    if state.home != "absent":
        yield at(Recoverer("bring", "committed" if state.home == "committed" else "aborted"))
    elif Safeguard.RECOVERER_DECIDES_IN_HOME not in safeguards:
        yield at(Recoverer("bring", "aborted"))
    elif not state.home_key_is_held:
        yield at(replace(worker, phase="deciding"))


def _commit_decision(
    state: State, worker: Recoverer, at: Callable[..., State], safeguards: frozenset[Safeguard]
) -> State:
    forgotten = state.branch[worker.branch] in {"done", "absent"}
    if forgotten and Safeguard.RECOVERER_LOOKS_AGAIN_BEFORE_IT_DECIDES in safeguards:
        return at(Recoverer())  # home had decided, all was settled, and the records were deleted long ago
    return at(Recoverer("bring", "aborted"), state=replace(state, home="aborted"))


def _bring(
    state: State, worker: Recoverer, at: Callable[..., State], safeguards: frozenset[Safeguard]
) -> Iterator[State]:
    index = worker.branch
    if index == BRANCHES:
        resolved = all(state.branch[i] != "applied" for i in range(BRANCHES))
        finished = worker.decision == "aborted" and state.home == "aborted" and resolved
        yield at(Recoverer(), state=replace(state, home="finished") if finished else state)
        return
    following = replace(worker, branch=index + 1)
    record = state.branch[index]
    if record == "applied" and worker.decision == "committed":
        yield at(following, state=replace(state, branch=put(state.branch, index, "done")))
    elif record == "applied":
        undone = replace(state, branch=put(state.branch, index, "undone"), applied=put(state.applied, index, False))
        yield at(following, state=undone)
    elif record == "absent" and worker.decision == "aborted":
        if Safeguard.ABSENT_BRANCH_GETS_A_TOMBSTONE not in safeguards:
            yield at(following)
        elif state.tx[index] is not Tx.HOLDS_KEY:  # else the insert waits for the original's
            yield at(following, state=replace(state, branch=put(state.branch, index, "refused")))
    else:
        yield at(following)


def retention_steps(state: State, safeguards: frozenset[Safeguard]) -> Iterator[State]:
    """Which records may be deleted."""

    def old_transaction_open(index: int) -> bool:
        return Safeguard.TOMBSTONES_OUTLIVE_OLD_TRANSACTIONS in safeguards and state.tx[index] is not Tx.GONE

    for index, record in enumerate(state.branch):
        if record == "done" or (record in {"refused", "undone"} and not old_transaction_open(index)):
            yield replace(state, branch=put(state.branch, index, "absent"))
    if state.home == "committed" and (
        Safeguard.COMMITTED_OUTLIVES_APPLIED not in safeguards or "applied" not in state.branch
    ):
        yield replace(state, home="absent")
    buried = not {"refused", "undone"} & set(state.branch)
    if state.home == "finished" and buried and not old_transaction_open(BRANCHES):
        yield replace(state, home="absent")


def violation(state: State, *, quiescent: bool) -> str | None:
    """The promise that this state breaks."""
    if state.home == "committed" and not all(state.applied):
        return "home says committed, and a branch is not applied"
    if state.home == "finished" and any(state.applied):
        return "home says that the abort is finished, and a branch is applied"
    if state.original == "told committed" and not (all(state.applied) and state.home_applied):
        return "the caller was told that the saga committed, and it did not last"
    whole = all(state.applied) and state.home_applied
    nothing = not any(state.applied) and not state.home_applied
    if quiescent and not whole and not nothing:
        return "half applied, and nobody is left to see it"
    return None


def explore(safeguards: frozenset[Safeguard] = ALL) -> Result[State]:
    """Visit every state that can be reached; stop at the first violation, with the way that led there."""

    def steps(state: State) -> Iterator[State]:
        for some in (original_steps, recoverer_steps, retention_steps):
            yield from some(state, safeguards)

    return search.explore(State(), steps, lambda state, last: violation(state, quiescent=last))

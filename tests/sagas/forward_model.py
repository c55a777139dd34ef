"""The saga that recovers forward as a state machine, searched exhaustively like the others.

The original holds a transaction in each branch, with the branch's record inserted, when it commits home; then it
commits the branches. Redoers may come at any time, and anything may fail or stand still between two steps. A safeguard
that is switched off must let the search find a violation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto

from bench.search import Result, explore, put

BRANCHES = 2
REDOERS = 2
MOST = 2
"""How often a branch's writes are counted at most."""


class Safeguard(Enum):
    """What the implementation does so that the protocol holds."""

    HOME_IS_FIRST = auto()
    """No branch commits before home has."""
    HOME_COMMIT_IS_VERIFIED = auto()
    """COMMIT of a home transaction that the server had ended is an error, not an empty success."""
    HOME_TESTS_ITS_REGISTER = auto()
    """Home's commit inserts the record, and so fails where somebody has decided: a worker over its effects."""
    RECORDS_BEFORE_HOME = auto()
    """The branches' records are inserted before home commits, so nobody can have been faster in an open branch."""
    RECORD_IS_THE_BARRIER = auto()
    """A redo inserts the branch's record, and so fails where the branch is done."""
    REDOER_LOOKS_AT_HOME_AGAIN = auto()
    """Once its insert holds the register, a redoer reads whether home still says `owed`."""
    DONE_OUTLIVES_OWED = auto()
    """A branch's record is deleted only when home does not say `owed` any more."""
    OWED_OUTLIVES_WHAT_IS_OWED = auto()
    """Home's `owed` becomes `committed` only when every branch is done."""
    IN_DOUBT_ASKS_HOME = auto()
    """An original that lost the answer to home's COMMIT asks home before it tells its caller anything."""
    IN_DOUBT_CLOSES_THE_REGISTER = auto()
    """Where home has no record, it inserts `finished`: a COMMIT that is still on its way fails then."""
    IN_DOUBT_TRUSTS_AN_OPEN_BRANCH = auto()
    """It believes that there never was a record only if a branch's own transaction still holds its register."""


ALL = frozenset(Safeguard)


@dataclass(frozen=True)
class State:
    """What is durable, and where everybody stands.

    `register` are the branches' records (`absent`, `done`), `applied` counts their writes; `branch_tx` are the
    original's transactions there: `open`, `holds` (the key), `gone`. `home` is home's register (`absent`, `owed`,
    `committed`, `finished`); `home_tx` is `open`, `holds`, `flying` (COMMIT was sent, and the original has lost the
    connection) or `gone`. A redoer is at `idle`, `found:branch` (home said `owed`) or `holds:branch` (its insert, not
    yet committed).
    """

    register: tuple[str, ...] = ("absent",) * BRANCHES
    applied: tuple[int, ...] = (0,) * BRANCHES
    branch_tx: tuple[str, ...] = ("open",) * BRANCHES
    home: str = "absent"
    home_tx: str = "open"
    home_applied: bool = False
    original: str = "record:0"
    redoers: tuple[str, ...] = ("idle",) * REDOERS


def _left(state: State, word: str = "dead") -> State:
    """The original stops: what is open rolls back; a COMMIT that was sent goes its own way."""
    home_tx = state.home_tx if state.home_tx == "flying" else "gone"
    return replace(state, original=word, branch_tx=("gone",) * BRANCHES, home_tx=home_tx)


def _count(state: State, index: int) -> State:
    """The writes of a branch become durable, with its record."""
    applied = put(state.applied, index, min(MOST, state.applied[index] + 1))
    return replace(state, applied=applied, register=put(state.register, index, "done"))


def _key_is_held(state: State, index: int) -> bool:
    return state.branch_tx[index] == "holds" or f"holds:{index}" in state.redoers


def server_steps(state: State) -> Iterator[State]:
    """The servers end transactions, and a COMMIT that was on its way arrives or does not."""
    for index, one in enumerate(state.branch_tx):
        if one != "gone":
            yield replace(state, branch_tx=put(state.branch_tx, index, "gone"))
    if state.home_tx in {"open", "holds"}:
        yield replace(state, home_tx="gone")
    if state.home_tx == "flying":
        yield replace(state, home_tx="gone")
        yield replace(state, home_tx="gone", home="owed", home_applied=True)


def worker_steps(state: State) -> Iterator[State]:
    """A worker that finds effects of the saga open and expired decides against it; home's commit has settled them."""
    if state.home == "absent" and state.home_tx in {"open", "gone"} and not state.home_applied:
        yield replace(state, home="finished")


def original_steps(state: State, safeguards: frozenset[Safeguard]) -> Iterator[State]:
    """What the original may do next."""
    step, _, place = state.original.partition(":")
    if not place:
        return
    yield _left(state)
    index = int(place)
    if step == "record":
        yield from _record(state, index, safeguards)
    elif step == "home":
        yield from _commit_home(state, index, safeguards)
    elif step == "ask":
        yield from _ask_home(state, safeguards)
    elif index == BRANCHES:
        yield _left(state, "told committed")
    else:
        yield from _commit_branch(state, index, safeguards)


def _record(state: State, index: int, safeguards: frozenset[Safeguard]) -> Iterator[State]:
    if Safeguard.HOME_IS_FIRST not in safeguards and index > 0 and state.branch_tx[0] == "holds":
        yield replace(_count(state, 0), branch_tx=put(state.branch_tx, 0, "gone"))
    if index == BRANCHES:
        yield replace(state, original="home:0")
    elif Safeguard.RECORDS_BEFORE_HOME not in safeguards:
        yield replace(state, original=f"record:{index + 1}")
    elif state.branch_tx[index] == "gone" or state.register[index] != "absent":
        yield _left(state, "told aborted")
    elif not _key_is_held(state, index):
        yield replace(state, branch_tx=put(state.branch_tx, index, "holds"), original=f"record:{index + 1}")


def _commit_home(state: State, index: int, safeguards: frozenset[Safeguard]) -> Iterator[State]:
    blind = Safeguard.HOME_TESTS_ITS_REGISTER not in safeguards
    if index == 0:  # insert the record
        if state.home_tx == "gone" or (state.home != "absent" and not blind):
            yield _left(state, "told aborted")
        else:
            yield replace(state, home_tx="holds", original="home:1")
    elif state.home_tx == "gone":
        verified = Safeguard.HOME_COMMIT_IS_VERIFIED in safeguards
        yield _left(state, "told aborted") if verified else replace(state, original="follow:0")
    else:
        done = replace(state, home_tx="gone", home="owed" if state.home == "absent" else state.home, home_applied=True)
        yield replace(done, original="follow:0")
        yield replace(state, home_tx="flying", original="ask:0")


def _ask_home(state: State, safeguards: frozenset[Safeguard]) -> Iterator[State]:
    yield _left(state, "told doubtful")  # home cannot be asked
    if Safeguard.IN_DOUBT_ASKS_HOME not in safeguards:
        yield _left(state, "told aborted")
    elif state.home in {"owed", "committed"}:
        yield replace(state, original="follow:0")
    elif state.home == "finished" or Safeguard.IN_DOUBT_CLOSES_THE_REGISTER not in safeguards:
        yield _left(state, "told aborted")
    elif state.home_tx == "gone":  # else the insert waits for it
        trusts = Safeguard.IN_DOUBT_TRUSTS_AN_OPEN_BRANCH in safeguards
        if not trusts or "holds" in state.branch_tx:
            yield _left(replace(state, home="finished"), "told aborted")


def _commit_branch(state: State, index: int, safeguards: frozenset[Safeguard]) -> Iterator[State]:
    following = f"follow:{index + 1}"
    held = state.branch_tx[index] == "holds"
    late = Safeguard.RECORDS_BEFORE_HOME not in safeguards and state.branch_tx[index] == "open"
    if held or (late and state.register[index] == "absent" and not _key_is_held(state, index)):
        done = replace(_count(state, index), branch_tx=put(state.branch_tx, index, "gone"))
        yield replace(done, original=following)
    else:  # it has failed, and is left to the redoers
        yield replace(state, branch_tx=put(state.branch_tx, index, "gone"), original=following)


def redoer_steps(state: State, safeguards: frozenset[Safeguard]) -> Iterator[State]:
    """What any redoer may do next; one that dies begins anew."""
    barrier = Safeguard.RECORD_IS_THE_BARRIER in safeguards
    for who, doing in enumerate(state.redoers):

        def at(doing: str, state: State = state, who: int = who) -> State:
            return replace(state, redoers=put(state.redoers, who, doing))

        step, _, place = doing.partition(":")
        if step == "idle":
            if state.home == "owed":
                yield from (at(f"found:{i}") for i, one in enumerate(state.register) if one == "absent")
            continue
        yield at("idle")
        index = int(place)
        if step == "found":
            if not barrier or (state.register[index] == "absent" and not _key_is_held(state, index)):
                yield at(f"holds:{index}")
        elif Safeguard.REDOER_LOOKS_AT_HOME_AGAIN not in safeguards or state.home == "owed":
            yield at("idle", _count(state, index))


def settling_steps(state: State, safeguards: frozenset[Safeguard]) -> Iterator[State]:
    """A sweep settles the saga, and retention deletes its records."""
    done = all(one == "done" for one in state.register)
    if state.home == "owed" and (done or Safeguard.OWED_OUTLIVES_WHAT_IS_OWED not in safeguards):
        yield replace(state, home="committed")
    for index, one in enumerate(state.register):
        if one == "done" and (state.home != "owed" or Safeguard.DONE_OUTLIVES_OWED not in safeguards):
            yield replace(state, register=put(state.register, index, "absent"))
    if state.home == "committed":
        yield replace(state, home="absent")
    if state.home == "finished" and state.home_tx == "gone":  # retention asks for older transactions
        yield replace(state, home="absent")


def violation(state: State, quiescent: bool) -> str | None:
    """The promise that this state breaks."""
    if MOST in state.applied:
        return "the writes of a branch were done twice"
    if any(state.applied) and not state.home_applied and state.home_tx == "gone":
        return "a branch has its writes, and home has not and will not"
    if state.original == "told aborted" and state.home_applied:
        return "the caller was told that the saga aborted, and home has committed"
    if state.original == "told committed" and not state.home_applied:
        return "the caller was told that the saga committed, and home has not"
    if state.home == "finished" and state.home_applied:
        return "home says that the saga aborted, and has its writes"
    if quiescent and state.home_applied and not all(state.applied):
        return "something is owed, and nobody is left to do it"
    return None


def search(safeguards: frozenset[Safeguard] = ALL) -> Result[State]:
    """Visit every state that can be reached."""

    def steps(state: State) -> Iterator[State]:
        yield from server_steps(state)
        yield from worker_steps(state)
        yield from original_steps(state, safeguards)
        yield from redoer_steps(state, safeguards)
        yield from settling_steps(state, safeguards)

    return explore(State(), steps, violation)

"""The two-phase saga as a state machine, searched exhaustively like that of backward recovery.

The original asks its branches to prepare, all at once, reads their answers, commits home, and commits the branches;
recoverers may come at any time, and anything may fail between two steps. What was asked of a server arrives whenever it
does, though the original has died or given up meanwhile. A safeguard that is switched off must let the search find a
violation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto

BRANCHES = 2
RECOVERERS = 2


class Safeguard(Enum):
    """What the implementation does so that the protocol holds."""

    PREPARE_IS_VERIFIED = auto()
    """PREPARE of a transaction that the server had ended is an error, not an empty success."""
    HOME_TESTS_ITS_REGISTER = auto()
    """Home's commit inserts the record, and so fails where somebody has decided."""
    HOME_IS_LAST = auto()
    """Home commits when every branch has answered that it is prepared, not before."""
    RECOVERER_DECIDES_IN_HOME = auto()
    """A recoverer inserts `aborted` in home before it rolls anything back."""
    RECOVERER_LOOKS_AGAIN_BEFORE_IT_DECIDES = auto()
    """Between its insert of `aborted` and the commit of it, a recoverer looks for the prepared branch again."""
    COMMITTED_OUTLIVES_PREPARED = auto()
    """Home's `committed` is deleted only when no branch is prepared."""
    TOMBSTONE_OUTLIVES_OLD_TRANSACTIONS = auto()
    """Home's `aborted` is deleted only when no transaction older than it is open there."""
    IN_DOUBT_ASKS_HOME = auto()
    """An original that lost the answer to home's COMMIT asks home, instead of rolling its branches back."""


ALL = frozenset(Safeguard)


@dataclass(frozen=True)
class State:
    """What is durable, and where everybody stands.

    A branch is `open`, `asked` (to prepare), `prepared`, `committed` or `gone` (rolled back). `home` is its register;
    `home_tx` is the original's transaction there: `open`, `holds` (the key), `gone`. A recoverer is at `idle`,
    `decide:branch`, `deciding:branch` (its insert not yet committed) or `obey:decision:branch`.
    """

    branch: tuple[str, ...] = ("open",) * BRANCHES
    home: str = "absent"
    home_tx: str = "open"
    home_applied: bool = False
    refuted: bool = False
    """Home was told `aborted` although the saga had committed."""
    original: str = "ask:0"
    """Then `read:0`, `home:step`, and `commit:branch` or `abort:branch`."""
    recoverers: tuple[str, ...] = ("idle",) * RECOVERERS


def _put(values: tuple[str, ...], index: int, value: str) -> tuple[str, ...]:
    return (*values[:index], value, *values[index + 1 :])


def _left(state: State, word: str = "dead") -> State:
    """The original stops: what is open rolls back, what is prepared stays, and what was asked may still be done."""
    branch = tuple("gone" if one == "open" else one for one in state.branch)
    return replace(state, original=word, branch=branch, home_tx="gone")


def _aborting(state: State) -> State:
    """The original knows that home will not commit, and rolls its branches back, one by one."""
    return replace(_left(state), original="abort:0")


def _key_is_held(state: State) -> bool:
    return state.home_tx == "holds" or any(one.startswith("deciding") for one in state.recoverers)


def original_steps(state: State, safeguards: frozenset[Safeguard]) -> Iterator[State]:
    """What the original, and the servers under it, may do next."""
    step, _, place = state.original.partition(":")
    if not place:
        return
    yield _left(state)
    for index, one in enumerate(state.branch):
        if one == "open":  # the server ends it; the client does not know yet
            yield replace(state, branch=_put(state.branch, index, "gone"))
    if state.home_tx != "gone":
        yield replace(state, home_tx="gone")
    index = int(place)
    if step == "ask":
        yield replace(state, branch=tuple("asked" if b == "open" else b for b in state.branch), original="read:0")
    elif step == "read":
        yield from _read_answers(state, safeguards)
    elif step == "home":
        yield from _commit_home(state, index, safeguards)
    elif index == BRANCHES:
        yield replace(state, original="told committed" if step == "commit" else "told aborted")
    else:
        wanted = "committed" if step == "commit" else "gone"
        now = state.branch[index]
        ended = _put(state.branch, index, wanted) if now == "prepared" else state.branch
        yield replace(state, branch=ended, original=f"{step}:{index + 1}")


def _read_answers(state: State, safeguards: frozenset[Safeguard]) -> Iterator[State]:
    good = {"prepared"} if Safeguard.PREPARE_IS_VERIFIED in safeguards else {"prepared", "gone"}
    awaited = state.branch if Safeguard.HOME_IS_LAST in safeguards else state.branch[:-1]
    if good.issuperset(awaited):
        yield replace(state, original="home:0")
    yield _aborting(state)  # one was refused, or its answer is lost, whatever becomes of it


def server_steps(state: State, _: frozenset[Safeguard]) -> Iterator[State]:
    """What servers have been asked is done, or refused, or has never arrived."""
    for index, one in enumerate(state.branch):
        if one == "asked":
            yield from (replace(state, branch=_put(state.branch, index, now)) for now in ("prepared", "gone"))


def _commit_home(state: State, index: int, safeguards: frozenset[Safeguard]) -> Iterator[State]:
    blind = Safeguard.HOME_TESTS_ITS_REGISTER not in safeguards
    if index == 0:  # insert the record
        if state.home_tx == "gone" or (state.home != "absent" and not blind):
            yield _aborting(state)
        elif blind or not _key_is_held(state):
            yield replace(state, home_tx="holds", original="home:1")
        return
    if index == 1:
        if state.home_tx == "gone":
            yield _aborting(state)
            return
        durable = replace(state, home="committed", home_applied=True, home_tx="gone")
        yield replace(durable, original="commit:0")
        for after in (durable, replace(state, home_tx="gone")):  # durable or not, the answer is lost
            asks = Safeguard.IN_DOUBT_ASKS_HOME in safeguards
            yield replace(after, original="home:2") if asks else _aborting(after)
        return
    if state.home == "committed":
        yield replace(state, original="commit:0")
    elif state.home != "absent":
        yield _aborting(state)
    elif not _key_is_held(state) and state.branch[0] == "prepared":
        yield _aborting(replace(state, home="aborted"))


def recoverer_steps(state: State, safeguards: frozenset[Safeguard]) -> Iterator[State]:
    """What any recoverer may do next."""
    for who, doing in enumerate(state.recoverers):

        def at(doing: str, state: State = state, who: int = who) -> State:
            return replace(state, recoverers=_put(state.recoverers, who, doing))

        step, *rest = doing.split(":")
        if step == "idle":
            yield from (at(f"decide:{i}") for i, one in enumerate(state.branch) if one == "prepared")
            continue
        yield at("idle")  # it dies, and its open transaction with it
        index = int(rest[-1])
        if step == "decide":
            if state.home != "absent":
                yield at(f"obey:{state.home}:{index}")
            elif Safeguard.RECOVERER_DECIDES_IN_HOME not in safeguards:
                yield at(f"obey:aborted:{index}")
            elif not _key_is_held(state):
                yield at(f"deciding:{index}")
        elif step == "deciding":
            looks = Safeguard.RECOVERER_LOOKS_AGAIN_BEFORE_IT_DECIDES in safeguards
            if looks and state.branch[index] != "prepared":
                yield at("idle")
            else:
                refuted = state.refuted or state.home_applied
                yield at(f"obey:aborted:{index}", replace(state, home="aborted", refuted=refuted))
        else:
            wanted = "committed" if rest[0] == "committed" else "gone"
            ended = _put(state.branch, index, wanted) if state.branch[index] == "prepared" else state.branch
            yield at("idle", replace(state, branch=ended))


def retention_steps(state: State, safeguards: frozenset[Safeguard]) -> Iterator[State]:
    """When home's record may be deleted."""
    waits = Safeguard.COMMITTED_OUTLIVES_PREPARED in safeguards and "prepared" in state.branch
    if state.home == "committed" and not waits:
        yield replace(state, home="absent")
    old = Safeguard.TOMBSTONE_OUTLIVES_OLD_TRANSACTIONS in safeguards and state.home_tx != "gone"
    if state.home == "aborted" and not old:
        yield replace(state, home="absent")


def violation(state: State, *, quiescent: bool) -> str | None:
    """The promise that this state breaks."""
    if state.home_applied and "gone" in state.branch:
        return "home has committed, and a branch is rolled back"
    if not state.home_applied and "committed" in state.branch:
        return "a branch has committed, and home has not"
    if state.refuted:
        return "home says aborted of a saga that has committed"
    if state.original == "told aborted" and state.home_applied:
        return "the caller was told that the saga aborted, and home has committed"
    if quiescent and "prepared" in state.branch:
        return "a branch stays prepared, and nobody is left to end it"
    return None


@dataclass(frozen=True)
class Result:
    """What a search found."""

    states: int
    violation: str | None
    trace: tuple[State, ...]


def explore(safeguards: frozenset[Safeguard] = ALL) -> Result:
    """Visit every state that can be reached; stop at the first violation, with the way that led there."""
    start = State()
    came_from: dict[State, State | None] = {start: None}
    queue = deque([start])
    while queue:
        state = queue.popleft()
        steps = (original_steps, server_steps, recoverer_steps, retention_steps)
        following = {after for step in steps for after in step(state, safeguards) if after != state}
        broken = violation(state, quiescent=not following)
        if broken:
            trace: list[State] = []
            at: State | None = state
            while at is not None:
                trace.append(at)
                at = came_from[at]
            return Result(len(came_from), broken, tuple(reversed(trace)))
        for after in following - came_from.keys():
            came_from[after] = state
            queue.append(after)
    return Result(len(came_from), None, ())

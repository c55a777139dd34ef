"""Which database decides: a pure function of what each participant wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from crosstie.sagas.errors import SagaNotRedoable, SagaNotUndoable

__all__ = ["choose_home"]


def choose_home(
    written: Sequence[str], uncaptured: Mapping[str, Sequence[str]], declared: str | None, *, forward: bool = False
) -> str:
    """The participant whose commit decides.

    `written` are the participants in the order of their first write; `uncaptured` gives, for those with writes that
    nobody can undo (`forward`: redo), what these are. Home is never undone or redone, so a declared home wins, else the
    one participant that cannot be, else the first one written. Raises SagaNotUndoable, or SagaNotRedoable, where
    another participant cannot be either.
    """
    stuck = [name for name in written if uncaptured.get(name)]
    home = declared if declared is not None and declared in written else [*stuck, *written][0]
    others = [name for name in stuck if name != home]
    if not others:
        return home
    done = "redone" if forward else "undone"
    problems = "\n".join(
        f"  - {name}: {'; '.join(dict.fromkeys(uncaptured[name]))}" for name in [home, *others] if uncaptured.get(name)
    )
    remedy = (
        f"declare it with saga(…, home={others[0]!r}) if only its writes cannot be {done}"
        if len(others) == 1
        else "leave at most one database with such writes"
    )
    refusal, instead = (
        (SagaNotRedoable, f"In the branches, {_FORWARD_WAYS}; leave recover='forward' out")
        if forward
        else (SagaNotUndoable, "Write through models instead of raw SQL")
    )
    raise refusal(
        f"expected at most one database whose writes cannot be {done}, found {len(others) + 1} (home would be "
        f"{home!r}):\n"
        f"{problems}\nNothing was committed. {instead}, split the saga, or {remedy}."
    )


_FORWARD_WAYS: Final = (
    "insert rows under keys of your own (UUIDMixin), upsert(), increment(), and update or delete records with "
    "OptimisticLockMixin"
)

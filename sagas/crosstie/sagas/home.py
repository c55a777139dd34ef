"""Which database decides: a pure function of what each participant wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from crosstie.sagas.errors import SagaNotUndoable

__all__ = ["choose_home"]


def choose_home(written: Sequence[str], uncaptured: Mapping[str, Sequence[str]], declared: str | None) -> str:
    """The participant whose commit decides.

    `written` are the participants in the order of their first write; `uncaptured` gives, for those with writes that
    nobody can undo, what these are. Home is never undone, so a declared home wins, else the one participant that cannot
    be undone, else the first one written. Raises SagaNotUndoable where another participant cannot be undone either.
    """
    stuck = [name for name in written if uncaptured.get(name)]
    home = declared if declared is not None and declared in written else [*stuck, *written][0]
    others = [name for name in stuck if name != home]
    if not others:
        return home
    problems = "\n".join(
        f"  - {name}: {'; '.join(dict.fromkeys(uncaptured[name]))}" for name in [home, *others] if uncaptured.get(name)
    )
    remedy = (
        f"declare it with saga(…, home={others[0]!r}) if only its writes cannot be undone"
        if len(others) == 1
        else "leave at most one database with such writes"
    )
    raise SagaNotUndoable(
        f"expected at most one database whose writes cannot be undone, found {len(others) + 1} (home would be "
        f"{home!r}):\n"
        f"{problems}\nNothing was committed. Write through models instead of raw SQL, split the saga, or {remedy}."
    )

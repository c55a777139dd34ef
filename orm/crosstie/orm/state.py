"""What a record knows about its row: new, loaded, changed, deleted.

The slot `_state` is unset for a new object. Else it maps each field that was written since the load to the value that
the row has; the first write records it, so that loading a row costs no snapshot. Values that change without an
assignment (JSON documents) are recorded when the row is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord

__all__ = [
    "DELETED",
    "LOADED",
    "State",
    "changes",
    "is_deleted",
    "is_new",
    "mark_deleted",
    "mark_loaded",
    "mark_new",
    "mark_written",
    "put_back",
    "record_old",
    "set_state",
    "state_of",
]

State = Mapping[str, Any]
LOADED: Final[State] = MappingProxyType({})
"""The state of every loaded record that nobody has written to; one object for all of them."""
DELETED: Final[State] = MappingProxyType({"": None})
_UNSET: Final = object()


def state_of(record: ActiveRecord) -> State | None:
    """The state; None for a new record."""
    try:
        state: State = object.__getattribute__(record, "_state")
    except AttributeError:
        return None
    return state


def set_state(record: ActiveRecord, state: State) -> None:
    """Replace the state."""
    object.__setattr__(record, "_state", state)


def is_new(record: ActiveRecord) -> bool:
    """Whether no row stands behind the record yet."""
    return state_of(record) is None


def is_deleted(record: ActiveRecord) -> bool:
    """Whether the record's row was deleted through it."""
    return state_of(record) is DELETED


def mark_new(record: ActiveRecord) -> None:
    """No row stands behind the record any more."""
    if state_of(record) is not None:
        object.__delattr__(record, "_state")


def mark_loaded(record: ActiveRecord, mutable: Iterable[str]) -> None:
    """The row has exactly the record's values; those that can change unseen are copied."""
    values = record.__dict__
    set_state(record, {name: deepcopy(values[name]) for name in mutable if name in values} or LOADED)


def mark_written(record: ActiveRecord, names: Iterable[str]) -> None:
    """The row has the record's values of these fields; what is unsaved of others stays so."""
    state, written = state_of(record) or LOADED, set(names)
    set_state(record, {name: old for name, old in state.items() if name not in written} or LOADED)


def mark_deleted(record: ActiveRecord) -> None:
    """The row is gone."""
    set_state(record, DELETED)


def record_old(record: ActiveRecord, name: str, old: Any) -> None:
    """Remember the value that the row has, unless an earlier write has already."""
    state = state_of(record)
    if state is None or state is DELETED or name in state:
        return
    if isinstance(state, dict):
        state[name] = old
    else:
        set_state(record, {name: old})


def changes(record: ActiveRecord) -> dict[str, Any]:
    """The row's values of the fields in which the record differs from it, by field."""
    values = record.__dict__
    state = state_of(record) or LOADED
    return {name: old for name, old in state.items() if name and values.get(name, _UNSET) != old}


def put_back(record: ActiveRecord, old: Mapping[str, Any]) -> None:
    """A write of these fields was rolled back: the row has the old values again, the record keeps its own."""
    state = state_of(record)
    if state is not None and state is not DELETED:
        set_state(record, {**state, **old})

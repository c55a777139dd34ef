"""Callbacks: methods of a model that run around every save and delete of its records.

They belong to the class and are inherited; those of a base class run first. A model that has any runs each save and
delete in a transaction of its own database, so that a callback that raises takes the write back. Statements over many
rows (`update_all`, `delete_all`, bulk writes) run none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord

__all__ = [
    "Callbacks",
    "Operation",
    "after_commit",
    "after_create",
    "after_delete",
    "after_save",
    "after_update",
    "before_create",
    "before_delete",
    "before_save",
    "before_update",
    "callbacks_of",
]

F = TypeVar("F", bound=Callable[[Any], None])
Operation = Literal["create", "update", "delete"]
_MARK: Final = "__crosstie_callback__"


def _marking(moment: str) -> Callable[[F], F]:
    def mark(method: F) -> F:
        moments = (*getattr(method, _MARK, ()), moment)
        setattr(method, _MARK, moments)
        return method

    mark.__name__ = mark.__qualname__ = moment
    mark.__doc__ = f"Run the method at {moment.replace('_', ' ')} of each record of the model."
    return mark


before_save: Final = _marking("before_save")
before_create: Final = _marking("before_create")
before_update: Final = _marking("before_update")
before_delete: Final = _marking("before_delete")
after_save: Final = _marking("after_save")
after_create: Final = _marking("after_create")
after_update: Final = _marking("after_update")
after_delete: Final = _marking("after_delete")
after_commit: Final = _marking("after_commit")
"""Once the write is durable: after the transaction, or after the decision of a saga. It cannot undo anything, so an
exception in it is logged."""


class Callbacks:
    """The callbacks of one model, by moment; false where there are none."""

    def __init__(self, model: type[ActiveRecord]) -> None:
        self._methods: dict[str, list[str]] = {}
        for base in reversed(model.__mro__):
            for name, value in vars(base).items():
                for moment in getattr(value, _MARK, ()):
                    names = self._methods.setdefault(moment, [])
                    if name not in names:  # else a subclass overrides it and says its moment again
                        names.append(name)

    def __bool__(self) -> bool:
        return bool(self._methods)

    def around(self, record: ActiveRecord, operation: Operation, write: Callable[[], None]) -> None:
        """Run the write with what belongs before and after it, in one transaction. Raises what any of them raises."""
        general = () if operation == "delete" else ("save",)
        with type(record).transaction() as tx:
            self._call(record, *(f"before_{word}" for word in (*general, operation)))
            write()
            self._call(record, *(f"after_{word}" for word in (operation, *general)))
            for name in self._methods.get("after_commit", ()):
                tx.after_commit(partial(_run, record, name))

    def _call(self, record: ActiveRecord, *moments: str) -> None:
        for moment in moments:
            for name in self._methods.get(moment, ()):
                _run(record, name)


def _run(record: ActiveRecord, name: str) -> None:
    getattr(record, name)()  # by name: a subclass that overrides the method need not mark it again


_known: WeakKeyDictionary[type[ActiveRecord], Callbacks] = WeakKeyDictionary()


def callbacks_of(model: type[ActiveRecord]) -> Callbacks:
    """The callbacks of a model; looked for once."""
    found = _known.get(model)
    if found is None:
        found = _known[model] = Callbacks(model)
    return found

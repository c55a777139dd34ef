"""Change events: what the ORM does to the rows of a model with `__publish__` is told in the same transaction.

Their values are those of the rows, read under lock, and they obey the transaction like all events: a rolled-back
savepoint takes them along, and so does the abort of a saga, whose undo tells of nothing.
"""

from __future__ import annotations

import hashlib
import json
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast
from weakref import WeakKeyDictionary

from pydantic import BaseModel, create_model
from pydantic_core import to_jsonable_python

from crosstie.orm.errors import ModelDefinitionError
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.mapping import TableMapping, mapping_of
from crosstie.orm.watch import RowChange, watch_with
from crosstie.outbox.envelope import MAX_KEY_LENGTH
from crosstie.outbox.event import Event
from crosstie.outbox.publish import enqueue

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord

__all__ = ["ChangeEvents", "RowEvent", "changes"]


class RowEvent(Event):
    """A row was created, updated or deleted.

    `old` has the row's published fields before and `new` those after; None where there was no row. `row` is the key as
    text: events of one row keep their order, and so do others that have it for their key.
    """

    __event_type__ = "crosstie.row"
    __key__ = "row"

    model_key: ClassVar[tuple[str, ...]] = ()

    row: str
    old: Any = None
    new: Any = None

    @property
    def key(self) -> Any:
        """The primary key; a tuple where it has several columns."""
        values = tuple(getattr(self.old if self.new is None else self.new, name) for name in self.model_key)
        return values[0] if len(values) == 1 else values


class ChangeEvents(NamedTuple):
    """The event classes of a model."""

    created: type[RowEvent]
    updated: type[RowEvent]
    deleted: type[RowEvent]


def changes(model: type[ActiveRecord]) -> ChangeEvents:
    """The classes of the model's change events, to subscribe to: `@subscriber(changes(User).updated, database=…)`.

    Raises ModelDefinitionError where the model publishes none, or a field that it has not.
    """
    found = _publisher(mapping_of(model))
    if found is None:
        raise ModelDefinitionError(
            f"{model.__qualname__} publishes no changes: declare __publish__ = True, or the names of the fields to "
            "publish."
        )
    return found.events


class _Publisher:
    """The watcher that publishes."""

    def __init__(self, mapping: TableMapping) -> None:
        self.fields = _published(mapping)
        self._values = _values_class(mapping, self.fields)
        self.events = _event_classes(mapping, self._values)

    def changed(self, tx: LocalTransaction, mapping: TableMapping, changes: Sequence[RowChange]) -> None:
        """Keep the events for the commit."""
        enqueue(tx, [self._event(change) for change in changes])

    def _event(self, change: RowChange) -> RowEvent:
        created, updated, deleted = self.events
        cls = created if change.before is None else deleted if change.after is None else updated
        # Not validated: rows may be older than what the model asks of new ones.
        return cls.model_construct(
            row=_row_text(change.key), old=self._snapshot(change.before), new=self._snapshot(change.after)
        )

    def _snapshot(self, row: Mapping[str, Any] | None) -> BaseModel | None:
        return None if row is None else self._values.model_construct(**{name: row[name] for name in self.fields})


def _published(mapping: TableMapping) -> tuple[str, ...]:
    """The names of the fields, those of the key among them."""
    model = mapping.model
    chosen = model.__publish__
    for name in (*(chosen if isinstance(chosen, tuple) else ()), *model.__publish_except__):
        if name not in mapping.fields:
            raise ModelDefinitionError(f"__publish__ and __publish_except__: {mapping.unknown(name)}")
    key = {field.name for field in mapping.key}
    hidden = next((name for name in model.__publish_except__ if name in key), None)
    if hidden is not None:
        raise ModelDefinitionError(
            f"{model.__qualname__}.__publish_except__ names {hidden!r}, by which subscribers know the row."
        )
    wanted = key | set(chosen if isinstance(chosen, tuple) else mapping.fields) - set(model.__publish_except__)
    return tuple(name for name in mapping.fields if name in wanted)


def _values_class(mapping: TableMapping, fields: Sequence[str]) -> type[BaseModel]:
    model = mapping.model
    # Without the constraints of the fields, which old rows need not meet.
    annotated: dict[str, Any] = {name: (model.model_fields[name].annotation, ...) for name in fields}
    name = f"{model.__name__}Row"
    return create_model(name, __config__=Event.model_config, __module__=model.__module__, **annotated)


def _event_classes(mapping: TableMapping, values: type[BaseModel]) -> ChangeEvents:
    prefix = mapping.model.__publish_as__ or mapping.table.name
    kinds = {"created": ("new",), "updated": ("old", "new"), "deleted": ("old",)}
    return ChangeEvents(
        *(_event_class(mapping, f"{prefix}.{kind}", dict.fromkeys(held, values)) for kind, held in kinds.items())
    )


def _event_class(mapping: TableMapping, event_type: str, annotations: Mapping[str, type]) -> type[RowEvent]:
    name = f"{mapping.model.__qualname__}:{event_type}"
    body = {
        "__module__": mapping.model.__module__,
        "__qualname__": name,
        "__event_type__": event_type,
        "__connection__": mapping.place if isinstance(mapping.place, str) else None,
        "__annotations__": dict(annotations),
        "model_key": tuple(field.name for field in mapping.key),
    }
    return cast(
        "type[RowEvent]", types.new_class(name, (RowEvent,), exec_body=lambda namespace: namespace.update(body))
    )


def _row_text(key: Sequence[Any]) -> str:
    plain = to_jsonable_python(list(key), bytes_mode="hex")
    text = str(plain[0]) if len(plain) == 1 else json.dumps(plain, separators=(",", ":"))
    if 0 < len(text) <= MAX_KEY_LENGTH and "\x00" not in text:
        return text
    return hashlib.sha256(text.encode()).hexdigest()


_publishers: WeakKeyDictionary[type[ActiveRecord], _Publisher] = WeakKeyDictionary()


def _publisher(mapping: TableMapping) -> _Publisher | None:
    model = mapping.model
    if not model.__publish__:
        return None
    found = _publishers.get(model)
    if found is None:
        found = _publishers[model] = _Publisher(mapping)
    return found


watch_with(_publisher, declared_by="__publish__")

"""Events: frozen pydantic models with a stable type name, by which the receiving side finds the class again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, Self, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict, PrivateAttr

from crosstie.outbox.errors import EventDefinitionError, UnknownEventType
from crosstie.outbox.upcasting import Upcasters

__all__ = ["Event", "EventBuffer", "event_class", "known_class", "require_complete_upcasters"]

MAX_TYPE_LENGTH = 200
F = TypeVar("F", bound=Callable[[dict[str, Any]], dict[str, Any]])


class Event(BaseModel):
    """A fact to be told to other databases; subclass it with fields, as any pydantic model.

    - `__event_type__`: the stored name (default: the class's name). Renaming the class is free where it is given.
    - `__schema_version__`: raised when the fields change in a way that older readers cannot take; `upcast` says how
      stored events of older versions are read.
    - `__key__`: the field whose value orders events: those of one key arrive in the order of their commits
      (default: no order).
    - `__connection__`: the database in whose outbox the event is written (default: see `publish`).

    Two classes of one type raise EventDefinitionError; a class defined again (a reloaded module) replaces itself.
    """

    # JSON has no bytes, no NaN and no infinity: without these the payload would not come back as it was.
    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings")

    __event_type__: ClassVar[str] = "Event"
    __schema_version__: ClassVar[int] = 1
    __key__: ClassVar[str | None] = None
    __connection__: ClassVar[str | None] = None
    __upcasters__: ClassVar[Upcasters] = Upcasters("Event", 1)

    _headers: Mapping[str, str] | None = PrivateAttr(default=None)  # a factory would cost as much as all the fields

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Check the declaration and make the class known by its type."""
        super().__pydantic_init_subclass__(**kwargs)
        # A type is never inherited: a subclass with more fields is another fact.
        cls.__event_type__ = cls.__dict__.get("__event_type__", cls.__name__)
        _check(cls)
        cls.__upcasters__ = Upcasters(cls.__event_type__, cls.__schema_version__)
        _register(cls)

    @classmethod
    def upcast(cls, *, from_version: int) -> Callable[[F], F]:
        """Declare the function that makes the fields of the next version from those of `from_version`.

        It takes and returns a dict of JSON values. Older events pass through one function after another, up to
        `__schema_version__`. Raises EventDefinitionError.
        """

        def declare(function: F) -> F:
            return cls.__upcasters__.add(from_version, function)

        return declare

    @property
    def event_headers(self) -> Mapping[str, str]:
        """What travels with the event beside its fields: trace context, tenant, cause."""
        return self._headers or {}

    def with_headers(self, headers: Mapping[str, str]) -> Self:
        """A copy of the event that carries these headers too."""
        copy = self.model_copy()
        copy._headers = {**self.event_headers, **headers}
        return copy

    def publish(self, database: str | None = None) -> None:
        """Write the event into an outbox, in the transaction whose commit it tells of.

        Which outbox: `database`, else `__connection__`, else in a saga home's, else that of the thread's only open
        transaction. A database named here that has no open transaction gets one of its own, committed at once.

        Raises NoOutboxChosen, EventInvalid, and what the database answers: in a transaction only at its commit.
        """
        from crosstie.outbox.publish import publish_event

        publish_event(self, database)


@runtime_checkable
class EventBuffer(Protocol):
    """A unit of work that keeps events until it knows whose outbox they belong to: a saga."""

    def buffer_event(self, event: Event) -> None:
        """Publish the event when the unit's outcome is decided, and only if it commits."""


_classes: dict[str, type[Event]] = {}


def event_class(event_type: str) -> type[Event]:
    """The class of this type. Raises UnknownEventType."""
    found = _classes.get(event_type)
    if found is None:
        raise UnknownEventType(
            f"no event class of type {event_type!r} is known to this process. Import the module that defines it: "
            "workers import what the setting `imports` names."
        )
    return found


def require_complete_upcasters() -> None:
    """Raise EventDefinitionError where a class's upcasters do not lead up to its version."""
    for cls in list(_classes.values()):
        cls.__upcasters__.require_complete()


def known_class(event_type: str) -> type[Event] | None:
    """The class of this type, or None where this process has none."""
    return _classes.get(event_type)


def _check(cls: type[Event]) -> None:
    declared: object = cls.__event_type__
    if not isinstance(declared, str) or not 0 < len(declared) <= MAX_TYPE_LENGTH:
        raise EventDefinitionError(
            f"{cls.__qualname__}.__event_type__: expected a text of 1 to {MAX_TYPE_LENGTH} characters, "
            f"found {declared!r}."
        )
    version: object = cls.__schema_version__
    if type(version) is not int or version < 1:
        raise EventDefinitionError(
            f"{cls.__qualname__}.__schema_version__: expected a whole number from 1 on, found {version!r}."
        )
    if cls.__key__ is not None and cls.__key__ not in cls.model_fields:
        raise EventDefinitionError(
            f"{cls.__qualname__}.__key__ names {cls.__key__!r}, which is no field of it. "
            f"Expected one of: {', '.join(cls.model_fields) or '(it has no fields)'}."
        )


def _register(cls: type[Event]) -> None:
    known = _classes.get(cls.__event_type__)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise EventDefinitionError(
            f"the event type {cls.__event_type__!r} is taken: {known.__module__}.{known.__qualname__} has it, and "
            f"{cls.__module__}.{cls.__qualname__} wants it too. Give one of them an __event_type__ of its own."
        )
    _classes[cls.__event_type__] = cls

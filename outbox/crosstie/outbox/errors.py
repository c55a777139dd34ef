"""What can go wrong with events, subscriptions and the relay."""

from __future__ import annotations

from typing import ClassVar

from crosstie.orm.errors import CrosstieError

__all__ = [
    "BackfillOvertaken",
    "BatchRefused",
    "CacheUnrouted",
    "CodeMissing",
    "CopyUnrouted",
    "DeliveryFailed",
    "EventDefinitionError",
    "EventInvalid",
    "EventTooNew",
    "EventUnreadable",
    "ForeignWrite",
    "InboxMissing",
    "LeaseLost",
    "NoOutboxChosen",
    "NoSubscriber",
    "OperationRefused",
    "OutboxError",
    "ReferenceUnrouted",
    "RelayMisused",
    "SchemaChangeOffline",
    "SchemaError",
    "SchemaInUse",
    "SchemaTooNew",
    "TargetFailed",
    "UnknownCopy",
    "UnknownEventType",
    "UnknownSchemaVersion",
    "Unrouted",
]


class OutboxError(CrosstieError):
    """The root of the outbox's errors."""

    code = "outbox"


class EventDefinitionError(OutboxError):
    """An event class or a subscriber is not declared in a way that can be used."""

    code = "outbox.definition"


class EventInvalid(OutboxError):
    """An event cannot be published with the values that it has."""

    code = "outbox.event-invalid"


class NoOutboxChosen(OutboxError):
    """Nothing says into which database's outbox an event shall be written."""

    code = "outbox.none-chosen"


class Unrouted(OutboxError):
    """A write must be told of, and its database stores no subscription yet that would carry the word.

    Workers store the subscriptions of the models that they import: once one has, the same write passes.
    """

    code = "outbox.unrouted"
    retryable = True


class ReferenceUnrouted(Unrouted):
    """A delete concerns rows of another database, and no subscription is stored that would take word of it there."""

    code = "outbox.reference-unrouted"


class CacheUnrouted(Unrouted):
    """A write changes cached rows, and no subscription is stored that would take word of it to the cache."""

    code = "outbox.cache-unrouted"


class CopyUnrouted(Unrouted):
    """A write concerns copies of columns, and no subscription is stored by which they would be kept right."""

    code = "outbox.copy-unrouted"


class UnknownCopy(OutboxError):
    """A denormalised column was named that no imported model declares."""

    code = "outbox.unknown-copy"


class BackfillOvertaken(OutboxError):
    """Another process goes on with the same walk."""

    code = "outbox.backfill-overtaken"


class EventUnreadable(OutboxError):
    """A stored event does not fit the class that this process has for it."""

    code = "outbox.event-unreadable"


class CodeMissing(EventUnreadable):
    """A stored event needs code that this process does not have; another may have it, or a deployment will bring it."""

    code = "outbox.code-missing"


class UnknownEventType(CodeMissing):
    """A stored event has a type for which this process has no class."""

    code = "outbox.unknown-type"


class NoSubscriber(CodeMissing):
    """A stored event goes to a database for which this process has no subscriber."""

    code = "outbox.no-subscriber"


class EventTooNew(CodeMissing):
    """A stored event was written by newer code than this process has."""

    code = "outbox.event-too-new"


class ForeignWrite(OutboxError):
    """A subscriber wrote to another database than the one that it is declared for."""

    code = "outbox.foreign-write"


class RelayMisused(OutboxError):
    """The relay was called from inside a transaction, whose outcome its own commits must not depend on."""

    code = "outbox.relay-misused"


class OperationRefused(OutboxError):
    """What an operator asked for cannot be done to this event or route."""

    code = "outbox.operation-refused"


class LeaseLost(OutboxError):
    """Another worker took the lane before this one had finished; nothing was acknowledged."""

    code = "outbox.lease-lost"
    retryable = True


class DeliveryFailed(OutboxError):
    """A subscriber raised, or its event could not be read; the target was rolled back.

    `position` is the event's place among those that were being applied. The message never quotes the event or the
    exception's text, because it is stored and shown.
    """

    code: ClassVar[str] = "outbox.delivery-failed"
    retryable: ClassVar[bool] = True

    def __init__(
        self,
        message: str = "",
        /,
        *,
        position: int = 0,
        passing: bool = False,
        undeployed: bool = False,
        deaths: int = 0,
    ) -> None:
        """`passing`: the database or the network caused it, and the same event may well pass next time.

        `undeployed`: this process has no code for the event; that says nothing of the event. `deaths`: nothing was
        raised, but so many more workers have died of it.
        """
        super().__init__(message)
        self.position = position
        self.passing = passing
        self.undeployed = undeployed
        self.deaths = deaths


class TargetFailed(OutboxError):
    """The target database did not let the relay do its work; nothing was lost.

    `whole_route`: no lane of the route would fare better now. `taken`: so many events of the batch, its first, it has
    taken all the same; always 0 for a database.
    """

    code: ClassVar[str] = "outbox.target-failed"
    retryable: ClassVar[bool] = True

    def __init__(self, message: str = "", /, *, whole_route: bool = False, taken: int = 0) -> None:
        super().__init__(message)
        self.whole_route = whole_route
        self.taken = taken


class BatchRefused(TargetFailed):
    """The target refused to commit what the subscribers of a batch had done; it cannot be said for which event."""

    code: ClassVar[str] = "outbox.batch-refused"


class InboxMissing(TargetFailed):
    """The lane has no row in the target's inbox."""

    code: ClassVar[str] = "outbox.inbox-missing"


class SchemaError(OutboxError):
    """crosstie's tables cannot be brought to the version that was asked for."""

    code = "outbox.schema"


class SchemaTooNew(SchemaError):
    """crosstie's tables were made by a newer version of crosstie."""

    code = "outbox.schema-too-new"


class UnknownSchemaVersion(SchemaError):
    """This crosstie has no such version of its tables."""

    code = "outbox.schema-unknown-version"


class SchemaInUse(SchemaError):
    """crosstie's tables hold work that nobody has finished, and dropping them would lose it."""

    code = "outbox.schema-in-use"


class SchemaChangeOffline(SchemaError):
    """crosstie's tables are changed only through a connection, not by a script of SQL."""

    code = "outbox.schema-offline"

"""What crosstie asks of a message broker, ours and anybody's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from crosstie.outbox.errors import OutboxError

__all__ = ["Broker", "BrokerUnavailable", "Message", "MessageRefused"]


@dataclass(frozen=True, slots=True)
class Message:
    """An event for a broker. `body` is a CloudEvent in JSON; `id`, `type` and `key` are what it says too.

    `id` is the same however often the event is published. Messages of one `key` must stay in their order.
    """

    id: str
    type: str
    key: str
    body: str = field(repr=False)


class BrokerUnavailable(OutboxError):
    """The broker cannot be reached or does not take messages now; the same messages may well pass later.

    `confirmed`: so many of the messages, the first ones, it has taken for certain.
    """

    code: ClassVar[str] = "outbox.broker-unavailable"
    retryable: ClassVar[bool] = True

    def __init__(self, text: str, confirmed: int = 0) -> None:
        super().__init__(text)
        self.confirmed = confirmed

    def __reduce__(self) -> tuple[type[BrokerUnavailable], tuple[str, int]]:
        """Celery pickles errors."""
        return type(self), (str(self), self.confirmed)


class MessageRefused(OutboxError):
    """The broker will never take the message at `position`; it has taken those before it, and none after."""

    code: ClassVar[str] = "outbox.message-refused"

    def __init__(self, text: str, position: int = 0) -> None:
        super().__init__(text)
        self.position = position

    def __reduce__(self) -> tuple[type[MessageRefused], tuple[str, int]]:
        """See BrokerUnavailable."""
        return type(self), (str(self), self.position)


class Broker(Protocol):
    """A connection to a broker, used by one thread at a time, and kept while it works."""

    def publish(self, destination: str, messages: Sequence[Message]) -> None:
        """Hand all messages over in this order, and return once the broker has confirmed that it keeps them.

        Raises BrokerUnavailable and MessageRefused, after either of which nothing more may be sent; the connection is
        closed after any exception. It must not wait for longer than the setting `timeout_s` for any answer.
        """

    def close(self) -> None:
        """Give the connection up, whatever state it is in."""

"""RabbitMQ through kombu: persistent messages, each confirmed before the next one is sent.

One at a time, because a message that RabbitMQ refuses must have none of its key behind it. `mandatory`, because an
exchange confirms what it has no queue for, and throws it away.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import amqp
import kombu
from amqp.exceptions import MessageNacked
from kombu.exceptions import OperationalError

from crosstie.orm.configuration import BrokerSettings
from crosstie.outbox.brokers.contract import BrokerUnavailable, Message, MessageRefused
from crosstie.outbox.cloudevent import CONTENT_TYPE

__all__ = ["RabbitMQ"]

logger = logging.getLogger(__name__)


class RabbitMQ:
    """See Broker; the destination is a routing key of the exchange, or a queue where there is no exchange."""

    def __init__(self, settings: BrokerSettings) -> None:
        self._exchange = settings.exchange
        self._timeout_s = settings.timeout_s
        self._connection = kombu.Connection(
            settings.url.get_secret_value(),
            connect_timeout=settings.timeout_s,
            heartbeat=0,
            transport_options={
                "confirm_publish": True,
                "read_timeout": settings.timeout_s,
                "write_timeout": settings.timeout_s,
            },
        )
        self._producer: Any = None

    def publish(self, destination: str, messages: Sequence[Message]) -> None:
        """Raises BrokerUnavailable, and MessageRefused for a message that is too large."""
        confirmed = 0
        try:
            if self._producer is None:
                self._connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=1)
                self._producer = kombu.Producer(self._connection.channel())
            for one in messages:
                self._send(destination, one)
                confirmed += 1
        except amqp.PreconditionFailed as error:
            raise MessageRefused(f"RabbitMQ: {error}", confirmed) from error
        except (amqp.AMQPError, MessageNacked, OperationalError, OSError) as error:
            raise BrokerUnavailable(f"RabbitMQ: {type(error).__name__}: {error}", confirmed) from error

    def _send(self, destination: str, message: Message) -> None:
        self._producer.publish(
            message.body.encode(),
            exchange=self._exchange,
            routing_key=destination,
            content_type=CONTENT_TYPE,
            content_encoding="utf-8",
            delivery_mode=2,
            mandatory=True,
            retry=False,
            message_id=message.id,
            type=message.type,
            confirm_timeout=self._timeout_s,
        )

    def close(self) -> None:
        """See Broker."""
        try:
            self._connection.collect(socket_timeout=self._timeout_s)
        except Exception as error:  # noqa: BLE001 - it is broken, which is why it is closed
            logger.debug("a broken connection to RabbitMQ could not be closed: %s", error)

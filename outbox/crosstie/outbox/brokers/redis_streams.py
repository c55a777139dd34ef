"""Redis Streams: each event is an entry with the fields id, type, key and event, the CloudEvent.

A batch is one MULTI … EXEC, so a stream never has a later event without the earlier ones of its batch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import redis

from crosstie.orm.configuration import BrokerSettings
from crosstie.outbox.brokers.contract import BrokerUnavailable, Message

__all__ = ["RedisStreams"]

logger = logging.getLogger(__name__)


class RedisStreams:
    """See Broker; the destination is the name of a stream, which the first event makes."""

    def __init__(self, settings: BrokerSettings) -> None:
        self._stream_length = settings.stream_length
        # No retries of its own: a batch whose answer was lost must be known to be in doubt.
        self._client = redis.Redis.from_url(
            settings.url.get_secret_value(),
            socket_connect_timeout=settings.timeout_s,
            socket_timeout=settings.timeout_s,
            retry=None,
            single_connection_client=True,
        )

    def publish(self, destination: str, messages: Sequence[Message]) -> None:
        """One transaction of Redis. Raises BrokerUnavailable."""
        pipeline: Any = self._client.pipeline(transaction=True)
        for one in messages:
            entry = {"id": one.id, "type": one.type, "key": one.key, "event": one.body}
            pipeline.xadd(destination, entry, maxlen=self._stream_length, approximate=True)
        try:
            pipeline.execute()
        except redis.RedisError as error:
            raise BrokerUnavailable(f"Redis: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """See Broker."""
        try:
            self._client.close()
        except (OSError, redis.RedisError) as error:
            logger.debug("a broken connection to Redis could not be closed: %s", error)

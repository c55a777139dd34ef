"""A broker as the relay's target: what is published and confirmed is acknowledged, and no more can be known.

A broker has no inbox, so a crash between its confirmation and the acknowledgement publishes the batch again, and an
owner that has lost its lane cannot be fenced: it is only kept from beginning when its lease may be over.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import ConfigurationError, CrosstieError
from crosstie.orm.faults import fault_point
from crosstie.outbox.batch import OutboxRow
from crosstie.outbox.brokers.contract import BrokerUnavailable, Message, MessageRefused
from crosstie.outbox.brokers.forwarding import Destination
from crosstie.outbox.brokers.pool import borrowed
from crosstie.outbox.cloudevent import cloudevent_json
from crosstie.outbox.errors import DeliveryFailed, TargetFailed
from crosstie.outbox.lane import Lease

__all__ = ["BrokerTarget"]

PORTION: Final = 100
"""Messages between two looks at the clock."""


class BrokerTarget:
    """Publishes events; for one owner of one lane."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._published: set[int] = set()

    def enter(self, lease: Lease) -> frozenset[int]:
        """Nobody is shut out, and nothing is known."""
        del lease
        return frozenset()

    def apply(self, lease: Lease, rows: Sequence[OutboxRow]) -> frozenset[int]:
        """Publish the events that this owner has not published yet.

        Raises DeliveryFailed for one that no CloudEvent can hold or the broker refuses for good, TargetFailed.
        """
        # Before anything is sent: the relay then comes again with the events before the bad one.
        messages = [self._message(lease, position, row) for position, row in enumerate(rows)]
        begun_s = time.monotonic()
        for start in range(0, len(rows), PORTION):
            if time.monotonic() - begun_s > lease.lease_s / 2:
                raise self._failed("it is so slow that the lane's lease would run out", taken=start)
            self._publish(rows[start : start + PORTION], messages[start : start + PORTION], start)
        fault_point("broker.published")
        return frozenset()

    def _publish(self, rows: Sequence[OutboxRow], messages: Sequence[Message], start: int) -> None:
        fresh = [place for place, row in enumerate(rows) if row.id not in self._published]
        if not fresh:
            return
        try:
            with borrowed(self._destination.broker) as broker:
                broker.publish(self._destination.name, [messages[place] for place in fresh])
        except MessageRefused as error:
            self._published.update(rows[place].id for place in fresh[: error.position])
            place = fresh[error.position]
            raise self._refused(start + place, rows[place], str(error)) from error
        except BrokerUnavailable as error:
            taken = fresh[error.confirmed] if error.confirmed < len(fresh) else len(rows)
            raise self._failed(str(error), taken=start + taken) from error
        except ConfigurationError as error:
            raise self._failed(str(error), taken=start) from error
        except Exception as error:
            raise self._failed(f"{type(error).__module__}.{type(error).__qualname__}: {error}", taken=start) from error
        self._published.update(row.id for row in rows)

    def _message(self, lease: Lease, position: int, row: OutboxRow) -> Message:
        settings = ConnectionManager.settings().brokers.get(self._destination.broker)
        source = settings.source if settings is not None else None
        written = datetime.now(UTC) - timedelta(milliseconds=row.age_ms)
        try:
            body = cloudevent_json(
                row.envelope(),
                source=source or f"urn:crosstie:{lease.origin.rpartition(':')[0]}",
                sequence=row.id,
                time=written,
            )
        except CrosstieError as error:
            raise self._refused(position, row, str(error)) from error
        return Message(row.uid, row.type, row.key, body)

    def _refused(self, position: int, row: OutboxRow, reason: str) -> DeliveryFailed:
        return DeliveryFailed(
            f"event {row.id} of type {row.type!r} (uid {row.uid}) could not be published by route "
            f"{self._destination.route!r}: {reason}",
            position=position,
        )

    def _failed(self, reason: str, *, taken: int) -> TargetFailed:
        return TargetFailed(f"route {self._destination.route!r}: {reason}", whole_route=True, taken=taken)

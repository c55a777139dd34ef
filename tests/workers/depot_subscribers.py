"""What a worker of the depot imports. Apart from the rest, since subscribing lasts as long as the process."""

from __future__ import annotations

from crosstie.outbox import subscriber
from workers.depot import ParcelArrived, ParcelSent, arrive, receive

__all__ = ["arrive", "receive"]

subscriber(ParcelSent, database="secondary")(arrive)
subscriber(ParcelArrived, database="default")(receive)

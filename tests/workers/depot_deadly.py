"""What a worker imports that one event kills, as a crash in a library would: no exception, no word, no process."""

from __future__ import annotations

import os

from crosstie.outbox import subscriber
from workers.depot import ParcelArrived, ParcelSent, arrive, receive

__all__ = ["arrive_or_die"]


def arrive_or_die(event: ParcelSent) -> None:
    """Note the arrival, and die if it is that one."""
    arrive(event)
    if event.number == int(os.environ["DEPOT_DEADLY"]):
        os._exit(1)


subscriber(ParcelSent, database="secondary")(arrive_or_die)
subscriber(ParcelArrived, database="default")(receive)

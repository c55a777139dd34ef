"""What workers and producers of the streams import: subscribers, and a Celery app on a broker made of files.

kombu's transport for files promises next to nothing: its readers meet files that are half written, and a message that
is no JSON ends the worker. The storm adds to that what a gremlin thinks of.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

from celery import Celery

from crosstie.outbox import subscriber
from crosstie.workers import install
from storm.stream import LATE_S, STREAMS, Applied, Counted, Stepped, Walked, pause

__all__ = ["app", "step", "walk"]

FOLDER = Path(os.environ["STREAM_BROKER"])

app = Celery("streams", broker="filesystem://", set_as_current=False)
app.conf.update(
    broker_transport_options={
        "data_folder_in": str(FOLDER / "messages"),
        "data_folder_out": str(FOLDER / "messages"),
        "control_folder": str(FOLDER / "control"),
        "processed_folder": str(FOLDER / "processed"),
        "store_processed": True,
    },
    accept_content=["json"],
    broker_connection_retry_on_startup=True,
    worker_enable_remote_control=False,
    worker_prefetch_multiplier=1,
)
install(app)


def count(stream: str, events: int) -> None:
    """Add to the stream's row."""
    Counted.find(int(stream) if stream.isdigit() else STREAMS + 1).increment(events=events)


@subscriber(Stepped, database="secondary")
def step(event: Stepped) -> None:
    """One event."""
    Applied(stream=event.stream, number=event.number).save()
    count(event.stream, 1)


@subscriber(Walked, database="secondary", batch=True)
def walk(events: list[Walked]) -> None:
    """Many; often slowly, so that lanes are busy, and much can happen before events are acknowledged."""
    if random.random() < 0.1:
        pause(random.uniform(0, 2 * LATE_S))
    Applied.bulk_create([Applied(stream=event.stream, number=event.number) for event in events])
    for stream, times in Counter(event.stream for event in events).items():
        count(stream, times)

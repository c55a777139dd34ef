"""An outbox in each database, and the relay that carries its events to the others."""

from crosstie.outbox.backfill import backfill
from crosstie.outbox.backlog import RouteBacklog, pending
from crosstie.outbox.brokers import forward
from crosstie.outbox.change_event import ChangeEvents, RowEvent, changes
from crosstie.outbox.cloudevent import cloudevent_json, from_cloudevent, to_cloudevent
from crosstie.outbox.comparison import ComparedCopies, CopyDifference, compare_copies
from crosstie.outbox.copies import CopiesDue, OriginalsWritten
from crosstie.outbox.copy_name import select_copies
from crosstie.outbox.envelope import Envelope
from crosstie.outbox.errors import OutboxError
from crosstie.outbox.event import Event, EventBuffer
from crosstie.outbox.propagation import ReferenceDeleted
from crosstie.outbox.publish import publish
from crosstie.outbox.route import SyncReport, sync_routes
from crosstie.outbox.subscription import subscriber
from crosstie.outbox.sweep import drain, sweep_lanes
from crosstie.outbox.tables import create_tables, drop_tables, has_tables

__all__ = [
    "ChangeEvents",
    "ComparedCopies",
    "CopiesDue",
    "CopyDifference",
    "Envelope",
    "Event",
    "EventBuffer",
    "OriginalsWritten",
    "OutboxError",
    "ReferenceDeleted",
    "RouteBacklog",
    "RowEvent",
    "SyncReport",
    "backfill",
    "changes",
    "cloudevent_json",
    "compare_copies",
    "create_tables",
    "drain",
    "drop_tables",
    "forward",
    "from_cloudevent",
    "has_tables",
    "pending",
    "publish",
    "select_copies",
    "subscriber",
    "sweep_lanes",
    "sync_routes",
    "to_cloudevent",
]

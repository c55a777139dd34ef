"""Publishing: events are kept until their transaction commits, and written as its last act.

Late, because a row's lock must come before its event's id (then ids of one key ascend in commit order), and because one
statement for all of them is the cheapest there is.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from crosstie.orm.driver_errors import MappedErrors
from crosstie.orm.errors import CrossDatabaseWriteWarning
from crosstie.orm.local_transaction import LocalTransaction, current, open_transactions
from crosstie.orm.transaction import active_unit, transaction
from crosstie.outbox import doorbell
from crosstie.outbox.envelope import Envelope
from crosstie.outbox.errors import NoOutboxChosen
from crosstie.outbox.event import Event, EventBuffer
from crosstie.outbox.insertion import CHUNK, insert_events, last_insertion
from crosstie.outbox.notification import announce
from crosstie.outbox.tables import route
from crosstie.outbox.trace_context import traced

__all__ = ["KEPT", "SAGA_EVENTS", "enqueue", "enqueue_envelopes", "publish", "publish_event"]

EVENTS: Final = "outbox.events"
SAGA_ID: Final = "outbox.saga_id"
SAGA_EVENTS: Final = "outbox.saga_events"
"""For each writing of a branch's events their places, or None where the server does not tell them."""
KEPT: Final = "outbox.kept"
"""The envelopes that were written, in a transaction that has this ledger from the start."""
_TOUCH: Final = sa.select(route.c.lanes).where(route.c.route == "")


def publish(event: Event, to: sa.Connection | Session) -> None:
    """Write the event at once on the caller's SQLAlchemy connection or session, which is never committed here.

    A session is flushed first, so that the rows which the event tells of are locked before it gets its id. No doorbell
    rings for it: a sweep finds it. On the connection of an open saga or transaction of this thread it is the same as
    `event.publish(database)`. Raises EventInvalid, NoSuchTable, and what else the database answers.
    """
    if isinstance(to, Session):
        to.flush()
        connection = to.connection()
    else:
        connection = to
    for tx in open_transactions().values():
        if tx.bare is connection:  # a saga's or a transaction's own: its rules hold, late writing among them
            enqueue(tx, [event])
            return
    url = connection.engine.url
    with MappedErrors(str(url.database), url.render_as_string(hide_password=True)):
        insert_events(connection, [Envelope.of(event)])
        announce(connection)


def publish_event(event: Event, database: str | None = None) -> None:
    """What `Event.publish` does."""
    name = database or event.__connection__
    unit = active_unit()
    buffer: object = unit
    if name is None and unit is not None and isinstance(buffer, EventBuffer):
        buffer.buffer_event(event.with_headers(traced(event.event_headers)))  # the trace of here, not of the saga's end
        return
    if name is None:
        name = _only_open_database(event)
    tx = current(name) or (unit.transaction(name) if unit is not None else None)
    if tx is not None:
        tx.require_healthy()
        enqueue(tx, [event])
        return
    if open_transactions():
        warnings.warn(
            f"{type(event).__qualname__} is published in {name!r} inside a transaction of "
            f"{', '.join(map(repr, open_transactions()))}: it is committed by itself, and stays when that transaction "
            "rolls back. Wrap both in `with saga(...)`.",
            CrossDatabaseWriteWarning,
            stacklevel=3,
        )
    with transaction(name) as own:
        enqueue(own, [event])


def enqueue(tx: LocalTransaction, events: Iterable[Event]) -> None:
    """Write these events when `tx` commits; a savepoint that rolls back takes them along.

    Raises EventInvalid.
    """
    envelopes = [Envelope.of(event) for event in events]
    if envelopes:
        enqueue_envelopes(tx, envelopes)


def enqueue_envelopes(tx: LocalTransaction, envelopes: Sequence[Envelope]) -> None:
    """The same for events that have been published before."""
    first = not tx.written
    tx.mark_written()
    if first and tx.depth:
        # If this savepoint rolls back, nothing else may ever be written; but MySQL has no open transaction to commit
        # before a statement has touched a table, and then it looks like one that an error has ended.
        with tx.mapped_errors():
            tx.bare.execute(_TOUCH)
    tx.ledger(EVENTS).extend(envelopes)
    # Registered again after a rolled-back savepoint has cut it away, and by a hook that publishes after it has run.
    if _write not in tx.ledger("before_commit"):
        tx.before_commit(_write)


def _write(tx: LocalTransaction) -> None:
    waiting = tx.ledger(EVENTS)
    envelopes = list(waiting)
    waiting.clear()
    if KEPT in tx.ledgers:
        tx.ledger(KEPT).extend(envelopes)
    saga_id = next(iter(tx.ledgers.get(SAGA_ID, ())), None)
    heard = doorbell.is_heard()
    with tx.mapped_errors(), tx.internal():
        if tx.notifies:
            announce(tx.bare)
        if saga_id is None and len(envelopes) <= CHUNK:
            then = partial(_ring_later, tx)
            tx.conclude_with(last_insertion(tx.bare, envelopes, want_routes=heard, then=then))
            return
        written = insert_events(tx.bare, envelopes, saga_id=saga_id, want_routes=heard, own=True)
    if saga_id is not None:
        tx.ledger(SAGA_EVENTS).append(written.places)
    if heard:
        _ring_later(tx, written.routes)


def _ring_later(tx: LocalTransaction, routes: set[str]) -> None:
    for name in sorted(routes):
        tx.after_commit(partial(doorbell.ring, tx.database.name, name))


def _only_open_database(event: Event) -> str:
    names = list(open_transactions())
    if len(names) == 1:
        return names[0]
    found = f"transactions are open on {', '.join(map(repr, names))}" if names else "no transaction is open"
    raise NoOutboxChosen(
        f"{type(event).__qualname__} needs a database in whose outbox it is written, and {found}. Publish it inside "
        "`with transaction(...)` or `with saga(...)`, or name one: publish(database=…), or __connection__ on the class."
    )

"""Deletes that travel: word of deleted parents goes to their children's database, which deletes or nulls the children.

The event holds keys and nothing else, and is written in the transaction that deletes. Its subscriber works in batches:
one transaction touches a bounded number of rows, and what is left goes on as another event, from the children's own
outbox to itself. All of it is idempotent: what is gone is not deleted again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, cast

import sqlalchemy as sa

from crosstie.orm.condition import Membership
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.faults import fault_point
from crosstie.orm.local_transaction import LocalTransaction, current
from crosstie.orm.mapping import MappedField, mapping_of
from crosstie.orm.reference import Reference
from crosstie.orm.referrer import acting_references, carry_with
from crosstie.orm.release import release
from crosstie.orm.transaction import statement_connection
from crosstie.outbox.errors import EventUnreadable, ReferenceUnrouted
from crosstie.outbox.event import Event, known_class
from crosstie.outbox.key_json import from_json, to_json
from crosstie.outbox.publish import enqueue
from crosstie.outbox.subscription import subscribe_with, subscriber
from crosstie.outbox.tables import route

__all__ = ["KEYS_PER_EVENT", "ROWS_PER_TRANSACTION", "ReferenceDeleted", "deleted_event", "receive"]

KEYS_PER_EVENT: Final = 500
ROWS_PER_TRANSACTION: Final = 1_000
"""Children that one transaction deletes or nulls, however many events the relay hands over in it."""

_SPENT: Final = "outbox.reference.spent"
_LEFT: Final = "outbox.reference.left"


class ReferenceDeleted(Event):
    """Rows with these keys, which `reference` refers to, were deleted; a key is the JSON of the parent's column."""

    __event_type__ = "crosstie.reference.deleted"

    reference: str
    keys: list[Any]


def deleted_event(source: str, target: str) -> type[ReferenceDeleted]:
    """The class of such events that go from one database to another, or to itself.

    A type for each way, so that a database gets those that concern it, and stores no others.
    """
    type_ = f"{ReferenceDeleted.__event_type__}:{source}>{target}"
    known = known_class(type_)
    if known is not None:
        return cast("type[ReferenceDeleted]", known)

    class Directed(ReferenceDeleted):
        __event_type__ = type_
        __connection__ = source

    return Directed


def _carry(tx: LocalTransaction, reference: Reference, values: Sequence[Any]) -> None:
    """Write the word of deleted parents into their own database's outbox. Raises ReferenceUnrouted."""
    _tell(tx, reference, [to_json(value) for value in values])


def _tell(tx: LocalTransaction, reference: Reference, keys: Sequence[Any]) -> None:
    kind = _routed(tx, reference)
    chunks = (keys[start : start + KEYS_PER_EVENT] for start in range(0, len(keys), KEYS_PER_EVENT))
    enqueue(tx, [kind(reference=reference.name, keys=list(chunk)) for chunk in chunks])


def _routed(tx: LocalTransaction, reference: Reference) -> type[ReferenceDeleted]:
    """The class of the events from here to the children, which somebody must have subscribed to here.

    An event without a subscription is not stored; this one would be lost, and the children stay for ever.
    """
    source, target = tx.database.name, reference.child_connection
    kind = deleted_event(source, target)
    query = sa.select(route.c.lanes).where(route.c.route == target, route.c.event_type == kind.__event_type__)
    with tx.mapped_errors():
        if tx.connection.execute(query).first() is None:
            raise ReferenceUnrouted(
                f"{reference.name} is declared on_delete={reference.on_delete!r}, and database {source!r} does not "
                f"know yet that deletes are to be told to {target!r}. Run `crosstie init` with the module of "
                f"{reference.child_model.__qualname__} imported, or call sync_routes()."
            )
    return kind


def receive(event: ReferenceDeleted) -> None:
    """Delete or null rows that refer to the keys, within the bound of the transaction; another event does the rest.

    A key that a parent has again is left alone. Raises EventUnreadable for a reference that no model declares.
    """
    reference = _declared(event.reference)
    tx = current(reference.child_connection)
    assert tx is not None, "the relay runs subscribers in a transaction of their database"
    keys = _without_parent(reference, event.keys)
    if not keys:
        return
    spent = tx.ledger(_SPENT)
    limit = ROWS_PER_TRANSACTION - sum(spent)
    released = 0
    if limit > 0:
        field = _child_field(reference)
        released = release(reference, [from_json(field, key) for key in keys], limit=limit)
        spent.append(released)
        fault_point("reference.released")
    if released >= limit:
        _routed(tx, reference)
        left = tx.ledger(_LEFT)
        if not left:
            tx.before_commit(_go_on)
        left.append((reference, keys))


def _go_on(tx: LocalTransaction) -> None:
    """Write what is left as few events, however many have brought it."""
    left = tx.ledger(_LEFT)
    by_name: dict[str, tuple[Reference, dict[Any, None]]] = {}
    for reference, keys in left:
        _, collected = by_name.setdefault(reference.name, (reference, {}))
        collected.update(dict.fromkeys(keys))
    left.clear()
    for reference, collected in by_name.values():
        _tell(tx, reference, list(collected))


def _without_parent(reference: Reference, keys: Sequence[Any]) -> list[Any]:
    """The keys that no parent has now, each once: one inserted again since has children of its own."""
    parent = mapping_of(reference.parent_model)
    field = parent.field_of_column[reference.parent_column.name]
    # Alike, whoever wrote them: a trigger writes a UUID as the database stores it.
    sought = {to_json(value): value for value in (from_json(field, key) for key in keys)}
    clause = Membership(field, list(sought.values())).clause(ConnectionManager.get(parent.connection))
    with statement_connection(parent.connection, write=False) as connection:
        alive = {to_json(value) for value in connection.execute(sa.select(field.column).where(clause)).scalars()}
    return [key for key in sought if key not in alive]


def _child_field(reference: Reference) -> MappedField:
    return mapping_of(reference.child_model).field_of_column[reference.child_column.name]


def _declared(name: str) -> Reference:
    found = next((one for one in acting_references() if one.name == name), None)
    if found is None:
        raise EventUnreadable(
            f"rows were deleted that the reference {name} leads to, and no model of this process declares it with "
            "on_delete. Import the module that does: workers import what the setting `imports` names."
        )
    return found


def _subscribe_declared() -> None:
    """Subscribe to the deletes that the declared references care for, and to what is left of them."""
    for source, target in _ways(acting_references()):
        subscriber(deleted_event(source, target), database=target)(receive)


def _ways(references: Iterable[Reference]) -> Iterator[tuple[str, str]]:
    for reference in references:
        yield reference.parent_connection, reference.child_connection
        yield reference.child_connection, reference.child_connection


carry_with(_carry)
subscribe_with(_subscribe_declared)

"""Events that keep copies right. They carry keys and no values: whoever gets one reads the originals as they are then.

Each group of copies has types of its own, so that a worker that has not imported a group's models leaves its events
alone, and a database stores those that concern it and no others.
"""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeVar, cast

import sqlalchemy as sa
from pydantic import Field

from crosstie.orm.copies import CopyGroup, copy_groups
from crosstie.orm.database import Database
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.outbox.envelope import MAX_KEY_LENGTH
from crosstie.outbox.errors import CopyUnrouted, EventUnreadable
from crosstie.outbox.event import MAX_TYPE_LENGTH, Event, known_class
from crosstie.outbox.key_json import to_json
from crosstie.outbox.tables import route

__all__ = [
    "KEYS_PER_EVENT",
    "CopiesDue",
    "OriginalsWritten",
    "copies_due",
    "directed_classes",
    "due_type",
    "group_of",
    "originals_written",
    "require_routed",
    "undone",
    "written_type",
]

KEYS_PER_EVENT: Final = 500
_E = TypeVar("_E", bound=Event)


class OriginalsWritten(Event):
    """Rows of the parent with these primary keys were written: their copies are to be aligned.

    `of` is the same for events of the same row, which then go through one lane.
    """

    __event_type__ = "crosstie.originals"
    __key__ = "of"

    of: str
    keys: list[list[Any]]


class CopiesDue(Event):
    """Copies in this event's own database are to be aligned.

    Those of the children with the primary keys `rows`, and of those that refer to `keys`, from the primary key `after`
    on.
    """

    __event_type__ = "crosstie.copies"
    __key__ = "of"

    of: str
    rows: list[list[Any]] = Field(default_factory=list)
    keys: list[Any] = Field(default_factory=list)
    after: list[Any] | None = None


def originals_written(group: CopyGroup, keys: Sequence[Sequence[Any]]) -> Iterator[OriginalsWritten]:
    """Events that tell of these primary keys of the parent, given as JSON."""
    kind = _directed(OriginalsWritten, written_type(group), group.parent.connection)
    for chunk in _chunks(keys):
        yield kind(of=_of(chunk[0]), keys=[list(key) for key in chunk])


def copies_due(
    group: CopyGroup,
    *,
    rows: Sequence[Sequence[Any]] = (),
    keys: Sequence[Any] = (),
    after: Sequence[Any] | None = None,
) -> Iterator[CopiesDue]:
    """Events that ask for these children, or for those that refer to these keys; all of it given as JSON."""
    kind = _directed(CopiesDue, due_type(group), group.child.connection)
    for some in _chunks(rows):
        yield kind(of=_of(some[0]), rows=[list(row) for row in some])
    for chunk in _chunks(keys):
        yield kind(of=_of(chunk[0]), keys=list(chunk), after=None if after is None else list(after))


def written_type(group: CopyGroup) -> str:
    """The type of events from the parent's database to the child's."""
    return _fitted(f"{_written_about(group.parent.connection, group.parent.table.name)}{_foreign_key(group)}")


def due_type(group: CopyGroup) -> str:
    """The type of events from the child's database to itself."""
    return _fitted(f"{_due_about(group.child.connection, group.child.table.name)}{_foreign_key(group)}")


def undone(tx: LocalTransaction, table: str, keys: Sequence[Sequence[Any]]) -> Iterator[Event]:
    """Events that tell of rows of a table which got back what they had; their primary keys are given as JSON.

    For whoever is subscribed here, whether or not this process knows the models.
    """
    written, due = _written_about(tx.database.name, table), _due_about(tx.database.name, table)
    with tx.mapped_errors():
        types = tx.connection.execute(sa.select(route.c.event_type).distinct()).scalars().all()
    for chunk in _chunks(keys):
        rows = [list(key) for key in chunk]
        for type_ in types:
            if type_.startswith(written):
                yield _directed(OriginalsWritten, type_, tx.database.name)(of=_of(rows[0]), keys=rows)
            elif type_.startswith(due):
                yield _directed(CopiesDue, type_, tx.database.name)(of=_of(rows[0]), rows=rows)


def directed_classes(group: CopyGroup) -> tuple[type[OriginalsWritten], type[CopiesDue]]:
    """The classes of the group's events."""
    return (
        _directed(OriginalsWritten, written_type(group), group.parent.connection),
        _directed(CopiesDue, due_type(group), group.child.connection),
    )


def group_of(event: OriginalsWritten | CopiesDue) -> CopyGroup:
    """The group that the event concerns. Raises EventUnreadable where no model declares it."""
    wanted = event.__event_type__
    found = next((group for group in copy_groups() if wanted in {written_type(group), due_type(group)}), None)
    if found is None:
        raise EventUnreadable(
            f"an event of type {wanted!r} tells of copies that no model of this process declares. Import the module "
            "that does: workers import what the setting `imports` names."
        )
    return found


_routed: weakref.WeakKeyDictionary[Database, set[tuple[str, str]]] = weakref.WeakKeyDictionary()


def require_routed(tx: LocalTransaction, group: CopyGroup, event_type: str) -> None:
    """Raise CopyUnrouted where no subscription is stored in the database of `tx` by which such events reach the copies.

    An event without one is not stored, and the copies would be wrong for ever.
    """
    known = _routed.setdefault(tx.database, set())
    wanted = (group.child.connection, event_type)
    if wanted in known:
        return
    query = sa.select(route.c.lanes).where(route.c.route == wanted[0], route.c.event_type == event_type)
    with tx.mapped_errors(), tx.internal():
        if tx.connection.execute(query).first() is None:
            raise CopyUnrouted(
                f"copies are declared for {group.name}, and database {tx.database.name!r} does not know yet that "
                f"{wanted[0]!r} is to be told of changes. Run `crosstie init` with the module of "
                f"{group.child.model.__qualname__} imported, or call sync_routes()."
            )
    known.add(wanted)


def _directed(base: type[_E], type_: str, source: str) -> type[_E]:
    known = known_class(type_)
    if known is not None:
        return cast("type[_E]", known)

    class Directed(base):  # type: ignore[valid-type,misc]
        __event_type__ = type_
        __connection__ = source

    return cast("type[_E]", Directed)


def _written_about(database: str, table: str) -> str:
    return f"{OriginalsWritten.__event_type__}:{database}.{table}>"


def _due_about(database: str, table: str) -> str:
    return f"{CopiesDue.__event_type__}:{database}.{table}>"


def _foreign_key(group: CopyGroup) -> str:
    """What tells the groups between two tables apart."""
    near = f"{group.child.connection}.{group.child.table.name}.{group.link.near.column.name}"
    return f"{near}>{group.parent.connection}.{group.parent.table.name}.{group.link.far.column.name}"


def _fitted(type_: str) -> str:
    if len(type_) <= MAX_TYPE_LENGTH:
        return type_
    return f"{type_[: MAX_TYPE_LENGTH - 9]}~{zlib.crc32(type_.encode()):08x}"


def _of(key: Any) -> str:
    parts = key if isinstance(key, list | tuple) else [key]
    spelt = ",".join(str(to_json(part)) for part in parts)
    return spelt if 0 < len(spelt) <= MAX_KEY_LENGTH and "\0" not in spelt else f"{zlib.crc32(spelt.encode()):08x}"


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + KEYS_PER_EVENT] for start in range(0, len(items), KEYS_PER_EVENT))

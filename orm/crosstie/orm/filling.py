"""Copies in rows that are being written: filled from their originals, and refused from anybody else.

The original is read on its primary, inside the thread's own transaction or saga there, before the row is written. It
may change before the row is committed; so whoever keeps the copies is told of the row, and looks again.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from crosstie.orm.copies import CopyGroup, copies_in
from crosstie.orm.errors import RecordInvalid
from crosstie.orm.mapping import MappedField, TableMapping
from crosstie.orm.reading import reading

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord

__all__ = ["copies_that_follow", "fill", "fill_rows", "refuse_copies"]


def fill(
    mapping: TableMapping, records: Sequence[ActiveRecord], *, changed: Container[str] | None = None
) -> list[dict[str, Any]]:
    """The copies that belong to the records' foreign keys, by field, for each record.

    `changed` are the fields that are about to be updated, None for new records: copies whose foreign key is not among
    them are left out. Raises RecordInvalid for a copy that was given another value, and DatabaseUnavailable.
    """
    filled: list[dict[str, Any]] = [{} for _ in records]
    if not mapping.copied:
        return filled
    for group in copies_in(mapping):
        foreign = _foreign(mapping, group)
        if foreign is not None and (changed is None or foreign.name in changed):
            keys = [record.__dict__.get(foreign.name) for record in records]
            for values, found in zip(filled, _looked_up(mapping, group, keys), strict=True):
                values.update(found)
    for record, values in zip(records, filled, strict=True):
        _refuse_others(record, mapping, values, changed)
    return filled


def fill_rows(mapping: TableMapping, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an update of many rows, with the copies that follow a foreign key among them.

    Raises RecordInvalid where a copy is among them, InvalidQuery.
    """
    refuse_copies(mapping, values)
    filled = dict(values)
    for group in copies_in(mapping) if mapping.copied else ():
        foreign = _foreign(mapping, group)
        if foreign is not None and foreign.name in values:
            filled |= _looked_up(mapping, group, [foreign.coerce(values[foreign.name])])[0]
    return filled


def copies_that_follow(mapping: TableMapping, names: Collection[str]) -> list[str]:
    """The copies that are written with these fields, because a foreign key is among them."""
    return [
        name
        for group in (copies_in(mapping) if mapping.copied else ())
        if (foreign := _foreign(mapping, group)) is not None and foreign.name in names
        for name, _ in _places(mapping, group)
    ]


def refuse_copies(mapping: TableMapping, names: Iterable[str]) -> None:
    """Raise RecordInvalid where a copy is among the fields that the application wants to write."""
    copy = next((name for name in names if name in mapping.copied), None)
    if copy is not None:
        raise RecordInvalid(_refusal(mapping, copy))


def _foreign(mapping: TableMapping, group: CopyGroup) -> MappedField | None:
    """The foreign key as this model knows it; another model of the same table may have declared the copies."""
    return mapping.field_of_column.get(group.link.near.column.name)


def _looked_up(mapping: TableMapping, group: CopyGroup, keys: Sequence[Any]) -> list[dict[str, Any]]:
    """The copies that this model has, for each key."""
    link = group.link
    sought = list(dict.fromkeys(link.far.sought(key) for key in keys if key is not None))
    originals: dict[Any, tuple[Any, ...]] = {}
    if sought:
        with reading(group.parent, primary=True) as (connection, _):
            originals = group.originals(connection, sought)
    nothing = (None,) * len(group.copies)
    places = _places(mapping, group)
    found = (nothing if key is None else originals.get(link.hashable(key), nothing) for key in keys)
    return [{name: values[place] for name, place in places} for values in found]


def _places(mapping: TableMapping, group: CopyGroup) -> list[tuple[str, int]]:
    """The copies that this model has, by field, each with its place in the group."""
    known = mapping.field_of_column
    places = ((copy.field.column.name, place) for place, copy in enumerate(group.copies))
    return [(known[column].name, place) for column, place in places if column in known]


def _refuse_others(
    record: ActiveRecord, mapping: TableMapping, filled: Mapping[str, Any], changed: Container[str] | None
) -> None:
    for name in mapping.copied:
        given = record.__dict__.get(name)
        written = given is not None if changed is None else name in changed
        if written and (name not in filled or given != filled[name]):
            raise RecordInvalid(_refusal(mapping, name))


def _refusal(mapping: TableMapping, name: str) -> str:
    path = mapping.copied[name]
    return (
        f"{mapping.model.__qualname__}.{name} is a copy of {path!r}, which its own database owns and crosstie alone "
        f"writes here: change the original, and leave {name} out."
    )

"""Which references there are to audit: declared by models, written in the settings, or given as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

import sqlalchemy as sa

from crosstie.orm.configuration import nearest
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import NoSuchTable
from crosstie.orm.integrity import AuditedReference, Endpoint, UnknownReference
from crosstie.orm.integrity.endpoint import OfType
from crosstie.orm.integrity.types import TypeColumn
from crosstie.orm.reference import Reference, ReferenceUnion, reference_unions

__all__ = ["known_reference", "reflected_end", "reflected_reference", "select_references", "spread", "type_columns"]


def select_references(
    chosen: Iterable[Reference | AuditedReference | str] | None = None, *, include_local: bool = False
) -> list[AuditedReference]:
    """The references to audit, each once; without a choice, those of models and of the setting `audit.references`.

    A name may be cut down to its child ("secondary.posts.user_id", "posts.user_id") as long as one reference has it.
    Raises UnknownReference, with the nearest name; for those of the settings, what `reflected_reference` raises.
    """
    if chosen is None:
        found = {one.name: AuditedReference.declared(one) for one in reference_unions(crossing_only=not include_local)}
        for text in ConnectionManager.settings().audit.references:
            written = reflected_reference(text)
            found.setdefault(written.name, written)
        return list(found.values())
    found = {}
    for one in chosen:
        selected = _named(one) if isinstance(one, str) else one
        if isinstance(selected, Reference):
            selected = AuditedReference.declared(selected)
        found.setdefault(selected.name, selected)
    return list(found.values())


def known_reference(name: str) -> AuditedReference | None:
    """The reference of this whole name, if a model or the settings have it. Raises as `reflected_reference` does."""
    for one in reference_unions():
        if one.name == name:
            return AuditedReference.declared(one)
    texts = {_spelt(text): text for text in ConnectionManager.settings().audit.references}
    return reflected_reference(texts[name]) if name in texts else None


def reflected_reference(text: str) -> AuditedReference:
    """The reference of "legacy.orders.user_id -> main.users.id", whose tables are read from the databases.

    An end is the name of a connection, a schema if need be, a table and a column, or several:
    "legacy.parcels.(order_id, shop_id) -> main.orders.(id, shop_id)". Parents may be in several databases:
    "{main_eu, main_us}.users.id". Of a polymorphic reference the child says of which type:
    "legacy.notes.subject_id[subject_type=Post]". Raises UnknownReference for a text that is none, UnknownConnection,
    NoSuchTable, DatabaseUnavailable.
    """
    child, arrow, parent = text.partition("->")
    if not arrow:
        raise UnknownReference(
            f"expected a reference such as 'legacy.orders.user_id -> main.users.id', and found {text!r} without '->'."
        )
    of_child = _reflected_child(child.strip(), text)
    first, *others = (reflected_end(end, text) for end in spread(parent.strip(), text))
    if len(of_child.columns) != len(first.columns):
        raise UnknownReference(
            f"expected as many columns in {first} as in {of_child}, and found {len(first.columns)} and "
            f"{len(of_child.columns)} in {text!r}."
        )
    made = AuditedReference.between(of_child, first)
    return replace(made, name=_spelt(text), others=tuple(others)) if others else made


def _reflected_child(end: str, text: str) -> Endpoint:
    plain, bracket, condition = end.partition("[")
    if not bracket:
        return reflected_end(end, text)
    column_name, equals, value = condition.removesuffix("]").partition("=")
    if not (condition.endswith("]") and column_name.strip() and equals and value.strip()):
        raise UnknownReference(
            f"expected the type of a polymorphic reference as [column=value], such as 'notes.subject_id"
            f"[subject_type=Post]', and found {end!r} in {text!r}."
        )
    key = reflected_end(plain.strip(), text)
    types = reflected_end(f"{plain.strip().rpartition('.')[0]}.{column_name.strip()}", text)
    return replace(key, of_type=OfType(key.table.c[types.column.name], value.strip()))


def type_columns(wanted: Iterable[AuditedReference]) -> list[TypeColumn]:
    """The type columns of these references, as far as models or the settings declare them: with all types known there.

    Raises as `select_references` does.
    """
    found: dict[str, TypeColumn] = {}
    names = {one.name for one in wanted if one.child.of_type is not None}
    declared = [one for one in select_references(include_local=True) if one.child.of_type is not None] if names else []
    for end in dict.fromkeys(_column(one) for one in declared if one.name in names):
        known = [one for one in declared if _column(one) == end]
        types = [one.child.of_type for one in known if one.child.of_type is not None]
        column = TypeColumn(known[0].child, types[0].column, tuple(dict.fromkeys(one.value for one in types)))
        found[" ".join(end)] = column
    return list(found.values())


def _column(reference: AuditedReference) -> tuple[str, str, str, str]:
    child = reference.child
    types = "" if child.of_type is None else child.of_type.column.name
    return child.connection, child.table.fullname, child.column.name, types


def spread(end: str, text: str) -> list[str]:
    """An end for each database of "{main_eu, main_us}.users.id". Raises UnknownReference."""
    if not end.startswith("{"):
        return [end]
    listed, closed, rest = end[1:].partition("}")
    names = [name.strip() for name in listed.split(",")]
    if not closed or not all(names) or len(set(names)) < len(names):
        raise UnknownReference(
            f"expected the names of connections in braces, such as '{{main_eu, main_us}}.users.id', and found {end!r} "
            f"in {text!r}."
        )
    return [f"{name}{rest}" for name in names]


def _spelt(text: str) -> str:
    child, _, parent = text.partition("->")
    spelt = f"{child.strip()} -> {parent.strip()}"
    return re.sub(r"\(([^)]*)\)", lambda listed: f"({', '.join(map(str.strip, listed[1].split(',')))})", spelt)


def reflected_end(end: str, text: str) -> Endpoint:
    """The column of "legacy.orders.user_id", or of one with a schema, or the columns of "legacy.t.(a, b)".

    `text` is for errors.

    Raises UnknownReference, UnknownConnection, NoSuchTable, DatabaseUnavailable.
    """
    table_of, opened, listed = end.removesuffix(")").partition(".(")
    names = [name.strip() for name in listed.split(",")] if opened else []
    parts = [*table_of.split("."), names[0]] if names else end.split(".")
    if len(parts) not in {3, 4} or not all([*parts, *names]) or len(set(names)) < len(names):
        raise UnknownReference(
            f"expected connection.table.column or connection.schema.table.column, or several as .(a, b), and found "
            f"{end!r} in {text!r}."
        )
    connection_name, *schema, table_name, column_name = parts
    names = names or [column_name]
    database = ConnectionManager.get(connection_name)
    of_schema = schema[0] if schema else None
    with database.mapped_errors(), database.autocommit.connect() as connection:
        if not sa.inspect(connection).has_table(table_name, schema=of_schema):
            raise NoSuchTable(
                f"database {connection_name!r} ({database.settings.address()}): expected a table {table_name!r}, for "
                f"{text!r}, and found none."
            )
        table = sa.Table(table_name, sa.MetaData(), schema=of_schema, autoload_with=connection, resolve_fks=False)
    for name in names:
        if name not in table.c:
            raise NoSuchTable(
                f"database {connection_name!r}: expected a column {name!r} in table {table_name!r}, for {text!r}."
                f"{nearest(name, [column.name for column in table.c])}"
            )
    first, *more = (table.c[name] for name in names)
    return Endpoint(connection_name, table, first, more=tuple(more))


def _named(name: str) -> AuditedReference:
    declared: dict[str, ReferenceUnion | str] = {one.name: one for one in reference_unions()}
    for text in ConnectionManager.settings().audit.references:
        declared.setdefault(_spelt(text), text)
    matches = [name] if name in declared else [full for full in declared if _short_for(name, full)]
    if len(matches) == 1:
        found = declared[matches[0]]
        return reflected_reference(found) if isinstance(found, str) else AuditedReference.declared(found)
    if matches:
        raise UnknownReference(f"{name!r} may mean {' or '.join(map(repr, matches))}: write the whole name, quoted.")
    if not declared:
        raise UnknownReference(
            f"no reference is called {name!r}, because no imported model declares one. Name the modules of your models "
            "in the setting `imports`, or with --import; or audit without models: crosstie audit --from-sql."
        )
    raise UnknownReference(f"no reference is called {name!r}.{_nearest(name, list(declared))}")


def _short_for(name: str, full: str) -> bool:
    child = full.partition(" -> ")[0]
    return bool(name) and (child == name or child.endswith(f".{name}"))


def _nearest(name: str, declared: Sequence[str]) -> str:
    """Compared by its child alone where only that was written."""
    if "->" in name:
        return nearest(name, list(declared))
    by_child = {full.partition(" -> ")[0]: full for full in declared}
    short = {".".join(child.split(".")[-1 - name.count(".") :]): full for child, full in by_child.items()}
    return nearest(name, list(short) if name.count(".") < 2 else list(by_child))

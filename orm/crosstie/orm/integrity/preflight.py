"""Whether the keys of both ends can be compared at all: refused rather than guessed.

MariaDB calls '5abc' equal to 5, SQLite stores what it is given, and a model may say something else than the table. So
the servers are asked, and ends of different kinds are refused.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.integrity.catalog import ColumnFacts
from crosstie.orm.integrity.endpoint import AuditedReference, Endpoint
from crosstie.orm.integrity.errors import KeysNotComparable
from crosstie.orm.integrity.storage import IntegerStorage, KeyKind, KeyStorage, TextStorage
from crosstie.orm.integrity.uuid_storage import BINARY_TYPES, UuidStorage

__all__ = ["key_kind", "storages"]

_INTEGERS: Final = {
    "postgresql": {"int2", "int4", "int8"},
    "mysql": {"tinyint", "smallint", "mediumint", "int", "bigint"},
}
_TEXTS: Final = {
    "postgresql": {"text", "varchar", "bpchar", "citext"},
    "mysql": {"char", "varchar", "tinytext", "text", "mediumtext", "longtext"},
}
_DECIMALS: Final = {"numeric", "decimal"}
_UUID_DIGITS: Final = 32
_UUID_BYTES: Final = 16


def key_kind(facts: ColumnFacts) -> KeyKind | None:
    """The kind of keys that a column of this type holds; None for a type that is no key's."""
    name = facts.type_name
    if facts.digits is not None:
        return KeyKind.INTEGER
    if facts.dialect == "sqlite":
        # SQLite's own rules of affinity, in their order: https://www.sqlite.org/datatype3.html#determination_of_column_affinity
        if "int" in name:
            return KeyKind.INTEGER
        if any(part in name for part in ("char", "clob", "text")):
            return KeyKind.TEXT
        return KeyKind.UUID if name == "uuid" else None
    family = "mysql" if facts.dialect in {"mysql", "mariadb"} else facts.dialect
    if name in _INTEGERS[family]:
        return KeyKind.INTEGER
    if name in _TEXTS[family]:
        return KeyKind.TEXT
    return KeyKind.UUID if name == "uuid" else None


def storages(reference: AuditedReference, child: ColumnFacts, parent: ColumnFacts) -> tuple[KeyStorage, KeyStorage]:
    """How the child and the parent store the keys of this reference.

    Raises KeysNotComparable where that would have to be guessed.
    """
    declared = _declared_uuid(reference.child) or _declared_uuid(reference.parent)
    kinds = [_kind_among(child, parent, declared), _kind_among(parent, child, declared)]
    if kinds[0] is None or kinds[1] is None or kinds[0] is not kinds[1]:
        raise KeysNotComparable(
            f"expected keys of one kind at both ends (integers, UUIDs or text); found {_named(reference.child, child)} "
            f"and {_named(reference.parent, parent)}. An audit does not guess which of them are meant to be equal: "
            f"give both columns one type.{_hint(child, parent)}"
        )
    return _storage(kinds[0], child), _storage(kinds[1], parent)


def _hint(*ends: ColumnFacts) -> str:
    if any(facts.type_name in _DECIMALS and facts.digits is None for facts in ends):
        return " Decimals are keys where they have no fraction: NUMERIC(20, 0)."
    return ""


def _kind_among(facts: ColumnFacts, other: ColumnFacts, declared_uuid: bool) -> KeyKind | None:
    if _could_be_uuid(facts) and (_is_uuid(facts) or _is_uuid(other) or declared_uuid):
        return KeyKind.UUID
    return key_kind(facts)


def _is_uuid(facts: ColumnFacts) -> bool:
    """Whether a column holds UUIDs for certain: by its type, or sixteen bytes."""
    return key_kind(facts) is KeyKind.UUID or (facts.type_name in BINARY_TYPES and facts.length == _UUID_BYTES)


def _could_be_uuid(facts: ColumnFacts) -> bool:
    """Whether a column may hold them, if anything else says that it does: text or bytes that are long enough."""
    if facts.type_name in BINARY_TYPES:
        return facts.length in {None, _UUID_BYTES}
    return key_kind(facts) is KeyKind.TEXT and (facts.length is None or facts.length >= _UUID_DIGITS)


def _declared_uuid(end: Endpoint) -> bool:
    declared: sa.types.TypeEngine[Any] = end.column.type
    return isinstance(declared, sa.Uuid)


def _named(end: Endpoint, facts: ColumnFacts) -> str:
    length = f"({facts.length})" if facts.length is not None else ""
    return f"{end} of type {facts.type_name or 'unknown'}{length} in {facts.dialect}"


def _storage(kind: KeyKind, facts: ColumnFacts) -> KeyStorage:
    if kind is KeyKind.INTEGER:
        return IntegerStorage(facts)
    return UuidStorage(facts) if kind is KeyKind.UUID else TextStorage(facts)

"""The order of a UUID's bytes, where a column stores sixteen of them: not every program keeps the usual one.

MySQL's `UUID_TO_BIN(…, 1)` puts the time's last bytes first, and .NET turns the first three parts round. What was
written so reads as other UUIDs, none of which the other end has: each key would be an orphan.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa

from crosstie.orm.integrity.child import ChildColumn
from crosstie.orm.integrity.endpoint import Endpoint
from crosstie.orm.integrity.errors import KeysNotComparable
from crosstie.orm.integrity.parent import ParentColumn
from crosstie.orm.integrity.storage import KeyKind
from crosstie.orm.integrity.union import ParentUnion
from crosstie.orm.integrity.uuid_storage import UuidStorage

__all__ = ["byte_order", "require_one_byte_order"]

_SAMPLE: Final = 200
_ENOUGH: Final = 20
"""So few keys tell nothing: by chance any byte may look like that of a version."""
_USUAL: Final = "the usual order"
_VERSION_AT: Final = {
    _USUAL: 6,
    "the order of UUID_TO_BIN(uuid, 1), with the time's parts swapped": 0,
    "the order of .NET, with the first three parts turned round": 7,
}
"""The byte whose first half is the version, 1 to 8."""


def byte_order(keys: Sequence[bytes]) -> str:
    """The order of the bytes of these keys, as far as can be told: the usual one unless they contradict it."""
    variants = [key for key in keys if len(key) == 16 and key[8] >> 6 == 0b10]
    if len(variants) < _ENOUGH or len(variants) < 0.9 * len(keys):
        return _USUAL
    shares = {name: sum(1 <= key[at] >> 4 <= 8 for key in variants) / len(variants) for name, at in _VERSION_AT.items()}
    if shares[_USUAL] >= 0.9:
        return _USUAL
    likely = max(shares, key=lambda name: shares[name])
    return likely if shares[likely] > 0.99 else _USUAL


def require_one_byte_order(child: ChildColumn, parent: ParentColumn) -> None:
    """Look at some keys of both ends, where one stores bytes. Raises KeysNotComparable, DatabaseUnavailable."""
    if child.storage.kind is not KeyKind.UUID:
        return
    orders = {}
    parents = parent.parents if isinstance(parent, ParentUnion) else (parent,)
    columns: list[ChildColumn | ParentColumn] = [child, *parents]
    for column in columns:
        assert isinstance(column.storage, UuidStorage)
        orders[str(column.end)] = byte_order(_some(column.end)) if column.storage.is_binary else _USUAL
    if len(set(orders.values())) > 1:
        told = "; ".join(f"{end} has {order}" for end, order in orders.items())
        raise KeysNotComparable(
            f"expected UUIDs whose bytes are in one order at both ends, and {told}. Store them in one order, or audit "
            "a generated column that has them so."
        )


def _some(end: Endpoint) -> list[bytes]:
    column = sa.type_coerce(end.column, sa.LargeBinary())
    found = end.database.rows(sa.select(column).where(column.is_not(None)).limit(_SAMPLE))
    return [row[0] for row in found if isinstance(row[0], bytes)]

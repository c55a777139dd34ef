"""A relation of one model, resolved: which fields of which tables are equal, and over which tables it leads.

A direct relation is one link. A relation through others is a chain of links, each within reach of one query.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args

from crosstie.orm.errors import ModelDefinitionError, ReferenceTypeMismatch
from crosstie.orm.mapping import MappedField, TableMapping

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord

__all__ = ["Link", "joined", "mapped_field", "target_in"]


class Link(NamedTuple):
    """`near` is a field of the model that has the relation, `far` one of the target; without `hops` they are equal."""

    target: TableMapping
    near: MappedField
    far: MappedField
    inverse: str | None = None
    plain: Callable[[Any], Any] | None = None
    """Makes the two sides' values hashable alike, where their Python types differ though their columns compare."""
    key_is_here: bool = False
    """Whether `near` is a foreign key, which a record may have before it is saved."""
    hops: tuple[Link, ...] = ()
    """The links of a relation through others, first to last; empty for a direct one."""

    @property
    def chain(self) -> tuple[Link, ...]:
        """The links to follow, one for a direct relation."""
        return self.hops or (self,)

    def hashable(self, value: Any) -> Any:
        """A value of either side, as it compares with those of the other."""
        return value if self.plain is None else self.plain(value)


def joined(
    where: str, target: TableMapping, foreign: MappedField, key: MappedField, *, key_is_here: bool, inverse: str | None
) -> Link:
    """The link between a foreign key and the key that it refers to. Raises ReferenceTypeMismatch."""
    if foreign.family is None or foreign.family is not key.family:
        raise ReferenceTypeMismatch(
            f"{where}: expected a foreign key of the type of the key that it refers to, and found "
            f"{foreign.column!s} ({_type_name(foreign)}) against {key.column!s} ({_type_name(key)}): databases "
            "compare them differently or not at all. Give both fields one type."
        )
    plain = None if foreign.exact is key.exact else _plain_value
    near, far = (foreign, key) if key_is_here else (key, foreign)
    return Link(target, near, far, inverse, plain, key_is_here)


def mapped_field(where: str, mapping: TableMapping, name: str) -> MappedField:
    """A field that a relation names. Raises ModelDefinitionError with the nearest name."""
    if name not in mapping.fields:
        raise ModelDefinitionError(f"{where}: {mapping.unknown(name)}")
    return mapping.fields[name]


def target_in(annotation: Any) -> str | type[ActiveRecord] | None:
    """The target in `ClassVar[HasMany['Post']]`, however it was written."""
    if isinstance(annotation, str):
        found = re.search(r"\b(?:HasMany|HasOne|BelongsTo|ManyToMany)\[\s*[\"']?([\w.]+)[\"']?\s*\]", annotation)
        return found[1] if found else None
    forward = getattr(annotation, "__forward_arg__", None)
    if isinstance(forward, str):
        return forward if forward.isidentifier() or "[" not in forward else target_in(forward)
    if isinstance(annotation, type) and hasattr(annotation, "__pydantic_fields__"):
        return cast("type[ActiveRecord]", annotation)
    arguments = get_args(annotation)
    return target_in(arguments[0]) if arguments else None


def _plain_value(value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else value


def _type_name(field: MappedField) -> str:
    return "JSON or another type that is no key" if field.family is None else field.family.__name__

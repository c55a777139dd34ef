"""Polymorphic references: a column with the key of a row, and one beside it that says in which table that row is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crosstie.orm.column import annotated
from crosstie.orm.errors import ModelDefinitionError
from crosstie.orm.link import joined, mapped_field
from crosstie.orm.mapping import MappedField, TableMapping, mapping_of
from crosstie.orm.registry import registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosstie.orm.link import Link
    from crosstie.orm.model import ActiveRecord

__all__ = ["Polymorphic", "TypedLink", "typed_links"]


@dataclass(frozen=True, eq=False)
class Polymorphic:
    """The key of a row of one of several models: which one, the field `type_field` of the same record says.

    `subject_id: Annotated[int | None, Polymorphic("subject_type", {"Post": Post, "Photo": "Photo"})] = None`. `models`
    are by the values of that field; a model that is defined later is named. Each is a reference that audits check; a
    value that is none of these is a finding.
    """

    type_field: str
    models: Mapping[str, str | type[ActiveRecord]] = field(default_factory=dict)


@dataclass(frozen=True)
class TypedLink:
    """One of the models that a polymorphic field leads to: where `type_field` of the child is `value`."""

    link: Link
    type_field: MappedField
    value: str


def typed_links(model: type[ActiveRecord]) -> Iterator[TypedLink]:
    """Where the polymorphic fields of the model lead, one for each type.

    Raises ModelDefinitionError, AmbiguousModel, and ReferenceTypeMismatch where a key has another type than the field.
    """
    for name, info in model.model_fields.items():
        for marker in annotated(info, Polymorphic):
            yield from _typed_links(mapping_of(model), name, marker)


def _typed_links(child: TableMapping, name: str, marker: Polymorphic) -> Iterator[TypedLink]:
    where = f"{child.model.__qualname__}.{name} is declared Polymorphic({marker.type_field!r})"
    if not marker.models:
        raise ModelDefinitionError(f"{where}: expected the models by type, such as {{'Post': Post}}, and found none.")
    type_field = mapped_field(where, child, marker.type_field)
    for value, target in marker.models.items():
        found = registry.resolve(target, child.model) if isinstance(target, str) else registry.latest(target)
        parent = mapping_of(found)
        link = joined(where, parent, child.fields[name], parent.single_key, key_is_here=True, inverse=None)
        yield TypedLink(link, type_field, value)

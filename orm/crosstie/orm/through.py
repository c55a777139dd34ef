"""Relations that lead over others, or over a join model: resolved to a chain of links, flat however deep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crosstie.orm.errors import ModelDefinitionError
from crosstie.orm.link import Link, joined, mapped_field
from crosstie.orm.mapping import TableMapping, mapping_of
from crosstie.orm.registry import registry

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord
    from crosstie.orm.relation import Has, ManyToMany, Relation

__all__ = ["over_join_model", "over_relations"]


def over_relations(
    relation: Has[Any],
    model: type[ActiveRecord],
    target: type[ActiveRecord],
    seen: tuple[Relation[Any], ...],
) -> Link:
    """The chain of a relation with `through`. Raises ModelDefinitionError where it leads elsewhere or in a circle."""
    where = f"{model.__qualname__}.{relation.name}"
    if relation in seen:
        raise ModelDefinitionError(f"{where}: its `through` leads back to itself, so that it has no table to read.")
    seen = (*seen, relation)
    first = _named(where, mapping_of(model), relation.through or "").link(model, seen=seen)
    second = _source(where, relation, first.target, target).link(first.target.model, seen=seen)
    if second.target.model is not target:
        raise ModelDefinitionError(
            f"{where}: expected to reach {target.__qualname__}, and {relation.through!r} leads to "
            f"{second.target.model.__qualname__}: name another source."
        )
    return _chained((*first.chain, *second.chain))


def over_join_model(relation: ManyToMany[Any], model: type[ActiveRecord], target: type[ActiveRecord]) -> Link:
    """The chain of a relation over a join model. Raises ModelDefinitionError, ReferenceTypeMismatch."""
    where = f"{model.__qualname__}.{relation.name}"
    through = relation.through
    if isinstance(through, str):
        through = registry.resolve(through, relation.owner())
    join = mapping_of(registry.latest(through))
    near = _side(where, join, relation.foreign_key, "foreign_key", mapping_of(model), apart_from=relation.target_key)
    far = _side(where, join, relation.target_key, "target_key", mapping_of(target), apart_from=relation.foreign_key)
    key = mapping_of(model).fields[near.far.name]  # the join model may refer to a base class of this model
    hop = joined(where, join, near.near, key, key_is_here=False, inverse=None)
    return _chained((hop, far))


def _chained(hops: tuple[Link, ...]) -> Link:
    first, last = hops[0], hops[-1]
    return Link(last.target, first.near, last.far, key_is_here=first.key_is_here, hops=hops)


def _named(where: str, mapping: TableMapping, name: str) -> Relation[Any]:
    found = mapping.relations.get(name)
    if found is None:
        raise ModelDefinitionError(f"{where}: {mapping.model.__qualname__} has no relation {name!r} to lead over.")
    return found


def _source(where: str, relation: Has[Any], between: TableMapping, target: type[ActiveRecord]) -> Relation[Any]:
    """The relation by which to go on: the one named, else one of the same name, else the only one that leads there."""
    if relation.source is not None:
        return _named(where, between, relation.source)
    if relation.name in between.relations:
        return between.relations[relation.name]
    direct = [one for one in between.relations.values() if not getattr(one, "through", None)]
    leading = [one for one in direct if one.link(between.model).target.model is target]
    if len(leading) == 1:
        return leading[0]
    found = ", ".join(repr(one.name) for one in leading) or "none"
    raise ModelDefinitionError(
        f"{where}: expected one relation of {between.model.__qualname__} that leads to {target.__qualname__}, and "
        f"found {found}: name it, source=..."
    )


def _side(where: str, join: TableMapping, name: str, argument: str, other: TableMapping, *, apart_from: str) -> Link:
    """The join model's reference to one of the two models."""
    if name:
        declared = [one for one in join.belongs_to() if one.foreign_key == name]
        for one in declared:
            link = one.link(join.model)
            if issubclass(other.model, link.target.model):
                return link
        foreign = mapped_field(where, join, name)
        return joined(where, other, foreign, other.single_key, key_is_here=True, inverse=None)
    links = [one.link(join.model) for one in join.belongs_to() if one.foreign_key != apart_from]
    leading = [link for link in links if issubclass(other.model, link.target.model)]
    if len(leading) == 1:
        return leading[0]
    found = ", ".join(repr(link.near.name) for link in leading) or "none"
    raise ModelDefinitionError(
        f"{where}: expected one BelongsTo of {join.model.__qualname__} that leads to {other.model.__qualname__}, and "
        f"found {found}: name the field, {argument}=..."
    )

"""Models by database and the references between them, as text, Mermaid or Graphviz; the same models give the same map.

Nothing is asked of any database. A model whose database is chosen for each statement stands under the rule that
chooses it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from crosstie.orm.mapping import TableMapping, mapping_of
from crosstie.orm.registry import registry

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord

__all__ = ["MapFormat", "MappedModel", "MappedReference", "ModelMap", "draw", "model_map"]


class MapFormat(StrEnum):
    """What a map is written in."""

    TEXT = "text"
    MERMAID = "mermaid"
    GRAPHVIZ = "graphviz"


@dataclass(frozen=True, order=True)
class MappedModel:
    """A model and its table, in a database or under the rule that chooses one."""

    database: str
    table: str
    name: str


@dataclass(frozen=True, order=True)
class MappedReference:
    """A foreign key: a column of the child refers to one of the parent."""

    child: MappedModel
    column: str
    parent: MappedModel
    parent_column: str

    @property
    def is_crossing(self) -> bool:
        """Whether the two tables are in different databases."""
        return self.child.database != self.parent.database


@dataclass(frozen=True)
class ModelMap:
    """All models and references, in order."""

    models: tuple[MappedModel, ...]
    references: tuple[MappedReference, ...]

    def by_database(self) -> dict[str, list[MappedModel]]:
        """The models of each database, both by name."""
        found: dict[str, list[MappedModel]] = {}
        for model in self.models:
            found.setdefault(model.database, []).append(model)
        return found


def model_map(models: Iterable[type[ActiveRecord]] | None = None) -> ModelMap:
    """The map of these models, or of every model defined. Raises what resolving a relation raises."""
    mappings = [mapping_of(model) for model in (registry.models() if models is None else models)]
    references = set()
    for mapping in mappings:
        for relation in mapping.belongs_to():
            link = relation.link(mapping.model)
            references.add(
                MappedReference(_mapped(mapping), link.near.column.name, _mapped(link.target), link.far.column.name)
            )
    # A parent may be defined and not be among the models asked for; its reference would lead nowhere.
    ends = {end for one in references for end in (one.child, one.parent)}
    return ModelMap(tuple(sorted({_mapped(one) for one in mappings} | ends)), tuple(sorted(references)))


def _mapped(mapping: TableMapping) -> MappedModel:
    return MappedModel(str(mapping.place), mapping.table.name, mapping.model.__name__)


def draw(found: ModelMap, form: MapFormat) -> str:
    """The map, written in this format, without a newline at the end."""
    return "\n".join(_DRAWINGS[form](found))


def _text(found: ModelMap) -> Iterable[str]:
    outgoing: dict[MappedModel, list[MappedReference]] = {}
    for one in found.references:
        outgoing.setdefault(one.child, []).append(one)
    for place, models in found.by_database().items():
        yield place
        for model in models:
            yield f"  {model.name} ({model.table})"
            for one in outgoing.get(model, ()):
                database = f"{one.parent.database}." if one.is_crossing else ""
                crosses = "  [crosses]" if one.is_crossing else ""
                yield f"    {one.column} -> {database}{one.parent.table}.{one.parent_column}{crosses}"
    crossing = sum(one.is_crossing for one in found.references)
    yield (
        f"{len(found.models)} models, {len(found.by_database())} databases, {len(found.references)} references, "
        f"{crossing} of them between databases"
    )


def _mermaid(found: ModelMap) -> Iterable[str]:
    """https://mermaid.js.org/syntax/flowchart.html: thick arrows cross."""
    names = {model: f"m{number}" for number, model in enumerate(found.models)}
    yield "flowchart LR"
    for number, (place, models) in enumerate(found.by_database().items()):
        yield f'  subgraph d{number}["{_entities(place)}"]'
        for model in models:
            yield f'    {names[model]}["{_entities(model.name)}<br/>{_entities(model.table)}"]'
        yield "  end"
    for one in found.references:
        arrow = "==>" if one.is_crossing else "-->"
        yield f'  {names[one.child]} {arrow}|"{_entities(one.column)}"| {names[one.parent]}'


def _graphviz(found: ModelMap) -> Iterable[str]:
    """https://graphviz.org/doc/info/lang.html: red, bold edges cross."""
    names = {model: f"m{number}" for number, model in enumerate(found.models)}
    yield "digraph crosstie {"
    yield "  rankdir=LR;"
    yield "  node [shape=box];"
    for number, (place, models) in enumerate(found.by_database().items()):
        yield f"  subgraph cluster_{number} {{"
        yield f"    label={_quoted(place)};"
        for model in models:
            yield f"    {names[model]} [label={_quoted(model.name, model.table)}];"
        yield "  }"
    for one in found.references:
        crossing = ", color=red, style=bold" if one.is_crossing else ""
        yield f"  {names[one.child]} -> {names[one.parent]} [label={_quoted(one.column)}{crossing}];"
    yield "}"


def _entities(text: str) -> str:
    """Text as Mermaid takes it between quotes: whatever is no plain character, by its number."""
    return "".join(one if one.isalnum() or one in " ._-" else f"#{ord(one)};" for one in text)


def _quoted(*lines: str) -> str:
    escaped = (line.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") for line in lines)
    return '"' + "\\n".join(escaped) + '"'


_DRAWINGS: Final = {MapFormat.TEXT: _text, MapFormat.MERMAID: _mermaid, MapFormat.GRAPHVIZ: _graphviz}

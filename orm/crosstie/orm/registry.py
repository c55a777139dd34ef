"""The models of this process, by module and qualified name.

A class defined again under the same name (a notebook cell run twice, a reloaded module) takes the place of the former.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from crosstie.orm.configuration import nearest
from crosstie.orm.declaration import connection_of
from crosstie.orm.errors import AmbiguousModel, ModelDefinitionError
from crosstie.orm.placement import Placement

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord

__all__ = ["Registry", "metadata", "registry"]


class Registry:
    """Which class a name stands for; `generation` changes whenever an answer may have changed."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], type[ActiveRecord]] = {}
        self.generation = 0

    def add(self, model: type[ActiveRecord]) -> None:
        """Take in a class that has just been defined."""
        key = (model.__module__, model.__qualname__)
        self._models.pop(key, None)  # the new one counts as the last defined
        self._models[key] = model
        self.generation += 1

    def models(self) -> list[type[ActiveRecord]]:
        """Every model that is mapped to a table, in the order of definition."""
        return [model for model in self._models.values() if model.is_mapped()]

    def resolve(self, name: str, owner: type[ActiveRecord]) -> type[ActiveRecord]:
        """The model that `name` means in a relation of `owner`.

        Looked for beside the owner (a class defined in the same function), then among the names of its module, then
        anywhere. Raises ModelDefinitionError, and AmbiguousModel where two modules define one.
        """
        scope = owner.__qualname__.rpartition(".")[0]
        beside = self._models.get((owner.__module__, f"{scope}.{name}" if scope else name))
        if beside is not None:
            return beside
        module = sys.modules.get(owner.__module__)
        named: Any = getattr(module, name, None)
        if isinstance(named, type) and named in self._models.values():
            return named
        found = [
            model for (home, path), model in self._models.items() if name in {path, model.__name__, f"{home}.{path}"}
        ]
        if len(found) == 1:
            return found[0]
        if not found:
            known = sorted({model.__name__ for model in self._models.values()})
            raise ModelDefinitionError(
                f"{owner.__name__} refers to a model {name!r}, which is not defined.{nearest(name, known)} "
                "Import the module that defines it before the relation is used."
            )
        places = " and ".join(f"{model.__module__}.{model.__qualname__}" for model in found)
        raise AmbiguousModel(
            f"{owner.__module__}.{owner.__qualname__} refers to a model {name!r}, and several have this name: "
            f"{places}. Import the one that is meant into {owner.__module__}, or write its full name in the relation."
        )

    def latest(self, model: type[ActiveRecord]) -> type[ActiveRecord]:
        """The class that has taken the place of `model`, or itself."""
        return self._models.get((model.__module__, model.__qualname__), model)

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Forget at the end of the block every model that was defined in it: for tests."""
        before = dict(self._models)
        try:
            yield
        finally:
            self._models = before
            self.generation += 1


registry: Final = Registry()


def metadata(connection: str) -> sa.MetaData:
    """The tables of every model of one connection, for Alembic: a MetaData made anew from what is defined now.

    Raises ModelDefinitionError where two models declare a table of the same name differently.
    """
    collected = sa.MetaData()
    origin: dict[str, type[ActiveRecord]] = {}
    for model in registry.models():
        place, _ = connection_of(model)
        if not (place.may_be(connection) if isinstance(place, Placement) else place == connection):
            continue
        table = model.__table__
        former = origin.setdefault(table.key, model)
        if former is not model:
            _require_same_columns(former, model)
            continue
        table.to_metadata(collected).info.clear()  # ours, and Alembic would write it into revisions
    return collected


def _require_same_columns(first: type[ActiveRecord], second: type[ActiveRecord]) -> None:
    one, other = (
        {column.name: (repr(column.type), column.nullable, column.primary_key) for column in model.__table__.columns}
        for model in (first, second)
    )
    differing = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    if differing:
        raise ModelDefinitionError(
            f"{first.__module__}.{first.__qualname__} and {second.__module__}.{second.__qualname__} declare the table "
            f"{first.__table__.name!r} differently: {', '.join(differing)}. Let one of them inherit from the other."
        )

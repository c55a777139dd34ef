"""Denormalised columns as fields declare them; `copies` says what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crosstie.orm.column import annotated
from crosstie.orm.errors import ModelDefinitionError

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord

__all__ = ["Denormalized", "denormalized_paths"]


@dataclass(frozen=True, eq=False)
class Denormalized:
    """A copy of a column of another row: `username: Annotated[str | None, Denormalized("user.username")] = None`.

    `path` is a `BelongsTo` relation of the model and a field of the model that it leads to. crosstie alone writes the
    column: when the record is saved, and by the outbox whenever the original has changed.
    """

    path: str


def denormalized_paths(model: type[ActiveRecord]) -> dict[str, str]:
    """The paths of the model's denormalised fields, by field. Raises ModelDefinitionError where a field has two."""
    found: dict[str, str] = {}
    for name, info in model.model_fields.items():
        paths = list(dict.fromkeys(marker.path for marker in annotated(info, Denormalized)))
        if len(paths) > 1:
            raise ModelDefinitionError(
                f"{model.__qualname__}.{name} is declared a copy of {' and of '.join(map(repr, paths))}: a column is "
                "written by the database that owns its original, and has one owner. Keep one of them."
            )
        if paths:
            found[name] = paths[0]
    return found

"""What Alembic's autogenerate must be told about models: which tables are not theirs, and how their types are written.

Pass the functions to `context.configure` in `env.py` under their own names. Alembic is imported only when it asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, TypeGuard

from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.types import TypeDecorator, TypeEngine

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext

__all__ = ["include_name", "include_object", "render_item"]

OWN_PREFIX: Final = "crosstie_"


def include_name(name: str | None, type_: str, parent_names: Mapping[str, str | None]) -> bool:
    """Leave crosstie's own tables out of the comparison, before they are read; they come by `upgrade_to`."""
    return not (type_ == "table" and name is not None and name.startswith(OWN_PREFIX))


def include_object(object_: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
    """The same for a `target_metadata` that has crosstie's own tables too."""
    return include_name(name, type_, {})


def render_item(type_: str, object_: Any, autogen_context: AutogenContext) -> str | Literal[False]:
    """Write a model's types as SQLAlchemy's own, each with its variants for the databases where it is another one.

    A revision must mean the same for ever, so it names neither crosstie's types nor the enumerations of the models.
    """
    if type_ != "type" or not _is_ours(object_):
        return False
    # The function behind Alembic's own rendering; there is no public one that turns a type into text.
    from alembic.autogenerate.render import _repr_type

    text = _repr_type(_undecorated(object_), autogen_context)
    # The default, which SQLAlchemy writes out, and for which Alembic finds no module where PostgreSQL is not the last.
    return text.replace(", astext_type=Text()", "")


def _is_ours(item: object) -> TypeGuard[TypeDecorator[Any]]:
    return isinstance(item, TypeDecorator) and type(item).__module__.startswith("crosstie.")


class _Undecorated(DefaultDialect):
    """Has a database's name, and leaves types as they are: its drivers' types would be private classes."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def type_descriptor(self, typeobj: Any) -> Any:
        """The type itself."""
        return typeobj


def _undecorated(decorator: TypeDecorator[Any]) -> TypeEngine[Any]:
    # For every kind of database: Alembic writes the revision of all of them by the context of the last one.
    found = base = decorator.load_dialect_impl(_Undecorated("sqlite"))
    for name in ("postgresql", "mysql", "mariadb"):
        other = decorator.load_dialect_impl(_Undecorated(name))
        if repr(other) != repr(base):
            found = found.with_variant(other, name)
    return found

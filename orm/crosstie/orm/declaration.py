"""What a model class declares: its table, its connections, its key, its relations; read without building anything.

Which connection: `__connection__` in the class itself or in an abstract base (one without a table). A class that
declares a table of its own never takes over the connection of another model that it inherits from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from crosstie.orm.column import markers
from crosstie.orm.errors import ModelDefinitionError
from crosstie.orm.placement import Computed, Place, Placement

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord
    from crosstie.orm.relation import Relation

__all__ = ["connection_of", "key_names", "relations_of", "table_name_of", "trigger_columns_of"]


def key_names(model: type[ActiveRecord]) -> tuple[str, ...]:
    """The fields of the primary key. Raises ModelDefinitionError where there is none."""
    marked = tuple(name for name, info in model.model_fields.items() if any(one.primary_key for one in markers(info)))
    names = marked or tuple(model.__primary_key__)
    if not names:
        raise ModelDefinitionError(
            f"{model.__qualname__} has no primary key: inherit from IntegerPKMixin or UUIDMixin, or mark a field with "
            "Annotated[..., Column(primary_key=True)]."
        )
    return names


def relations_of(model: type[ActiveRecord]) -> dict[str, Relation[Any]]:
    """The relations of a class and its bases, by name."""
    from crosstie.orm.relation import Relation

    found: dict[str, Relation[Any]] = {}
    for base in reversed(model.__mro__):
        found |= {name: value for name, value in vars(base).items() if isinstance(value, Relation)}
    return found


def table_name_of(model: type) -> str | None:
    """The table that a class is mapped to; None for an abstract one."""
    name = getattr(model, "__table_name__", None)
    if name is None:
        return None
    if not isinstance(name, str) or not name:
        raise ModelDefinitionError(f"{model.__qualname__}: expected __table_name__ to be a name, and found {name!r}.")
    return name


def trigger_columns_of(model: type[ActiveRecord]) -> tuple[str, ...] | None:
    """The columns that the table's triggers write, in the row that fires them, if they write nothing else.

    None where nothing is said of triggers. Raises ModelDefinitionError.
    """
    names = model.__trigger_columns__
    found: object = names
    if found is not None and not (isinstance(found, tuple) and all(isinstance(name, str) and name for name in found)):
        raise ModelDefinitionError(
            f"{model.__qualname__}: expected __trigger_columns__ to be a tuple of names of columns, found {found!r}."
        )
    return names


def connection_of(model: type) -> tuple[Place, tuple[Place, ...]]:
    """A class's connection and its read connections: names, or rules that find one. Raises ModelDefinitionError."""
    provider = next((base for base in model.__mro__ if "__connection__" in vars(base)), None)
    name = None if provider is None else _place(vars(provider)["__connection__"])
    if provider is None or not name:
        found = None if provider is None else vars(provider)["__connection__"]
        raise ModelDefinitionError(
            f'{model.__qualname__} has a table but no connection: expected __connection__ = "<a name given to '
            f'ConnectionManager.configure>", Tenants(...), ShardMap(...) or a function, and found {found!r}.'
        )
    nearer = model.__mro__[: model.__mro__.index(provider) + 1]
    table = table_name_of(model)
    other = next((base for base in nearer if table_name_of(base) not in {None, table}), None)
    if other is not None:
        raise ModelDefinitionError(
            f"{model.__qualname__} declares the table {table!r} and would inherit the connection {name!r} of "
            f"{other.__qualname__}, whose table is {table_name_of(other)!r}: say in which database the new table is, "
            f"with __connection__ in {model.__qualname__}."
        )
    replicas = next((vars(base)["__read_connection__"] for base in nearer if "__read_connection__" in vars(base)), None)
    if replicas is None:
        return name, ()
    names = tuple(_place(one) for one in (replicas if isinstance(replicas, tuple | list) else (replicas,)))
    if not all(names):
        raise ModelDefinitionError(
            f"{model.__qualname__}: expected __read_connection__ to be a name or several, and found {replicas!r}."
        )
    if isinstance(name, Placement) and any(isinstance(one, str) for one in names):
        raise ModelDefinitionError(
            f"{model.__qualname__} is written to {name!r} and would be read from {replicas!r}, one database for all of "
            "them: expected __read_connection__ to be found by the same choice, as in Tenants('tenant_{tenant}_copy')."
        )
    return name, cast("tuple[Place, ...]", names)


def _place(declared: object) -> Place | None:
    if isinstance(declared, str | Placement):
        return declared or None
    return Computed(declared) if callable(declared) else None

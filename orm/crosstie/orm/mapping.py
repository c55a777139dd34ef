"""A model's table: built when first needed, from the model's fields, its connection and its relations."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

import sqlalchemy as sa
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation
from pydantic.fields import FieldInfo

from crosstie.orm.column import INT64, Check, Column, FieldType, field_type, markers
from crosstie.orm.configuration import nearest
from crosstie.orm.declaration import connection_of, key_names, relations_of, table_name_of, trigger_columns_of
from crosstie.orm.denormalized import denormalized_paths
from crosstie.orm.errors import InvalidQuery, ModelDefinitionError
from crosstie.orm.placement import resolve

if TYPE_CHECKING:
    from crosstie.orm.model import ActiveRecord
    from crosstie.orm.relation import BelongsTo, Relation

__all__ = ["Columns", "MappedField", "TableMapping", "UnknownColumn", "mapping_of"]


class UnknownColumn(InvalidQuery, AttributeError):
    """A model has no field of this name."""


class MappedField:
    """A field together with its column."""

    __slots__ = ("adapter", "check", "column", "convert", "exact", "family", "mutable", "name", "nullable")

    def __init__(self, name: str, column: sa.Column[Any], kind: FieldType) -> None:
        self.name = name
        self.column = column
        self.nullable: bool = kind.nullable
        self.family: type | None = kind.family
        self.mutable: bool = kind.mutable
        self.adapter: TypeAdapter[Any] = kind.adapter
        self.exact: type | None = kind.exact
        self.check: Check | None = kind.check
        self.convert = kind.convert

    def __repr__(self) -> str:
        return f"MappedField({self.column!s})"

    def coerce(self, value: Any) -> Any:
        """The value as the field's type has it: '1' is 1 for an integer. Raises InvalidQuery where it is none."""
        if value is None or type(value) is self.exact:
            return value
        try:
            return self.adapter.validate_python(value)
        except ValidationError as error:
            expected = error.errors(include_url=False, include_input=False)[0]["msg"]
            raise InvalidQuery(
                f"{self.column!s}: {expected}; found {value!r} of type {type(value).__name__}."
            ) from None

    def sought(self, value: Any) -> Any:
        """The value to compare the column with. Raises InvalidQuery for one that no row can have."""
        coerced = self.coerce(value)
        if self.family is int and type(coerced) is int and coerced not in INT64:
            raise InvalidQuery(f"{self.column!s}: expected an integer of 64 bits and found {value!r}.")
        return coerced


class Columns:
    """The columns of a model by field name: `Model.c.title`, `Model.c["title"]`."""

    def __init__(self, mapping: TableMapping) -> None:
        self._mapping = mapping

    def __getattr__(self, name: str) -> sa.Column[Any]:
        """The column of a field. Raises UnknownColumn."""
        field = self._mapping.fields.get(name)
        if field is None:
            raise UnknownColumn(self._mapping.unknown(name))
        return field.column

    __getitem__ = __getattr__

    def __iter__(self) -> Iterator[sa.Column[Any]]:
        return (field.column for field in self._mapping.fields.values())

    def __contains__(self, name: object) -> bool:
        return name in self._mapping.fields

    def __dir__(self) -> list[str]:
        return list(self._mapping.fields)


class _ConnectionNow:
    """The name of the connection, resolved at each access; a model with one database has it as a plain attribute."""

    def __get__(self, mapping: TableMapping, owner: type[TableMapping]) -> str:
        return resolve(mapping.place)


class _ReadConnectionsNow:
    def __get__(self, mapping: TableMapping, owner: type[TableMapping]) -> tuple[str, ...]:
        return tuple(resolve(place) for place in mapping.read_places)


class TableMapping:
    """Everything about a model that its statements need; one per model, made once.

    `connection` and `read_connections` are names of configured databases. Where the model `is_placed`, they are
    resolved whenever they are asked for, and raise NoTenantChosen and UnknownConnection: ask once for a statement.
    """

    any_placed: ClassVar[bool] = False
    """Whether this process has a model whose database is decided for each statement."""
    connection = _ConnectionNow()
    read_connections = _ReadConnectionsNow()

    def __init__(self, model: type[ActiveRecord]) -> None:
        table_name = table_name_of(model)
        if table_name is None:
            raise ModelDefinitionError(
                f"{model.__qualname__} has no __table_name__, so there is no table to query: declare one, or use a "
                "model that inherits from it."
            )
        if not model.__pydantic_complete__:
            _complete(model)
        self.model = model
        self.place, self.read_places = connection_of(model)
        self.is_placed = not isinstance(self.place, str)
        if isinstance(self.place, str):
            self.__dict__["connection"] = self.place
        else:
            TableMapping.any_placed = True
        if all(isinstance(place, str) for place in self.read_places):
            self.__dict__["read_connections"] = self.read_places
        self.relations: dict[str, Relation[Any]] = relations_of(model)
        self.fields = dict(self._mapped_fields())
        self.copied = denormalized_paths(model)
        self.key: tuple[MappedField, ...] = tuple(self.fields[name] for name in key_names(model))
        first = self.key[0]
        self.generated: MappedField | None = (
            first if len(self.key) == 1 and first.family is int and first.nullable else None
        )
        self.table = sa.Table(
            table_name,
            sa.MetaData(),
            *(field.column for field in self.fields.values()),
            # In the order in which the key's values are given, whatever the order of the columns.
            sa.PrimaryKeyConstraint(*(field.column for field in self.key)),
            # A key that SQLite gives out twice would hand a deleted parent's children to a new parent.
            sqlite_autoincrement=self.generated is not None,
            mysql_engine="InnoDB",
            mysql_charset="utf8mb4",
            mariadb_engine="InnoDB",
            mariadb_charset="utf8mb4",
            info={
                "crosstie.connection": self.place,
                "crosstie.model": model.__qualname__,
                "crosstie.copies": frozenset(self.fields[name].column.name for name in self.copied),
            },
        )
        self.field_of_column = {field.column.name: field for field in self.fields.values()}
        self.lock = self._named(model.__lock_version__)
        self.table.info["crosstie.version"] = None if self.lock is None else self.lock.column.name
        self.table.info["crosstie.trigger_columns"] = trigger_columns_of(model)
        self.soft_delete = self._named(model.__soft_delete__)
        self.mutable = tuple(name for name, field in self.fields.items() if field.mutable)
        self.columns = Columns(self)
        self.statements: dict[Any, Any] = {}
        self.loaders: dict[Any, Any] = {}
        self.watchers: tuple[int, tuple[Any, ...]] = (-1, ())  # see `watch.watchers_of`

    @cached_property
    def select(self) -> sa.Select[Any]:
        """All columns of all rows."""
        return sa.select(*(field.column for field in self.fields.values()))

    @property
    def single_key(self) -> MappedField:
        """The key's only field. Raises ModelDefinitionError for a composite key."""
        if len(self.key) > 1:
            names = ", ".join(field.name for field in self.key)
            raise ModelDefinitionError(
                f"{self.model.__qualname__} has the composite key ({names}), which a relation cannot refer to: name "
                "one column with primary_key=..."
            )
        return self.key[0]

    def field(self, name: str) -> MappedField:
        """The field of this name. Raises InvalidQuery with the nearest name."""
        try:
            return self.fields[name]
        except KeyError:
            raise InvalidQuery(self.unknown(name)) from None

    def relation(self, name: str) -> Relation[Any]:
        """The relation of this name. Raises InvalidQuery with the nearest name."""
        try:
            return self.relations[name]
        except KeyError:
            kind = f"{name!r} is a field, not a relation." if name in self.fields else ""
            hint = kind or (nearest(name, list(self.relations)) or " It has no relations.")
            raise InvalidQuery(f"{self.model.__qualname__} has no relation {name!r}. {hint.strip()}") from None

    def unknown(self, name: str) -> str:
        """The message for a field that does not exist."""
        close = difflib.get_close_matches(name, [*self.fields, *self.relations], n=1, cutoff=0.6)
        if name in self.relations:
            hint = f" {name!r} is a relation: follow it with .{name}() or with_({name!r})."
        else:
            hint = f" Did you mean {close[0]!r}?" if close else f" Expected one of: {', '.join(sorted(self.fields))}."
        return f"{self.model.__qualname__} has no field {name!r}.{hint}"

    def _named(self, name: str | None) -> MappedField | None:
        return None if name is None else self.fields[name]

    def belongs_to(self) -> list[BelongsTo[Any]]:
        """The relations whose foreign key is a column of this table."""
        return cast("list[BelongsTo[Any]]", [one for one in self.relations.values() if one.key_is_here])

    @cached_property
    def validated(self) -> tuple[BelongsTo[Any], ...]:
        """Those of them whose parent must exist when a record is saved."""
        return tuple(one for one in self.belongs_to() if one.validate)

    def _mapped_fields(self) -> Iterator[tuple[str, MappedField]]:
        keys = key_names(self.model)
        references = {relation.foreign_key for relation in self.relations.values() if relation.key_is_here}
        unknown = [name for name in [*keys, *references] if name not in self.model.model_fields]
        if unknown:
            raise ModelDefinitionError(
                f"{self.model.__qualname__} declares no field {unknown[0]!r}, which a key or a relation of it names."
                f"{nearest(unknown[0], list(self.model.model_fields))}"
            )
        for name, info in self.model.model_fields.items():
            yield name, self._mapped_field(name, info, keys, is_reference=name in references)

    def _mapped_field(self, name: str, info: FieldInfo, keys: Sequence[str], *, is_reference: bool) -> MappedField:
        marker = next(iter(markers(info)), Column())
        is_key = name in keys
        indexed = marker.index or is_reference
        kind = field_type(f"{self.model.__qualname__}.{name}", info, marker, is_key=is_key or indexed or marker.unique)
        generated = is_key and len(keys) == 1 and kind.family is int and kind.nullable
        column: sa.Column[Any] = sa.Column(
            marker.name or name,
            kind.sql_type,
            primary_key=is_key,
            nullable=kind.nullable and not is_key,
            autoincrement=generated,
            unique=marker.unique or None,
            index=(indexed and not is_key and not marker.unique) or None,
        )
        return MappedField(name, column, kind)


def mapping_of(model: type[ActiveRecord]) -> TableMapping:
    """The mapping of a model, made on first use. Raises ModelDefinitionError."""
    found: TableMapping | None = model.__dict__.get("__mapping__")
    if found is None:
        found = TableMapping(model)
        # Two threads may both have built one; the first that is stored is everybody's.
        found = _store(model, found)
    return found


def _store(model: type[ActiveRecord], made: TableMapping) -> TableMapping:
    stored: TableMapping | None = model.__dict__.get("__mapping__")
    if stored is not None:
        return stored
    type.__setattr__(model, "__mapping__", made)
    return made


def _complete(model: type[ActiveRecord]) -> None:
    try:
        model.model_rebuild()
    except PydanticUndefinedAnnotation as error:
        raise ModelDefinitionError(
            f"{model.__qualname__} uses the annotation {error.name!r}, which is not defined: import or define it "
            "before the model is used."
        ) from error

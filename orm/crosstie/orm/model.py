"""ActiveRecord: a pydantic model whose instances are rows of a table in one of the configured databases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, ValidationError

from crosstie.orm import collection, persistence, related, schema, upserting
from crosstie.orm import state as record_state
from crosstie.orm.callback import Operation, callbacks_of
from crosstie.orm.declaration import connection_of, relations_of, table_name_of, trigger_columns_of
from crosstie.orm.errors import FieldNotLoaded, InvalidQuery, ModelDefinitionError, RecordNotFound, StaleRecord
from crosstie.orm.incrementing import increment
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.mapping import Columns, mapping_of
from crosstie.orm.origin import mark_origin, origin_of, require_origin
from crosstie.orm.placement import Placement
from crosstie.orm.query import Query
from crosstie.orm.reading import find_first
from crosstie.orm.registry import registry
from crosstie.orm.relation import Relation
from crosstie.orm.strictness import Strictness
from crosstie.orm.transaction import transaction

__all__ = ["ActiveRecord"]

_UNSET = object()


class _TableOf:
    def __get__(self, instance: object, owner: type[ActiveRecord]) -> sa.Table:
        return mapping_of(owner).table


class _ColumnsOf:
    def __get__(self, instance: object, owner: type[ActiveRecord]) -> Columns:
        return mapping_of(owner).columns


def _is_taken(name: str) -> bool:
    """Whether ActiveRecord has an attribute of this name; without asking it, since some need a table to answer."""
    return any(name in base.__dict__ for base in ActiveRecord.__mro__)


def _refuse_taken(model: type[BaseModel], names: list[str]) -> None:
    if names:
        raise ModelDefinitionError(
            f"{model.__qualname__}: the name {names[0]!r} is taken by ActiveRecord or used twice: rename it "
            '(a column may keep the name: Annotated[..., Column(name="...")]).'
        )


class ActiveRecord(BaseModel):
    """A record is a row: `User.find_by(name="x")`, `user.save()`, `user.posts()`.

    A model says `__table_name__` and `__connection__`, the name of a configured database, and maybe
    `__read_connection__`, the name of a replica of it (or several); or, instead of a name, `Tenants(...)`,
    `ShardMap(...)` or a function, which find it for each statement. Fields are pydantic fields: values are validated
    when they are given and when they are assigned, with pydantic's ValidationError.
    """

    __slots__ = ("_origin", "_related", "_state")

    model_config = ConfigDict(validate_assignment=True, extra="forbid", ignored_types=(Relation,))

    __table_name__: ClassVar[str | None] = None
    if TYPE_CHECKING:  # a value here would be everybody's connection
        __connection__: ClassVar[str | Placement | Callable[[], str]]
        __read_connection__: ClassVar[str | Placement | tuple[str | Placement, ...]]
    __primary_key__: ClassVar[tuple[str, ...]] = ()
    __stamped_on_insert__: ClassVar[tuple[str, ...]] = ()
    __stamped_on_update__: ClassVar[tuple[str, ...]] = ()
    __lock_version__: ClassVar[str | None] = None
    __soft_delete__: ClassVar[str | None] = None
    __trigger_columns__: ClassVar[tuple[str, ...] | None] = None
    __strict_loading__: ClassVar[Strictness | None] = None
    __publish__: ClassVar[bool | tuple[str, ...]] = False
    __publish_except__: ClassVar[tuple[str, ...]] = ()
    __publish_as__: ClassVar[str | None] = None

    __table__: ClassVar[_TableOf] = _TableOf()
    c: ClassVar[_ColumnsOf] = _ColumnsOf()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse taken names of fields before pydantic looks for their defaults. Raises ModelDefinitionError."""
        super().__init_subclass__(**kwargs)
        named = cls.__dict__.get("__annotations__", {})  # noqa: RUF063 - unevaluated: they may name later classes
        fields = (name for name in named if name[0] != "_" and name != "model_config")
        _refuse_taken(cls, [name for name in fields if _is_taken(name)])

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse what could only fail later. Raises ModelDefinitionError."""
        super().__pydantic_init_subclass__(**kwargs)
        if cls.is_mapped():
            connection_of(cls)
        trigger_columns_of(cls)
        private = cls.__private_attributes__
        _refuse_taken(
            cls,
            [
                name
                for name in relations_of(cls)
                if name in cls.model_fields or f"_{name}" in private or _is_taken(name)
            ],
        )
        registry.add(cls)

    # -- the class ------------------------------------------------------------------------------------------

    @classmethod
    def is_mapped(cls) -> bool:
        """Whether the model has a table; an abstract one has none and passes its connection on."""
        return table_name_of(cls) is not None

    @classmethod
    def current_time(cls) -> datetime:
        """The time that `created_at` and `updated_at` get; override it to test with a clock of your own."""
        return datetime.now(UTC)

    @classmethod
    def create_table(cls) -> None:
        """Create the table and its indexes where the table does not exist. Raises DatabaseUnavailable."""
        schema.create_table(mapping_of(cls))

    @classmethod
    def drop_table(cls) -> None:
        """Drop the table where it exists."""
        schema.drop_table(mapping_of(cls))

    @classmethod
    def transaction(cls) -> AbstractContextManager[LocalTransaction]:
        """A transaction on this model's database alone; nested, a savepoint.

        Writes to other databases inside it commit by themselves, with a CrossDatabaseWriteWarning.
        """
        return transaction(mapping_of(cls).connection)

    # -- finding --------------------------------------------------------------------------------------------

    @classmethod
    def find(cls, key: Any) -> Self:
        """The record with this primary key (a tuple for a composite one). Raises RecordNotFound, InvalidQuery."""
        mapping = mapping_of(cls)
        values = key if isinstance(key, tuple) else (key,)
        if len(values) != len(mapping.key) or any(value is None for value in values):
            names = ", ".join(field.name for field in mapping.key)
            raise InvalidQuery(f"{cls.__qualname__}.find() expected a value of ({names}) and found {key!r}.")
        coerced = [field.sought(value) for field, value in zip(mapping.key, values, strict=True)]
        found: Self | None = find_first(mapping, mapping.key, coerced)
        if found is None:
            raise RecordNotFound(f"database {mapping.connection!r} has no {cls.__qualname__} with the key {key!r}.")
        return found

    @classmethod
    def find_by(cls, **equal: Any) -> Self | None:
        """Some record whose fields have these values, or None. Raises InvalidQuery for an unknown field."""
        mapping = mapping_of(cls)
        fields = [mapping.field(name) for name in equal]
        if not equal or any(
            field.mutable or isinstance(equal[field.name], list | tuple | set | frozenset) for field in fields
        ):
            found = cls.find_all().where(**equal).limit(1).all()
            return found[0] if found else None
        values = [field.sought(equal[field.name]) for field in fields]
        one: Self | None = find_first(mapping, fields, values)
        return one

    @classmethod
    def find_all(cls) -> Query[Self]:
        """A query of all rows, to be narrowed, ordered and then asked."""
        return Query(cls)

    @classmethod
    def create(cls, **values: Any) -> Self:
        """Make a record and save it. Raises pydantic's ValidationError, RecordInvalid."""
        return cls(**values).save()

    @classmethod
    def find_or_create_by(cls, defaults: Mapping[str, Any] | None = None, /, **equal: Any) -> Self:
        """The record whose fields have these values, made with them and `defaults` where there is none.

        A unique constraint on the fields makes it safe: of two callers at once one makes the record and the other
        finds it. Inside a longer transaction MySQL may end the other with DeadlockDetected: run it again. Raises
        InvalidQuery, pydantic's ValidationError, DuplicateKey where another constraint is violated.
        """
        return collection.find_or_create(cls, equal, defaults or {})

    @classmethod
    def bulk_create(cls, records: Iterable[Self]) -> list[Self]:
        """Insert new records, all or none, in as few statements as the database's limits allow, and return them.

        Keys that the database numbers are set on the records. Raises RecordInvalid, InvalidQuery, DuplicateKey.
        """
        return collection.create_all(mapping_of(cls), list(records))

    @classmethod
    def bulk_update(cls, records: Iterable[Self]) -> int:
        """Write what has changed in these records, all or none, in one batch for each set of changed fields.

        Returns how many records had changes. Raises StaleRecord where a row has vanished, RecordInvalid.
        """
        return collection.update_changed(mapping_of(cls), list(records))

    # -- one record -----------------------------------------------------------------------------------------

    @property
    def is_new(self) -> bool:
        """Whether the record has no row yet; constructed, validated and copied records are new."""
        return record_state.is_new(self)

    @property
    def is_deleted(self) -> bool:
        """Whether the row was deleted through this record."""
        return record_state.is_deleted(self)

    @property
    def changes(self) -> dict[str, tuple[Any, Any]]:
        """What `save()` would write: each field with the row's value and the record's. Empty for a new record."""
        return {name: (old, self.__dict__.get(name)) for name, old in record_state.changes(self).items()}

    def save(self) -> Self:
        """Insert a new record, or write the changed columns of a loaded one; returns the record. Runs callbacks.

        Raises RecordInvalid, StaleRecord where the row has vanished, DuplicateKey and other errors of the database.
        """
        mapping = mapping_of(type(self))
        is_new = record_state.is_new(self)
        if not is_new:
            self._require_row("save")
        write = partial(persistence.insert if is_new else persistence.update, self, mapping)
        self._with_callbacks("create" if is_new else "update", write)
        return self

    def update(self, **values: Any) -> Self:
        """Assign all of these fields, or none where one is invalid, and save."""
        mapping = mapping_of(type(self))
        for name in values:
            mapping.field(name)
        before = {name: self.__dict__[name] for name in values if name in self.__dict__}
        try:
            for name, value in values.items():
                setattr(self, name, value)
        except (ValidationError, FieldNotLoaded):
            self.__dict__.update(before)
            raise
        return self.save()

    def delete(self) -> None:
        """Delete the row. Runs callbacks. Raises StaleRecord where it has vanished already."""
        self._require_row("delete")
        self._with_callbacks("delete", partial(persistence.delete, self, mapping_of(type(self))))

    def increment(self, **deltas: Any) -> Self:
        """Add to numeric columns in the database, `stock.increment(reserved=1)`, and return the record.

        Unlike an assignment, concurrent increments all count. A negative delta subtracts.
        """
        self._require_row("increment")
        if deltas:
            increment(self, mapping_of(type(self)), deltas)
        return self

    def touch(self, *names: str) -> Self:
        """Set `updated_at` and these fields to the current time, in the record and its row, and write nothing else."""
        self._require_row("touch")
        mapping = mapping_of(type(self))
        stamped = {name: mapping.field(name) for name in (*type(self).__stamped_on_update__, *names)}
        if not stamped or any(field.family is not datetime for field in stamped.values()):
            raise InvalidQuery(
                f"touch() expected fields of {type(self).__qualname__} that hold a datetime, and found {list(stamped)}."
            )
        persistence.write_fields(self, mapping, dict.fromkeys(stamped, self.current_time()))
        return self

    def upsert(self, *, on: str | Sequence[str], update: Sequence[str] | None = None) -> Self:
        """Insert this new record, or update the row that has its values of the fields `on`; then it is that row.

        `on` are the fields of the primary key or of a unique constraint; `update` are the fields that an existing row
        gets, by default all but those, the key and `created_at`. Raises InvalidQuery, RecordInvalid, and DuplicateKey
        where another unique constraint than that of `on` stands in the way.
        """
        mapping = mapping_of(type(self))
        upserting.upsert(self, mapping, (on,) if isinstance(on, str) else tuple(on), update)
        return self

    def refresh(self) -> Self:
        """Read the row again from the primary, dropping unsaved changes and loaded relations.

        Raises RecordNotFound where it has vanished.
        """
        self._require_row("refresh")
        mapping = mapping_of(type(self))
        old = record_state.changes(self)
        values = [old.get(field.name, self.__dict__[field.name]) for field in mapping.key]
        found = find_first(mapping, mapping.key, values, primary=True, deleted=True)
        if found is None:
            raise RecordNotFound(
                f"database {mapping.connection!r} no longer has this {type(self).__qualname__}: {values}."
            )
        self.__dict__.update(found.__dict__)
        self.__pydantic_fields_set__.update(found.__pydantic_fields_set__)
        record_state.mark_loaded(self, mapping.mutable)
        related.forget_all(self)
        return self

    def _with_callbacks(self, operation: Operation, write: Callable[[], None]) -> None:
        if callbacks := callbacks_of(type(self)):
            callbacks.around(self, operation, write)
        else:
            write()

    def _require_row(self, action: str) -> None:
        if record_state.is_new(self):
            raise InvalidQuery(
                f"{action}() expected a saved {type(self).__qualname__} and found a new one: save() first."
            )
        if record_state.is_deleted(self):
            raise StaleRecord(f"{action}() expected a row, and this {type(self).__qualname__} was deleted.")
        require_origin(self, mapping_of(type(self)))

    def _require_loaded(self, name: str) -> None:
        """A field has no value: raise FieldNotLoaded where that is because of `select()`."""
        if not record_state.is_new(self):
            raise FieldNotLoaded(
                f"{type(self).__qualname__}.{name} was not loaded with this record, whose query selects "
                f"{', '.join(self.__dict__)}: add select({name!r}), or refresh() the record."
            )

    # -- attributes, pickling -------------------------------------------------------------------------------

    if not TYPE_CHECKING:  # a type checker should go on refusing attributes that do not exist

        def __setattr__(self, name: str, value: Any) -> None:
            if name in type(self).__pydantic_fields__:
                before = self.__dict__
                old = before.get(name, _UNSET)
                if old is _UNSET:
                    self._require_loaded(name)
                try:
                    super().__setattr__(name, value)
                except BaseException:
                    # A model validator may refuse after pydantic has stored the value.
                    if old is not _UNSET:
                        self.__dict__[name] = old
                    raise
                if old is not _UNSET:
                    record_state.record_old(self, name, old)
            elif name[0] == "_" and (relation := _relation(type(self), name[1:])) is not None:
                related.assign(self, relation, value)
            else:
                super().__setattr__(name, value)

        def __getattr__(self, name: str) -> Any:
            if name[0] == "_" and name not in ActiveRecord.__slots__:
                relation = _relation(type(self), name[1:])
                if relation is not None:
                    near = relation.link(type(self)).near.name
                    known = related.recall(self, relation.name, getattr(self, near))
                    if known is not related.MISSING:
                        return known
            elif name in type(self).__pydantic_fields__:
                self._require_loaded(name)
            return super().__getattr__(name)

    def __getstate__(self) -> dict[Any, Any]:
        """Pickling keeps whether the record is new, loaded or deleted, and drops what its relations have loaded."""
        state = record_state.state_of(self)
        kept = "deleted" if state is record_state.DELETED else None if state is None else dict(state)
        return {**super().__getstate__(), "crosstie_state": kept, "crosstie_origin": origin_of(self)}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Take back what `__getstate__` gave."""
        kept, origin = state.pop("crosstie_state"), state.pop("crosstie_origin", None)
        super().__setstate__(state)
        if kept is not None:
            record_state.set_state(self, record_state.DELETED if kept == "deleted" else kept or record_state.LOADED)
        if origin is not None:
            mark_origin((self,), origin)


def _relation(model: type[ActiveRecord], name: str) -> Relation[Any] | None:
    found = getattr(model, name, None)
    return found if isinstance(found, Relation) else None

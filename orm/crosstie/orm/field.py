"""Fields that many models share, and what a field can say about its column."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar
from uuid import UUID, uuid4

import sqlalchemy as sa
from pydantic import BaseModel, Field

from crosstie.orm.column import Column
from crosstie.orm.counter_cache import CounterCache
from crosstie.orm.declaration import table_name_of
from crosstie.orm.denormalized import Denormalized
from crosstie.orm.errors import ModelDefinitionError
from crosstie.orm.polymorphic import Polymorphic
from crosstie.orm.soft_delete import SoftDeleteMixin

__all__ = [
    "Column",
    "CompositePKMixin",
    "CounterCache",
    "Denormalized",
    "IntegerPKMixin",
    "OptimisticLockMixin",
    "Polymorphic",
    "SoftDeleteMixin",
    "Text",
    "TimestampMixin",
    "UUIDMixin",
]

Text = Annotated[str, Column(sa.Text())]
"""A string of any length; a plain `str` field is VARCHAR, of `Field(max_length=...)` or 255 characters."""


class IntegerPKMixin(BaseModel):
    """A primary key `id` that the database numbers, None until the record is saved."""

    __primary_key__: ClassVar[tuple[str, ...]] = ("id",)

    id: int | None = None


class UUIDMixin(BaseModel):
    """A primary key `id` that is made here, a random UUID, and so known before the record is saved."""

    __primary_key__: ClassVar[tuple[str, ...]] = ("id",)

    id: UUID = Field(default_factory=uuid4)


class CompositePKMixin(BaseModel):
    """A primary key of several fields, named in order: `__primary_key__ = ("order_id", "line")`.

    `find()` takes a tuple. A relation cannot refer to such a key, and can have one of its fields as foreign key.
    """

    __primary_key__: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a key of fewer than two fields. Raises ModelDefinitionError."""
        super().__pydantic_init_subclass__(**kwargs)
        if table_name_of(cls) is not None and len(cls.__primary_key__) < 2:
            raise ModelDefinitionError(
                f"{cls.__qualname__}: expected __primary_key__ to name the two or more fields of the key, and found "
                f"{cls.__primary_key__!r}."
            )


class OptimisticLockMixin(BaseModel):
    """`lock_version`, which every write of a record raises by one and expects to find as it was loaded.

    Where somebody else has written the row meanwhile, `save()`, `touch()` and `delete()` raise StaleRecord and write
    nothing. `update_all()` raises it too; `increment()` does not, since increments never overwrite anything.
    """

    __lock_version__: ClassVar[str | None] = "lock_version"

    lock_version: int = 0


class TimestampMixin(BaseModel):
    """`created_at` and `updated_at`, set when the record is saved; aware, in UTC, by the clock of this machine."""

    __stamped_on_insert__: ClassVar[tuple[str, ...]] = ("created_at", "updated_at")
    __stamped_on_update__: ClassVar[tuple[str, ...]] = ("updated_at",)

    created_at: datetime | None = None
    updated_at: datetime | None = None

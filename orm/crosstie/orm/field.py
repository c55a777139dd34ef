"""Fields that many models share, and what a field can say about its column."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar
from uuid import UUID, uuid4

import sqlalchemy as sa
from pydantic import BaseModel, Field

from crosstie.orm.column import Column

__all__ = ["Column", "IntegerPKMixin", "Text", "TimestampMixin", "UUIDMixin"]

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


class TimestampMixin(BaseModel):
    """`created_at` and `updated_at`, set when the record is saved; aware, in UTC, by the clock of this machine."""

    __stamped_on_insert__: ClassVar[tuple[str, ...]] = ("created_at", "updated_at")
    __stamped_on_update__: ClassVar[tuple[str, ...]] = ("updated_at",)

    created_at: datetime | None = None
    updated_at: datetime | None = None

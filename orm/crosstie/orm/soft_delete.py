"""Rows that are hidden instead of deleted."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import ClassVar, Self

from crosstie.orm import persistence
from crosstie.orm.errors import StaleRecord
from crosstie.orm.mapping import mapping_of
from crosstie.orm.model import ActiveRecord

__all__ = ["SoftDeleteMixin"]


class SoftDeleteMixin(ActiveRecord):
    """`delete()` sets `deleted_at`, and no query or relation finds the row any more, unless asked `with_deleted()`.

    For databases the row is there: unique constraints count it, and what refers to it stays. `restore()` brings it
    back; `delete_forever()` deletes it.
    """

    __soft_delete__: ClassVar[str | None] = "deleted_at"

    deleted_at: datetime | None = None

    @property
    def is_deleted(self) -> bool:
        """Whether the row is hidden, or was deleted through this record."""
        return self.deleted_at is not None or super().is_deleted

    def delete(self) -> None:
        """Hide the row, with the callbacks of a delete. Raises StaleRecord where it is hidden or has vanished."""
        self._require_row("delete")
        if self.deleted_at is not None:
            raise StaleRecord(f"delete() expected a row, and this {type(self).__qualname__} was deleted: restore() it.")
        self._with_callbacks("delete", partial(self._set_deleted_at, self.current_time()))

    def restore(self) -> Self:
        """Let queries find the row again."""
        self._require_row("restore")
        self._set_deleted_at(None)
        return self

    def delete_forever(self) -> None:
        """Delete the row itself."""
        super().delete()

    def _set_deleted_at(self, moment: datetime | None) -> None:
        stamps = dict.fromkeys(type(self).__stamped_on_update__, self.current_time())
        persistence.write_fields(self, mapping_of(type(self)), stamps | {"deleted_at": moment})

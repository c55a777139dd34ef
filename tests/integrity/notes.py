"""Models with what a repair must respect: callbacks, a lock version, a column that takes no NULL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from crosstie.orm import ActiveRecord
from crosstie.orm.callback import after_delete
from crosstie.orm.field import IntegerPKMixin, OptimisticLockMixin
from crosstie.orm.relation import BelongsTo


@dataclass
class Notes:
    """The model classes, defined anew for each test."""

    writer: Any
    note: Any
    bill: Any
    trace: Any


def define_notes() -> Notes:
    """Define the models and create their tables."""

    class Writer(IntegerPKMixin, ActiveRecord):
        __table_name__ = "writers"
        __connection__ = "default"

        id: int | None = None

    class Trace(IntegerPKMixin, ActiveRecord):
        __table_name__ = "traces"
        __connection__ = "secondary"

        id: int | None = None
        note_id: int

    class Note(OptimisticLockMixin, IntegerPKMixin, ActiveRecord):
        __table_name__ = "notes"
        __connection__ = "secondary"

        id: int | None = None
        writer_id: int | None = None

        writer: ClassVar[BelongsTo[Writer]] = BelongsTo(foreign_key="writer_id")

        @after_delete
        def tell(self) -> None:
            if self.writer_id == 901:
                raise ValueError("not this one")
            Trace(note_id=self.id or 0).save()

    class Bill(IntegerPKMixin, ActiveRecord):
        __table_name__ = "bills"
        __connection__ = "secondary"

        id: int | None = None
        writer_id: int

        writer: ClassVar[BelongsTo[Writer]] = BelongsTo(foreign_key="writer_id")

    for model in (Writer, Trace, Note, Bill):
        model.create_table()
    Writer().save()
    return Notes(Writer, Note, Bill, Trace)

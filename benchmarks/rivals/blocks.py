"""The same work through crosstie: plain transactions of its ORM, and saga blocks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import sqlalchemy as sa

from crosstie.orm import ActiveRecord, ConnectionManager
from crosstie.orm.faults import armed
from crosstie.orm.field import IntegerPKMixin
from crosstie.outbox.tables import saga as records
from crosstie.sagas import saga


class Left(IntegerPKMixin, ActiveRecord):
    """A row in PostgreSQL."""

    __table_name__ = "bench_left"
    __connection__ = "source"

    id: int | None = None
    n: int = 0


class Right(IntegerPKMixin, ActiveRecord):
    """A row in MariaDB."""

    __table_name__ = "bench_right"
    __connection__ = "target"

    id: int | None = None
    n: int = 0


def create(rows: int) -> None:
    """A row of its own for each thread, with the ids from 1 on."""
    for model in (Left, Right):
        model.create_table()
        for _ in range(rows):
            model(n=0).save()


def _rows(thread: int) -> tuple[Left, Right]:
    return Left.find(thread + 1), Right.find(thread + 1)


def orm_transactions(thread: int) -> Callable[[], None]:
    """In two transactions that nothing ties together."""
    left, right = _rows(thread)

    def block() -> None:
        with Left.transaction():
            left.increment(n=1)
        with Right.transaction():
            right.increment(n=1)

    return block


def increments(thread: int) -> Callable[[], None]:
    """Undone by the opposite increment."""
    left, right = _rows(thread)

    def block() -> None:
        with saga("bench"):
            left.increment(n=1)
            right.increment(n=1)

    return block


def updates(thread: int) -> Callable[[], None]:
    """With before- and after-images in the branch."""
    left, right = _rows(thread)

    def block() -> None:
        with saga("bench"):
            left.n += 1
            left.save()
            right.n += 1
            right.save()

    return block


def inserts(_: int) -> Callable[[], None]:
    """With an after-image in the branch."""

    def block() -> None:
        with saga("bench"):
            Left(n=1).save()
            Right(n=1).save()

    return block


def one_transaction(thread: int) -> Callable[[], None]:
    """What a block of one database is compared with."""
    left, _ = _rows(thread)

    def block() -> None:
        with Left.transaction():
            left.increment(n=1)

    return block


def one_database(thread: int) -> Callable[[], None]:
    """A saga only in name."""
    left, _ = _rows(thread)

    def block() -> None:
        with saga("bench"):
            left.increment(n=1)

    return block


ROWS = 200
"""That crashed sagas have written to."""


class _Died(BaseException):
    """The process ends here, as far as its sagas are concerned."""


def crash(count: int) -> int:
    """Leave so many sagas whose branch in MariaDB is committed, and whose home is not; they have expired.

    Returns what `written` was before.
    """

    def die() -> None:
        raise _Died

    before = written()
    spread = [(Left(n=0).save(), Right(n=0).save()) for _ in range(ROWS)]
    for number in range(count):
        left, right = spread[number % ROWS]
        with armed("saga.branch-committed", die), suppress(_Died), saga("bench", home="source"):
            left.increment(n=1)
            right.increment(n=1)
    with ConnectionManager.get("target").engine.begin() as connection:
        connection.execute(sa.update(records).where(records.c.state == "applied").values(expires_at_ms=0))
    return before


def unfinished() -> int:
    """Branches that are neither settled nor undone."""
    query = sa.select(sa.func.count()).where(records.c.role == "branch", records.c.state == "applied")
    return int(ConnectionManager.get("target").rows(query)[0][0])


def written() -> int:
    """What all rows in MariaDB add up to."""
    return int(Right.find_all().sum("n") or 0)

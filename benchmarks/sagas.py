"""What a saga costs: one row in each of two databases, against two local transactions that nothing protects.

The floor is the fastest that the drivers can do: two raw transactions by psycopg and PyMySQL, one row each, with no
undo and no record. Both are run in turn, in small rounds, and the median of the rounds' ratios is printed: 1.00 is the
floor, and higher is faster. Needs PostgreSQL and MariaDB; CROSSTIE_BENCH_POSTGRESQL_URL and CROSSTIE_BENCH_MARIADB_URL
name databases in which tables called bench_* may be made (default: `test` on the standard local ports).
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import psycopg
import pymysql

from crosstie.orm import ActiveRecord, ConnectionManager
from crosstie.orm.field import IntegerPKMixin
from crosstie.outbox.tables import create_tables
from crosstie.sagas import saga, sweep_sagas

ROUNDS = 15
BLOCKS = 100


class Left(IntegerPKMixin, ActiveRecord):
    """A row in PostgreSQL."""

    __table_name__ = "bench_left"
    __connection__ = "postgresql"

    id: int | None = None
    n: int = 0


class Right(IntegerPKMixin, ActiveRecord):
    """A row in MariaDB."""

    __table_name__ = "bench_right"
    __connection__ = "mariadb"

    id: int | None = None
    n: int = 0


class Rows:
    """The two rows that are written again and again."""

    left: Left
    right: Right


ROWS = Rows()


def main() -> None:
    """Measure and print."""
    ConnectionManager.configure(
        {
            "postgresql": os.environ.get("CROSSTIE_BENCH_POSTGRESQL_URL", "postgresql://root@127.0.0.1:5432/test"),
            "mariadb": os.environ.get("CROSSTIE_BENCH_MARIADB_URL", "mariadb://root@127.0.0.1:3306/test"),
        }
    )
    for model in (Left, Right):
        model.drop_table()
        model.create_table()
        model(n=0).save()
        create_tables(ConnectionManager.get(model.__connection__))
    ROWS.left, ROWS.right = Left.find(1), Right.find(1)
    ways = {
        "two raw transactions, unprotected (psycopg, PyMySQL)": raw_transactions(),
        "two ORM transactions, unprotected": orm_transactions,
        "saga, an increment in each database": saga_increments,
        "saga, an update in each database": saga_updates,
        "saga, an insert in each database": saga_inserts,
    }
    print(
        f"{platform.python_version()}, SQLAlchemy {version('sqlalchemy')}, one thread, {ROUNDS} rounds of "
        f"{BLOCKS} blocks"
    )
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, block in ways.items():
            start = time.perf_counter()
            for _ in range(BLOCKS):
                block()
            rates[name].append(BLOCKS / (time.perf_counter() - start))
        for name in ConnectionManager.names():
            while sweep_sagas(name).settled:
                pass
    floor = next(iter(rates.values()))
    for name, measured in rates.items():
        ratio = statistics.median(one / other for one, other in zip(measured, floor, strict=True))
        print(f"{ratio:5.2f}  {statistics.median(measured):6.0f} /s  {name}")
    for model in (Left, Right):
        model.drop_table()
    ConnectionManager.dispose()


def raw_transactions() -> Callable[[], None]:
    """The floor, on connections that are held open."""
    left, right = (ConnectionManager.get(name).settings for name in ("postgresql", "mariadb"))
    url = left.url()
    one = psycopg.connect(host=url.host, port=url.port, dbname=url.database, user=url.username, password=url.password)
    url = right.url()
    two = pymysql.connect(
        host=url.host,
        port=url.port or 3306,
        database=url.database,
        user=url.username,
        password=url.password or "",
        ssl_disabled=True,
    )

    def block() -> None:
        with one.cursor() as cursor:
            cursor.execute("UPDATE bench_left SET n = n + 1 WHERE id = %s", (1,))
        with two.cursor() as other:
            other.execute("UPDATE bench_right SET n = n + 1 WHERE id = %s", (1,))
        two.commit()
        one.commit()

    return block


def orm_transactions() -> None:
    """The same by the ORM, in two transactions that nothing ties together."""
    with Left.transaction():
        ROWS.left.increment(n=1)
    with Right.transaction():
        ROWS.right.increment(n=1)


def saga_increments() -> None:
    """Undone by the opposite increment."""
    with saga("bench"):
        ROWS.left.increment(n=1)
        ROWS.right.increment(n=1)


def saga_updates() -> None:
    """With before- and after-images in the branch."""
    with saga("bench"):
        ROWS.left.n += 1
        ROWS.left.save()
        ROWS.right.n += 1
        ROWS.right.save()


def saga_inserts() -> None:
    """With an after-image in the branch."""
    with saga("bench"):
        Left(n=1).save()
        Right(n=1).save()


if __name__ == "__main__":
    main()

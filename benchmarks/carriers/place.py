"""Two databases of the benchmark's own, and the table in the second one that every carrier writes to."""

from __future__ import annotations

import json
import os
import time
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

SOURCE_URL = os.environ.get("CROSSTIE_BENCH_POSTGRESQL_URL", "postgresql://root@127.0.0.1:5432/test")
TARGET_URL = os.environ.get("CROSSTIE_BENCH_MARIADB_URL", "mariadb://root@127.0.0.1:3306/test")
REDIS_URL: Final = os.environ.get("CROSSTIE_BENCH_REDIS_URL", "redis://127.0.0.1:6379/9")
NAME: Final = os.environ.get("CROSSTIE_BENCH_DATABASE", "crosstie_bench_outbox")
QUEUE: Final = f"{NAME}-queue"
ACCOUNTS: Final = 1000

applied: Final = sa.Table(
    "bench_applied",
    sa.MetaData(),
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("account", sa.Integer, nullable=False),
    sa.Column("amount", sa.Integer, nullable=False),
    sa.Column("waited_ms", sa.Float, nullable=False),
    mysql_engine="InnoDB",
    mariadb_engine="InnoDB",
)
UPSERT: Final = mysql.insert(applied).on_duplicate_key_update(amount=sa.text("VALUES(amount)"))


def source_url() -> sa.URL:
    """The benchmark's database on the PostgreSQL server."""
    return sa.make_url(SOURCE_URL).set(database=NAME)


def target_url() -> sa.URL:
    """The benchmark's database on the MariaDB server."""
    return sa.make_url(TARGET_URL).set(database=NAME)


def environment(**more: str) -> dict[str, str]:
    """Of a process that has both databases configured for crosstie."""
    connections = {
        "source": source_url().render_as_string(hide_password=False),
        "target": target_url().render_as_string(hide_password=False),
    }
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH120, PTH100 - for PYTHONPATH
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    ours = {"CROSSTIE_CONNECTIONS": json.dumps(connections), "PYTHONPATH": path, "CROSSTIE_QUEUE": QUEUE}
    return {**os.environ, **ours, "CROSSTIE_BROKER_URL": REDIS_URL, **more}


def target_engine() -> sa.Engine:
    """For what is done without crosstie: READ COMMITTED, as crosstie's own, and no TLS on this machine."""
    url = target_url().set(drivername="mariadb+pymysql")
    return sa.create_engine(url, isolation_level="READ COMMITTED", connect_args={"ssl_disabled": True})


def create_databases() -> None:
    """Both, empty."""
    drop_databases()
    for engine in _servers():
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {NAME}")
        engine.dispose()
    engine = target_engine()
    applied.create(engine)
    engine.dispose()


def drop_databases() -> None:
    """Both, whoever is connected, and what is left in Redis."""
    import redis

    with redis.Redis.from_url(REDIS_URL) as client:
        for queue in (QUEUE, f"{QUEUE}-tasks"):
            client.delete(queue, f"_kombu.binding.{queue}", f"_kombu.binding_permanent.{queue}")
    for engine in _servers():
        force = " WITH (FORCE)" if engine.dialect.name == "postgresql" else ""
        with engine.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {NAME}{force}")
        engine.dispose()


def _servers() -> list[sa.Engine]:
    source = sa.make_url(SOURCE_URL).set(drivername="postgresql+psycopg")
    target = sa.make_url(TARGET_URL).set(drivername="mariadb+pymysql", database=None)
    return [sa.create_engine(url, isolation_level="AUTOCOMMIT") for url in (source, target)]


class Progress:
    """How many events have been applied."""

    def __init__(self) -> None:
        self._engine = target_engine().execution_options(isolation_level="AUTOCOMMIT")

    def count(self) -> int:
        """Now."""
        with self._engine.connect() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(applied)).scalar_one())

    def waits_ms(self) -> list[float]:
        """What the subscribers noted."""
        with self._engine.connect() as connection:
            return sorted(connection.execute(sa.select(applied.c.waited_ms)).scalars())

    def clear(self) -> None:
        """Forget all."""
        with self._engine.connect() as connection:
            connection.exec_driver_sql("TRUNCATE bench_applied")

    def wait_for(self, count: int, *, within_s: float, poll_s: float) -> float:
        """Wait until so many have been applied; returns when that was. Raises TimeoutError."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            if self.count() >= count:
                return time.monotonic()
            time.sleep(poll_s)
        raise TimeoutError(f"{self.count()} of {count} events were applied within {within_s:.0f} s")

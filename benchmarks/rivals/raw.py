"""Through the drivers alone, on connections that are held open: the floor, and what is written by hand for protection.

Each thread has a row of its own in `bench_left` (PostgreSQL) and in `bench_right` (MariaDB).
"""

from __future__ import annotations

import json
import uuid
from typing import Any

import psycopg
import pymysql
from carriers import place

LEFT = "UPDATE bench_left SET n = n + 1 WHERE id = %s"
RIGHT = "UPDATE bench_right SET n = n + 1 WHERE id = %s"


def _postgresql() -> psycopg.Connection[Any]:
    url = place.source_url()
    return psycopg.connect(host=url.host, port=url.port, dbname=url.database, user=url.username, password=url.password)


def _mariadb() -> pymysql.Connection[Any]:
    url = place.target_url()
    return pymysql.connect(
        host=url.host,
        port=url.port or 3306,
        database=url.database,
        user=url.username,
        password=url.password or "",
        ssl_disabled=True,
    )


class RawTransactions:
    """Two transactions; if the process dies in between, one of them stays."""

    def __init__(self, thread: int) -> None:
        self.row = thread + 1
        self.left, self.right = _postgresql(), _mariadb()

    def __call__(self) -> None:
        """Once."""
        with self.left.cursor() as cursor:
            cursor.execute(LEFT, (self.row,))
        with self.right.cursor() as other:
            other.execute(RIGHT, (self.row,))
        self.right.commit()
        self.left.commit()


class HandWritten(RawTransactions):
    """The branch with a record that tells how it is undone, home with the decision, and the record settled."""

    def __init__(self, thread: int) -> None:
        super().__init__(thread)
        with self.left.cursor() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS bench_decision (id varchar(36) PRIMARY KEY, state varchar(12))")
        self.left.commit()
        with self.right.cursor() as other:
            other.execute(
                "CREATE TABLE IF NOT EXISTS bench_record"
                " (id varchar(36) PRIMARY KEY, state varchar(12), undo_log longtext)"
            )
        self.right.commit()

    def __call__(self) -> None:
        """Once."""
        key = str(uuid.uuid4())
        undo = json.dumps({"table": "bench_right", "id": self.row, "n": -1})
        with self.right.cursor() as other:
            other.execute(RIGHT, (self.row,))
            other.execute("INSERT INTO bench_record VALUES (%s, 'applied', %s)", (key, undo))
        self.right.commit()
        with self.left.cursor() as cursor:
            cursor.execute(LEFT, (self.row,))
            cursor.execute("INSERT INTO bench_decision VALUES (%s, 'committed')", (key,))
        self.left.commit()
        with self.right.cursor() as other:
            other.execute("UPDATE bench_record SET state = 'done' WHERE id = %s", (key,))
        self.right.commit()


class TwoPhase(RawTransactions):
    """PREPARE TRANSACTION and XA, and a decision that is committed in PostgreSQL in between."""

    def __init__(self, thread: int) -> None:
        super().__init__(thread)
        self.left.autocommit = True
        self.right.autocommit(True)
        with self.left.cursor() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS bench_outcome (id varchar(36) PRIMARY KEY)")

    @staticmethod
    def is_switched_off() -> bool:
        """As a standard PostgreSQL has it."""
        with _postgresql() as connection:
            found = connection.execute("SHOW max_prepared_transactions").fetchone()
        return found is None or found[0] == "0"

    def __call__(self) -> None:
        """Once."""
        key = str(uuid.uuid4())
        with self.left.cursor() as cursor, self.right.cursor() as other:
            cursor.execute("BEGIN")
            cursor.execute(LEFT, (self.row,))
            other.execute("XA START %s", (key,))
            other.execute(RIGHT, (self.row,))
            other.execute("XA END %s", (key,))
            other.execute("XA PREPARE %s", (key,))
            cursor.execute(f"PREPARE TRANSACTION '{key}'")  # takes no parameters; a uuid of our own
            cursor.execute("INSERT INTO bench_outcome VALUES (%s)", (key,))
            other.execute("XA COMMIT %s", (key,))
            cursor.execute(f"COMMIT PREPARED '{key}'")

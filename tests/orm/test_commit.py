"""COMMIT is believed only where a transaction is open, and an open one is recognised."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from bench.databases import TestDatabase
from crosstie.orm import transaction


@pytest.mark.usefixtures("configured_database")
def test_a_transaction_whose_only_write_returned_rows_is_seen_to_be_open(configured_database: TestDatabase) -> None:
    """MariaDB's driver reads no transaction status after rows; the commit must not be refused for it."""
    configured_database.execute("CREATE TABLE numbers (number INTEGER PRIMARY KEY)")
    with transaction("default") as tx:
        tx.mark_written()
        returned = tx.connection.execute(sa.text("INSERT INTO numbers VALUES (7) RETURNING number")).scalar_one()
    assert returned == 7
    assert configured_database.rows("SELECT number FROM numbers") == [(7,)]

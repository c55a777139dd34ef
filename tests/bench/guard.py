"""What a test must not leave behind in its thread: open transactions, an open saga, a configured process.

crosstie is looked up among the loaded modules, not imported: a test that does not use it pays nothing.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from bench import proxy
from bench.databases import DatabaseSet
from bench.schema import make_tables

__all__ = ["configured_databases", "hush", "left_behind", "release"]


def left_behind() -> list[str]:
    """Take back what the test left open, close all pools, and say what it was."""
    complaints: list[str] = []
    proxy.close_all()  # first: what is taken back below may be connected through one that is deaf
    transactions: Any = sys.modules.get("crosstie.orm.transaction")
    if transactions is not None:
        for name, tx in list(transactions.open_transactions().items()):
            complaints.append(f"an open transaction on {name!r}")
            tx.rollback()
        if transactions.active_unit() is not None:
            complaints.append("a saga block that nothing ended")
            transactions.set_active_unit(None)
    routing: Any = sys.modules.get("crosstie.orm.routing")
    if routing is not None:  # else the next test's reads would go to the primary for a while
        routing.router.forget()
    connection: Any = sys.modules.get("crosstie.orm.connection")
    if connection is not None:
        connection.ConnectionManager.dispose()
    return complaints


def hush() -> None:
    """Let no commit of this process ring at a broker: it would be the embedded one, a file where pytest runs."""
    doorbells: Any = sys.modules.get("crosstie.workers.doorbell")
    if doorbells is not None:
        doorbells.deliver_locally(lambda _: None)


def release() -> None:
    """Release everything, and raise AssertionError where the test should have done so itself."""
    complaints = left_behind()
    if complaints:
        raise AssertionError(f"the test left {' and '.join(complaints)} in its thread")


@contextlib.contextmanager
def configured_databases(databases: DatabaseSet, *, tables: bool = True) -> Iterator[None]:
    """Configure crosstie for these databases, with its tables created unless told otherwise."""
    from crosstie.orm.connection import ConnectionManager

    ConnectionManager.configure(databases.configuration)
    try:
        if tables:
            for name, database in databases.by_name.items():
                make_tables(name, database)
        yield
    finally:
        release()

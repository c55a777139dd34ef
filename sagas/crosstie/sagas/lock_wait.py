"""How long recovery, and sagas that lock rows, wait for a lock of the server's."""

from __future__ import annotations

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.local_transaction import LocalTransaction

__all__ = ["limit_lock_waits"]


def limit_lock_waits(tx: LocalTransaction) -> None:
    """Have this transaction wait for any lock no longer than `saga.lock_timeout_s`, and no other of its connection.

    In recovery, the lock is the original's, whose outcome is then simply not known yet.
    """
    seconds = int(ConnectionManager.settings().saga.lock_timeout_s)
    if tx.database.kind == "postgresql":
        tx.connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{seconds}s'")
    elif tx.database.kind in {"mysql", "mariadb"}:
        before = int(tx.connection.exec_driver_sql("SELECT @@SESSION.innodb_lock_wait_timeout").scalar_one())
        tx.connection.exec_driver_sql(f"SET SESSION innodb_lock_wait_timeout = {seconds}")
        # The connection goes back to the pool; later transactions on it must wait as long as they always did.
        restore = f"SET SESSION innodb_lock_wait_timeout = {before}"
        tx.at_close(lambda connection: connection.exec_driver_sql(restore))

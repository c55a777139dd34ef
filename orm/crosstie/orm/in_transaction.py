"""Whether a driver's connection stands inside a transaction, as the server has last said."""

from __future__ import annotations

from typing import Any

from crosstie.orm.database import Database
from crosstie.orm.driver_errors import classify, describe

__all__ = ["in_transaction"]

_SERVER_STATUS_IN_TRANS = 1  # MySQL protocol, status flags of an OK packet


def in_transaction(database: Database, raw: Any) -> bool:
    """Whether the driver connection stands inside a healthy open transaction."""
    if database.kind == "sqlite":
        return bool(raw.in_transaction)
    if database.kind == "postgresql":
        return bool(raw.info.transaction_status.name == "INTRANS")
    if not raw.server_status & _SERVER_STATUS_IN_TRANS:
        # PyMySQL learns the status from OK packets only: after rows, as of INSERT ... RETURNING, it has the one of
        # before. The answer to a ping is an OK packet.
        try:
            raw.ping(reconnect=False)
        except Exception as error:
            failure = classify(error)
            if failure is None:
                raise
            raise failure.error(describe(failure, database.name, database.settings.address())) from error
    return bool(raw.server_status & _SERVER_STATUS_IN_TRANS)

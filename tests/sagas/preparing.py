"""What servers keep prepared, and sweeps until they keep nothing any more."""

from __future__ import annotations

from contextlib import suppress

from bench.databases import DatabaseSet, TestDatabase
from bench.private_servers import PrivateServer
from bench.waiting import eventually
from crosstie.orm import ConnectionManager
from crosstie.orm.errors import DatabaseUnavailable
from crosstie.sagas import sweep_sagas

__all__ = ["Servers", "prepared", "sweep_until_nothing_is_prepared"]

Servers = dict[str, PrivateServer]
SESSIONS = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
    "AND backend_type = 'client backend' AND pid <> pg_backend_pid()",
    "mariadb": "SELECT count(*) FROM information_schema.processlist WHERE db = database() AND id <> connection_id()",
}


def prepared(database: TestDatabase) -> list[str]:
    """The prepared transactions of the database's server that are crosstie's."""
    if database.kind == "sqlite":
        return []
    if database.kind == "postgresql":
        found = [gid for (gid,) in database.rows("SELECT gid FROM pg_prepared_xacts")]
    else:
        found = [row[3] for row in database.rows("XA RECOVER")]
    names = [one.decode("latin-1") if isinstance(one, bytes) else str(one) for one in found]
    return [name for name in names if name.startswith("crosstie")]


def sweep_until_nothing_is_prepared(databases: DatabaseSet) -> None:
    """Sweep, once the servers have done what they had been asked, and have noticed the end of killed clients."""
    for name in databases.by_name:
        ConnectionManager.get(name).dispose()

    def alone() -> bool:
        return not any(one.scalar(SESSIONS[one.kind]) for one in databases.databases if one.kind in SESSIONS)

    eventually(alone, describe="nobody is connected")

    def quiet() -> bool:
        for name in databases.by_name:
            with suppress(DatabaseUnavailable):  # a pool's connection to a server that has died since
                sweep_sagas(name)
        return not any(prepared(database) for database in databases.databases)

    eventually(quiet, describe="nothing is prepared")

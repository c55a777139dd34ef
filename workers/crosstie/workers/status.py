"""What the databases say about unfinished work: read for people and for monitoring, changed by nobody here."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import CrosstieError, NoSuchTable
from crosstie.outbox import RouteBacklog, pending
from crosstie.sagas.declared import count_runs
from crosstie.sagas.inspection import count_effects, count_sagas

__all__ = ["DatabaseStatus", "read_status"]


@dataclass(frozen=True)
class DatabaseStatus:
    """One database: whether it answers, and what in it is unfinished."""

    name: str
    address: str
    read_only: bool
    ping_s: float | None = None
    error: str | None = None
    unresolved_sagas: dict[str, int] = field(default_factory=dict)
    """How many records somebody must still act upon, by state: `applied`, `aborted`, `owed`, `quarantined`."""
    unresolved_effects: dict[str, int] = field(default_factory=dict)
    """How many effects are `open` (their sagas run, or have crashed), `due` (to be compensated), `quarantined`."""
    unfinished_runs: dict[str, int] = field(default_factory=dict)
    """How many runs of declared sagas are `running`, `compensating`, `quarantined`."""
    routes: list[RouteBacklog] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether it answers and has crosstie's tables, where it needs them."""
        return self.error is None


def read_status(names: Sequence[str] | None = None) -> list[DatabaseStatus]:
    """Ask all databases at once, so that one that is down costs the others nothing. Raises UnknownConnection."""
    databases = [ConnectionManager.get(name) for name in (ConnectionManager.names() if names is None else names)]
    if not databases:
        return []
    with ThreadPoolExecutor(len(databases), thread_name_prefix="crosstie-status") as pool:
        return list(pool.map(_read, databases))


def _read(database: Database) -> DatabaseStatus:
    name, address, read_only = database.name, database.settings.address(), database.settings.read_only
    ping_s: float | None = None
    try:
        ping_s = database.ping()
        if read_only:
            return DatabaseStatus(name, address, read_only, ping_s)
        sagas, effects, runs = count_sagas(database), count_effects(database), count_runs(database)
        routes = pending(name)
    except NoSuchTable:
        error = "crosstie's tables are missing here; run `crosstie init`"
        return DatabaseStatus(name, address, read_only, ping_s, error=error)
    except CrosstieError as error:
        return DatabaseStatus(name, address, read_only, ping_s, error=str(error))
    return DatabaseStatus(
        name,
        address,
        read_only,
        ping_s,
        unresolved_sagas=sagas,
        unresolved_effects=effects,
        unfinished_runs=runs,
        routes=routes,
    )

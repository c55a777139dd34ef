"""The databases of this process, by name."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from crosstie.orm.configuration import Settings, load_settings, nearest
from crosstie.orm.database import Database
from crosstie.orm.errors import UnknownConnection

__all__ = ["ConnectionManager"]


class ConnectionManager:
    """Configured databases; all methods are class methods, because a process has one set of them.

    Engines are made when first used, so that configuring never waits for a network.
    """

    _settings: ClassVar[Settings | None] = None
    _databases: ClassVar[dict[str, Database]] = {}
    _lock: ClassVar[threading.RLock] = threading.RLock()
    on_dispose: ClassVar[list[Callable[[], None]]] = []
    """Called when a configuration is given up, for another one too: what was made by it must go."""

    @classmethod
    def configure(cls, connections: Mapping[str, Any] | None = None) -> None:
        """Validate and install the configuration, replacing and closing what was there.

        `connections` maps a name to a mapping (`driver`, `database`, `host`, `port`, `username`, `password`, …) or
        to a URL; without it, the environment and `crosstie.toml` are read. Raises ConfigurationError naming each
        wrong field; then the former configuration stays in force.
        """
        settings = load_settings(connections)
        with cls._lock:
            cls.dispose()
            cls._settings = settings
            cls._databases = {name: Database(name, one) for name, one in settings.connections.items()}

    @classmethod
    def settings(cls) -> Settings:
        """The configuration in force; loaded from the environment and files if nobody has configured yet."""
        if cls._settings is None:
            with cls._lock:
                if cls._settings is None:
                    cls.configure()
        assert cls._settings is not None
        return cls._settings

    @classmethod
    def get(cls, name: str) -> Database:
        """The database of this name. Raises UnknownConnection."""
        database = cls._databases.get(name)
        if database is None:
            cls.settings()
            database = cls._databases.get(name)
        if database is None:
            known = list(cls._databases)
            hint = (
                nearest(name, known)
                if known
                else " No connection is configured: call ConnectionManager.configure({...})."
            )
            raise UnknownConnection(f"no connection is called {name!r}.{hint}")
        return database

    @classmethod
    def is_configured(cls, name: str) -> bool:
        """Whether there is a database of this name."""
        if name in cls._databases:
            return True
        cls.settings()
        return name in cls._databases

    @classmethod
    def names(cls, *, writable: bool = False) -> list[str]:
        """The configured names in the order given; `writable` leaves out those marked `read_only`."""
        cls.settings()
        return [name for name, one in cls._databases.items() if not (writable and one.settings.read_only)]

    @classmethod
    def ping(cls, name: str) -> float:
        """Seconds that a trivial query takes. Raises UnknownConnection or DatabaseUnavailable."""
        return cls.get(name).ping()

    @classmethod
    def dispose(cls) -> None:
        """Close all pooled connections and forget the configuration."""
        with cls._lock:
            for database in cls._databases.values():
                database.dispose()
            cls._databases = {}
            cls._settings = None
            for give_up in cls.on_dispose:
                give_up()

    @classmethod
    def _after_fork(cls) -> None:
        cls._lock = threading.RLock()
        for database in cls._databases.values():
            database.dispose(close=False)


os.register_at_fork(after_in_child=ConnectionManager._after_fork)

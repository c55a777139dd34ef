"""What every command does before its work: the configuration is read, and models and subscribers are imported."""

from __future__ import annotations

import json
import os

from crosstie.orm.connection import ConnectionManager
from crosstie.workers.errors import NothingConfigured
from crosstie.workers.imports import add_working_directory, import_modules

__all__ = ["prepare"]


def prepare(imports: list[str] | None) -> None:
    """Read the configuration and import the modules that define models and subscribers.

    Raises ConfigurationError, ImportFailed, NothingConfigured.
    """
    add_working_directory()
    if imports:
        # Into the environment, where the configuration is read from: a module may configure anew, and a worker's
        # children may be started afresh.
        wanted = list(dict.fromkeys([*ConnectionManager.settings().imports, *imports]))
        os.environ["CROSSTIE_IMPORTS"] = json.dumps(wanted)
        if not ConnectionManager.settings().connections:
            ConnectionManager.dispose()
    import_modules(imports or [])
    if not ConnectionManager.names():
        raise NothingConfigured(
            "no database is configured. Expected a section [connections.default] with driver and database in "
            "crosstie.toml of this folder, variables such as CROSSTIE_CONNECTIONS__DEFAULT__DRIVER, or an imported "
            "module (--import) that calls ConnectionManager.configure({...})."
        )

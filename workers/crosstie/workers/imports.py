"""The modules that define models and subscribers are imported before anything runs."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterable

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CrosstieError
from crosstie.outbox.event import require_complete_upcasters
from crosstie.workers.errors import ImportFailed

__all__ = ["add_working_directory", "import_modules"]


def add_working_directory() -> None:
    """Make modules of the working directory importable, as `python -m` and `celery` do."""
    here = os.getcwd()  # noqa: PTH109 - sys.path holds strings
    if here not in sys.path:
        sys.path.insert(0, here)


def import_modules(names: Iterable[str] = ()) -> list[str]:
    """Import these modules and those that the configuration names in `imports`; returns all names, each once.

    Raises ImportFailed, what crosstie raised inside the module, EventDefinitionError for upcasters that lead nowhere.
    """
    wanted = list(dict.fromkeys([*ConnectionManager.settings().imports, *names]))
    for name in wanted:
        _import(name)
    require_complete_upcasters()
    return wanted


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except CrosstieError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise ImportFailed(
                f"imports: there is no module {error.name!r} (named as {name!r}). Expected a dotted name that Python "
                "can import from the working directory or from sys.path; set PYTHONPATH if it is elsewhere."
            ) from None
        raise ImportFailed(_told(name, error)) from error
    except Exception as error:
        raise ImportFailed(_told(name, error)) from error


def _told(name: str, error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"imports: the module {name!r} fails as it is imported{where}: {type(error).__name__}: {error}"

"""For tests of applications that use crosstie: crashes, time, workers, and whether an undo restores what it should.

Names are imported when they are first used: pytest loads the plugin, and this package with it, in every project.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosstie.testing.compensated import assert_compensated
    from crosstie.testing.faults import Reached, crash_at
    from crosstie.testing.passing import VirtualTime, virtual_time
    from crosstie.testing.quiet import Left, run_until_quiet
    from crosstie.testing.selftest import saga_selftest

__all__ = [
    "Left",
    "Reached",
    "VirtualTime",
    "assert_compensated",
    "crash_at",
    "run_until_quiet",
    "saga_selftest",
    "virtual_time",
]

_MODULES: Final = {
    "Left": "quiet",
    "Reached": "faults",
    "VirtualTime": "passing",
    "assert_compensated": "compensated",
    "crash_at": "faults",
    "run_until_quiet": "quiet",
    "saga_selftest": "selftest",
    "virtual_time": "passing",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return found

"""The writers of a storm: child processes of one parent, which replaces those that are killed."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from functools import partial

from crosstie.workers.keeper import fork

__all__ = ["grind"]


def grind(write: Callable[[int, int], int], count: int, seed: int) -> None:
    """Keep so many children that run `write(number, seed)`, which never returns; ends where one ends by itself."""
    choose = random.Random(seed)
    started = 0
    status = int(signal.SIGKILL)
    while status == signal.SIGKILL:
        while started < count:
            fork(partial(write, started, choose.randrange(2**32)), f"writer {started}")
            started += 1
        _, status = os.wait()
        count += 1
    sys.exit(f"a writer ended with status {status}")

"""What a version of crosstie's tables is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa

__all__ = ["Version"]


@dataclass(frozen=True)
class Version:
    """One step: `up` leads from the version before to this one, and `down` back.

    Both look at what is there before they change it, and so complete what a process that died has half done: MySQL and
    MariaDB commit after each statement. Neither commits, and neither may change once it is released.
    """

    number: int
    up: Callable[[sa.Connection], None]
    down: Callable[[sa.Connection], None]

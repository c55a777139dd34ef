"""Why one check of an audit could not be carried out becomes its answer: it never looks like OK, and costs no other."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from crosstie.orm.errors import CrosstieError

__all__ = ["guarded"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


def guarded(name: str, audit: Callable[[], T], incomplete: Callable[[str], T]) -> T:
    """What `audit` answers; where it raises, what `incomplete` makes of the reason. Faults of ours are logged."""
    try:
        return audit()
    except CrosstieError as error:
        return incomplete(str(error))
    except Exception as error:
        logger.exception("the audit of %s failed", name)
        return incomplete(f"unexpected {type(error).__name__}: {error}")

"""What goes on failing is logged when it begins and when it is over, not every second in between."""

from __future__ import annotations

import logging
import threading

from crosstie.orm.errors import CrosstieError

__all__ = ["Outages"]


class Outages:
    """The failures in force, by what fails; safe to share between threads."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._lock = threading.Lock()
        self._failing: dict[str, str] = {}

    def failed(self, what: str, error: BaseException, *, remedy: str = "") -> None:
        """Log that `what` fails, unless it has been failing in the same way already."""
        kind = error.code if isinstance(error, CrosstieError) else f"{type(error).__qualname__}: {error}"
        with self._lock:
            if self._failing.get(what) == kind:
                return
            self._failing[what] = kind
        # One of our own messages says all there is to say; anything else is a defect, and needs its traceback.
        known = isinstance(error, CrosstieError)
        self._logger.log(
            logging.WARNING if known else logging.ERROR,
            "%s fails, and is tried again%s: %s",
            what,
            f" ({remedy})" if remedy else "",
            error,
            exc_info=None if known else error,
        )

    def succeeded(self, what: str) -> None:
        """Log that `what` works again, if it had been failing."""
        if what not in self._failing:  # the common case takes no lock
            return
        with self._lock:
            if self._failing.pop(what, None) is None:
                return
        self._logger.info("%s works again", what)

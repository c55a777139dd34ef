"""Who did what: each command that changes something is written into the log."""

from __future__ import annotations

import logging
import os
import pwd

__all__ = ["log_operation"]

logger = logging.getLogger("crosstie.operator")


def log_operation(action: str, what: str) -> None:
    """As a warning, so that it is seen wherever nothing is configured about logging."""
    logger.warning("operator %s: %s %s", _operator(), action, what)


def _operator() -> str:
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = f"uid {os.getuid()}"
    behind = os.environ.get("SUDO_USER")
    return f"{name} (for {behind})" if behind else name

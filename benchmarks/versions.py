"""What was measured: the versions of Python and of packages, and the number of cores."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = ["versions"]


def versions(*packages: str) -> str:
    """In one line; a package that is not installed is said to be missing."""

    def told(package: str) -> str:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            return f"no {package}"

    return f"Python {platform.python_version()}, {os.cpu_count()} cores; " + ", ".join(map(told, packages))

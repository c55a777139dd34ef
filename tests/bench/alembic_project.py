"""A folder with Alembic set up as docs/migrations.md says, and the command run in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bench.documents import ROOT, python_blocks
from bench.processes import Spawner

__all__ = ["AlembicProject", "page_block"]

PAGE: Final = ROOT / "docs" / "migrations.md"


def page_block(first_line: str) -> str:
    """The Python example of the page that begins with this line."""
    (block,) = (text.strip() for text in python_blocks(PAGE.read_text()) if text.strip().startswith(first_line))
    return block + "\n"


class AlembicProject:
    """Alembic for the connections `names`, in the folder of the test's children."""

    def __init__(self, spawn: Spawner, names: str, environment: Mapping[str, str]) -> None:
        self._spawn = spawn
        self._environment = environment
        self.folder: Path = spawn.folder
        self.run("init", "--template", "multidb", "migrations")
        ini = self.folder / "alembic.ini"
        text, replaced = re.subn(r"(?m)^databases = .*$", f"databases = {names}", ini.read_text())
        assert replaced == 1
        ini.write_text(text)
        (self.folder / "migrations" / "env.py").write_text(page_block("# migrations/env.py"))

    def models(self, source: str) -> None:
        """Write the module that env.py imports."""
        (self.folder / "shop_models.py").write_text(source)

    def run(self, *arguments: str) -> str:
        """The output of `alembic …`. Raises AssertionError where it fails."""
        return self._spawn.python("-m", "alembic", *arguments, environment=self._environment, name="alembic").wait_ok()

    def fails(self, *arguments: str) -> str:
        """The output of `alembic …`, which must fail."""
        child = self._spawn.python("-m", "alembic", *arguments, environment=self._environment, name="alembic")
        assert child.wait() != 0, child.output
        return child.output

    def revisions(self) -> list[Path]:
        """The files of the revisions, the oldest first."""
        return sorted((self.folder / "migrations" / "versions").glob("*.py"), key=lambda path: path.stat().st_mtime_ns)

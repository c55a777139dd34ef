"""The Python examples of the documentation, run as one program."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

__all__ = ["ROOT", "python_blocks", "run_document"]

ROOT: Final = Path(__file__).resolve().parents[2]
_BLOCK: Final = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def python_blocks(text: str) -> list[str]:
    """The fenced Python blocks of a page, each preceded by as many empty lines as stand above it in the page."""
    return ["\n" * text.count("\n", 0, match.start(1)) + match[1] for match in _BLOCK.finditer(text)]


def run_document(path: str, *, name: str) -> ModuleType:
    """Run all blocks of a page in one new module, which is returned; tracebacks show the page's lines."""
    page = ROOT / path
    blocks = python_blocks(page.read_text())
    assert blocks, f"{path} has no Python examples"
    module = ModuleType(name)
    sys.modules[name] = module  # where forward references of models are looked up
    for block in blocks:
        exec(compile(block, str(page), "exec"), module.__dict__)  # noqa: S102 - our own documentation
    return module

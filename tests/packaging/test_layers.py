"""Imports point one way, orm ← outbox ← sagas ← workers, and the source keeps a few house rules."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("orm", "outbox", "sagas", "workers")
LAYERS = (*FOLDERS, "testing")  # in the folder of sagas; nothing else may import it
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
ALL_PYTHON = SOURCES + sorted(
    path for folder in ("tests", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)


def imported_names(tree: ast.Module, package: str) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) for every import in the module, wherever it stands, by statement or by call.

    `from a import b` yields `a.b`, since b may be a module; a relative import is resolved against `package`.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, (base, node.module)))
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0]
            if called in {"import_module", "__import__"} and isinstance(first, ast.Constant):
                yield node.lineno, str(first.value)


def violations(source: str, package: str) -> list[str]:
    """Return what a module of `package` imports from a layer above its own, or from the namespace as a whole."""
    own = LAYERS.index(package.split(".")[1])
    found = []
    for line, name in imported_names(ast.parse(source), package):
        root, _, rest = name.partition(".")
        if root != "crosstie":
            continue
        layer = rest.split(".")[0]
        if layer not in LAYERS or LAYERS.index(layer) > own:
            found.append(f"line {line}: {name}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    """A lower layer works without the upper ones, so it may not know of them, not even for types."""
    package = ".".join(path.relative_to(ROOT).parts[1:-1])
    assert violations(path.read_text(), package) == []


@pytest.mark.parametrize(
    "planted",
    [
        "import crosstie.sagas",
        "import crosstie.sagas.block as block",
        "from crosstie.sagas import saga",
        "from crosstie import sagas",
        "import crosstie",
        "from ..sagas import saga",
        "def late():\n    from crosstie.workers.app import app",
        "if TYPE_CHECKING:\n    from crosstie.sagas.block import Saga",
        "import importlib\nimportlib.import_module('crosstie.workers.app')",
        "__import__('crosstie.sagas')",
        "from crosstie.testing import crash_at",
    ],
)
def test_the_check_finds_an_import_of_an_upper_layer(planted: str) -> None:
    """Each way of importing upwards, planted in a module of the outbox, is reported."""
    assert len(violations(planted, "crosstie.outbox")) == 1


@pytest.mark.parametrize(
    "allowed",
    [
        "import sagas",
        "from crosstie.orm import ActiveRecord",
        "from crosstie.outbox.tables import metadata",
        "from .tables import metadata",
        "from ..orm import ActiveRecord",
        "load('crosstie.sagas')",
    ],
)
def test_the_check_leaves_other_imports_alone(allowed: str) -> None:
    """Imports of the own layer, of lower ones and of other packages are no violations."""
    assert violations(allowed, "crosstie.outbox") == []


def test_every_layer_has_modules_to_check() -> None:
    """An empty folder would make the check above pass by checking nothing."""
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == set(FOLDERS)


def test_no_source_root_closes_the_namespace() -> None:
    """`crosstie` belongs to four source roots, so none of them may own it by an `__init__.py`."""
    assert [path for folder in FOLDERS for path in (ROOT / folder).glob("crosstie/*.py")] == []


def test_every_file_tells_one_thing() -> None:
    """A file of more than 500 lines is split."""
    assert [path for path in ALL_PYTHON if len(path.read_text().splitlines()) > 500] == []


def test_modules_are_named_for_what_they_hold() -> None:
    """A name that says nothing collects everything."""
    vague = re.compile(r"(utils?|helpers?|common|misc|manager\d*)")
    named = {path: (*path.relative_to(ROOT).parts[:-1], path.stem) for path in ALL_PYTHON}
    assert [path for path, parts in named.items() if any(vague.fullmatch(part) for part in parts)] == []


def test_nothing_is_left_for_later_in_a_comment() -> None:
    """What is not done yet is said where users look: in the README's limits or in an issue."""
    marker = re.compile(r"\b(T[O]DO|F[I]XME|X[X]X)\b")  # brackets, so that it does not find itself
    assert [path for path in ALL_PYTHON if marker.search(path.read_text())] == []

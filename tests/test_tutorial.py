"""The tutorial is a program: its blocks run in order, and print what it says that they print."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from bench.databases import DatabaseKind, Pair, fresh_database
from crosstie.orm import ConnectionManager
from crosstie.orm.configuration import load_settings
from crosstie.orm.registry import registry
from crosstie.orm.routing import router

TUTORIAL = Path(__file__).parent.parent / "docs" / "tutorial.md"
CONFIGURATION = "<!-- configuration -->\n"


class Block(NamedTuple):
    """A block of code, the output that the page shows below it, and the line where it stands."""

    code: str
    output: str | None
    line: int


def blocks() -> tuple[Block, list[Block]]:
    """The block that configures, and all others in order."""
    text = TUTORIAL.read_text(encoding="utf-8")
    pattern = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
    found = [
        (match, Block(match[1], match[2], text[: match.start()].count("\n") + 2)) for match in pattern.finditer(text)
    ]
    configuring = [block for match, block in found if text[: match.start()].endswith(CONFIGURATION)]
    assert len(configuring) == 1
    return configuring[0], [block for _, block in found if block not in configuring]


@pytest.fixture(params=[("sqlite", "sqlite"), ("postgresql", "mariadb")], ids="-".join)
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    """Two fresh databases behind the tutorial's connection names; the replica is the primary by another name."""
    kinds: tuple[DatabaseKind, DatabaseKind] = request.param
    with ExitStack() as stack:
        pair = Pair(*(stack.enter_context(fresh_database(kind, tmp_path)) for kind in kinds))
        stack.enter_context(registry.isolated())
        stack.callback(ConnectionManager.dispose)
        names = {"shop": pair.first, "warehouse": pair.second, "shop_replica": pair.first}
        ConnectionManager.configure({name: database.config for name, database in names.items()})
        router.forget()
        yield pair


def test_the_tutorial_prints_what_it_shows(
    shop: Pair, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every block runs, in one program, and each output shown is the output of the block above it."""
    program = ModuleType("tutorial_program")
    monkeypatch.setitem(sys.modules, program.__name__, program)
    shown = 0
    for block in blocks()[1]:
        if "Visitor.create_table()" in block.code:
            router.forget()  # two seconds pass while the reader reads on
        padded = "\n" * (block.line - 1) + block.code  # so that a traceback names the line of the page
        exec(compile(padded, str(TUTORIAL), "exec"), vars(program))  # noqa: S102 - the project's own page
        printed = capsys.readouterr().out
        assert printed == (block.output or ""), f"{TUTORIAL}:{block.line}"
        shown += block.output is not None
    assert shown > 10


def test_the_tutorials_configuration_is_valid() -> None:
    """The block that the test above leaves out configures the three connections."""
    given: list[dict[str, object]] = []
    code = blocks()[0].code.replace("ConnectionManager.configure(", "given.append(")
    exec(compile(code, str(TUTORIAL), "exec"), {"given": given})  # noqa: S102 - the project's own page
    connections = load_settings(given[0]).connections
    assert [(name, one.driver) for name, one in connections.items()] == [
        ("shop", "postgresql"),
        ("warehouse", "mariadb"),
        ("shop_replica", "postgresql"),
    ]
    assert connections["warehouse"].host == "db2.example.org"


def test_the_tutorials_links_lead_somewhere() -> None:
    """Each relative link of the page is a file."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", TUTORIAL.read_text(encoding="utf-8")):
        assert (TUTORIAL.parent / target).is_file(), target

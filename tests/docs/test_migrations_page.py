"""The examples of docs/migrations.md run: its functions, its env.py, its revision, its commands in their order."""

from __future__ import annotations

import re
import shlex
from types import ModuleType
from typing import Final

import sqlalchemy as sa

from bench.alembic_project import PAGE, AlembicProject, page_block
from bench.databases import Pair
from bench.processes import Spawner
from crosstie.orm import ConnectionManager
from crosstie.outbox.migrations import newest_version

MODELS: Final = """
from crosstie.orm import ActiveRecord
from crosstie.orm.field import IntegerPKMixin

class Order(IntegerPKMixin, ActiveRecord):
    __table_name__ = "orders"
    __connection__ = "default"
    sku: str

class Stock(IntegerPKMixin, ActiveRecord):
    __table_name__ = "stock"
    __connection__ = "warehouse"
    sku: str
"""


def page_commands() -> list[list[str]]:
    """What the page tells to type."""
    blocks = re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return [shlex.split(line.removeprefix("$ ")) for block in blocks for line in block.splitlines()]


def tables(name: str) -> set[str]:
    """The names of a database's tables."""
    return set(sa.inspect(ConnectionManager.get(name).engine).get_table_names())


def test_the_functions_of_the_page_make_and_remove_the_tables(pair: Pair) -> None:
    """And say which version there is."""
    ConnectionManager.configure(pair.configuration)
    page = ModuleType("migrations_page")
    exec(page_block("from crosstie.orm import ConnectionManager"), page.__dict__)  # noqa: S102 - our own documentation
    newest = newest_version()
    assert page.bring_up("default").endswith(f"now at version {newest} of {newest}")
    assert "crosstie_saga" in tables("default")
    assert page.remove_tables("default")[-1] == 1
    assert tables("default") == set()


def test_the_commands_of_the_page_lead_to_tables_without_a_difference(crash_pair: Pair, spawn: Spawner) -> None:
    """The tables of crosstie and of the models, in both databases, and back again."""
    names = {"default": crash_pair.first, "warehouse": crash_pair.second}
    ConnectionManager.configure({name: database.config for name, database in names.items()})
    environment = {
        f"CROSSTIE_CONNECTIONS__{name.upper()}__{key.upper()}": str(value)
        for name, database in names.items()
        for key, value in database.config.items()
    }
    (databases,) = re.findall(r"^databases = (.*)$", PAGE.read_text(), re.MULTILINE)
    program, *first = page_commands()[0]
    assert (program, first) == ("alembic", ["init", "--template", "multidb", "migrations"])
    project = AlembicProject(spawn, databases, environment)
    project.models(MODELS)
    output = ""
    for _, *arguments in page_commands()[1:]:
        output = project.run(*arguments)
        if "tables of crosstie" in arguments:
            (revision,) = project.revisions()
            revision.write_text(revision.read_text() + "\n" + page_block("# the revision"))
    assert "No new upgrade operations detected" in output
    for name, table in (("default", "orders"), ("warehouse", "stock")):
        assert {"crosstie_saga", "crosstie_schema", table} <= tables(name)
    project.run("downgrade", "base")
    assert tables("default") == tables("warehouse") == {"alembic_version"}
    project.fails("upgrade", "head", "--sql")

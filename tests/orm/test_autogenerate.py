"""Alembic's autogenerate over models of several databases: it finds what changed, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from bench.alembic_project import AlembicProject
from bench.databases import Pair
from bench.processes import Spawner
from crosstie.orm import ConnectionManager
from crosstie.orm.autogenerate import include_name, include_object, render_item

MODELS = """
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, ClassVar
from uuid import UUID

from pydantic import BaseModel, Field

from crosstie.orm import ActiveRecord
from crosstie.orm.field import Column, IntegerPKMixin, Text, TimestampMixin, UUIDMixin
from crosstie.orm.relation import BelongsTo


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    SMALL = 1
    LARGE = 2


class Address(BaseModel):
    street: str


class Customer(UUIDMixin, TimestampMixin, ActiveRecord):
    __table_name__ = "customers"
    __connection__ = "default"

    email: Annotated[str, Column(unique=True)]
    name: Annotated[str, Field(max_length=80), Column(index=True)]
    born: date | None = None
    address: Address | None = None


class Order(IntegerPKMixin, TimestampMixin, ActiveRecord):
    __table_name__ = "orders"
    __connection__ = "secondary"

    customer_id: UUID
    price: Annotated[Decimal, Field(max_digits=12, decimal_places=2)]
    rate: float = 0.0
    paid: bool = False
    colour: Colour = Colour.RED
    size: Size = Size.SMALL
    note: Text | None = None
    picture: bytes | None = None
    labels: dict[str, Any] | None = None
    tags: list[str] | None = None
    at: datetime | None = None
    hour: time | None = None
    customer: ClassVar[BelongsTo[Customer]] = BelongsTo(foreign_key="customer_id")


class Line(ActiveRecord):
    __table_name__ = "order_lines"
    __connection__ = "secondary"
    __primary_key__ = ("order_id", "sku")

    order_id: int
    sku: str
    quantity: int = 1
"""


def tables(name: str) -> set[str]:
    """The names of a database's tables."""
    return set(sa.inspect(ConnectionManager.get(name).engine).get_table_names())


def test_models_of_two_databases_become_revisions_and_then_there_is_no_difference(
    configured_crash_pair: Pair, spawn: Spawner
) -> None:
    """With a field of each type, and crosstie's tables there, which nobody wants to drop."""
    project = AlembicProject(spawn, "default, secondary", configured_crash_pair.environment)
    project.models(MODELS)
    project.run("revision", "--autogenerate", "-m", "tables")
    (revision,) = project.revisions()
    text = revision.read_text()
    assert "crosstie" not in text
    assert "Colour" not in text
    project.run("upgrade", "head")
    assert {"customers"} <= tables("default")
    assert {"orders", "order_lines"} <= tables("secondary")
    assert not {"orders", "order_lines"} & tables("default")
    assert "No new upgrade operations detected" in project.run("check")

    project.models(
        MODELS.replace("    quantity: int = 1\n", "    quantity: int = 1\n    weight: float | None = None\n")
    )
    assert "New upgrade operations detected" in project.fails("check")
    project.run("revision", "--autogenerate", "-m", "weight")
    added = project.revisions()[-1].read_text()
    assert added.count("sa.Column('weight'") == 1
    assert added.count("add_column") == 1
    assert "create_table" not in added
    assert "drop_table" not in added
    project.run("upgrade", "head")
    assert "No new upgrade operations detected" in project.run("check")

    project.run("downgrade", "base")
    assert all(name.startswith("crosstie_") for name in (tables("default") | tables("secondary")) - {"alembic_version"})
    assert "crosstie_saga" in tables("default") & tables("secondary")


def test_the_tables_that_alembic_makes_are_those_of_create_table(configured_crash_pair: Pair, spawn: Spawner) -> None:
    """Down to a collation: both ways lead to the same columns, keys and indexes."""
    code = MODELS + "\nfor model in (Customer, Order, Line):\n    model.create_table()\n"
    environment = configured_crash_pair.environment
    spawn.code(code, environment=environment).wait_ok()
    wanted = {name: described(name) for name in configured_crash_pair.by_name}
    for name, table in (("default", "customers"), ("secondary", "orders"), ("secondary", "order_lines")):
        configured_crash_pair.by_name[name].execute(f"DROP TABLE {table}")
    project = AlembicProject(spawn, "default, secondary", environment)
    project.models(MODELS)
    project.run("revision", "--autogenerate", "-m", "tables")
    project.run("upgrade", "head")
    assert {name: described(name) for name in configured_crash_pair.by_name} == wanted
    assert set(wanted["secondary"]) == {"order_lines", "orders"}


def described(name: str) -> dict[str, Any]:
    """Columns, keys and indexes of the models' tables."""
    engine = ConnectionManager.get(name).engine
    inspector = sa.inspect(engine)
    return {
        table: {
            "columns": [
                (
                    column["name"],
                    column["type"].compile(dialect=engine.dialect),
                    getattr(column["type"], "collation", None),
                    column["nullable"],
                    column["default"],
                )
                for column in inspector.get_columns(table)
            ],
            "key": inspector.get_pk_constraint(table)["constrained_columns"],
            "indexes": sorted((str(one["name"]), one["column_names"]) for one in inspector.get_indexes(table)),
            "unique": sorted(one["column_names"] for one in inspector.get_unique_constraints(table)),
        }
        for table in sorted(inspector.get_table_names())
        if not table.startswith("crosstie_") and table != "alembic_version"
    }


@pytest.mark.parametrize(
    ("name", "kind", "included"),
    [
        ("crosstie_saga", "table", False),
        ("crosstie_of_a_later_version", "table", False),
        ("orders", "table", True),
        ("my_crosstie_notes", "table", True),
        ("crosstie_hint", "column", True),
        (None, "schema", True),
    ],
)
def test_crossties_tables_are_left_out_and_nothing_else(name: str | None, kind: str, included: bool) -> None:
    """By name before a table is read, or as an object afterwards."""
    assert include_name(name, kind, {}) is included
    assert include_object(None, name, kind, True, None) is included


def test_types_that_are_not_ours_are_left_to_alembic() -> None:
    """As is everything that is no type."""

    class Theirs(sa.TypeDecorator[str]):
        impl = sa.String
        cache_ok = True

    context: Any = SimpleNamespace(dialect=None)
    for kind, item in (("type", Theirs()), ("type", sa.String()), ("server_default", sa.text("1"))):
        assert render_item(kind, item, context) is False

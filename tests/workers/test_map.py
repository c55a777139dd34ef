"""`crosstie map`: the models by database and the references that cross."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from bench.processes import Spawner
from crosstie.orm import ActiveRecord, Tenants
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.registry import registry
from crosstie.orm.relation import BelongsTo
from crosstie.workers.model_map import MapFormat, draw, model_map

MODELS = """
from typing import ClassVar
from crosstie.orm import ActiveRecord, Tenants
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.relation import BelongsTo

class Zone(IntegerPKMixin, ActiveRecord):
    __table_name__ = "zones"
    __connection__ = "secondary"

class User(IntegerPKMixin, ActiveRecord):
    __table_name__ = "users"
    __connection__ = "default"
    parent_id: int | None = None
    zone_id: int
    parent: ClassVar[BelongsTo["User"]] = BelongsTo(foreign_key="parent_id")
    zone: ClassVar[BelongsTo[Zone]] = BelongsTo(foreign_key="zone_id")

class Order(IntegerPKMixin, ActiveRecord):
    __table_name__ = 'or"ders'
    __connection__ = Tenants("tenant_{tenant}")
    user_id: int
    user: ClassVar[BelongsTo[User]] = BelongsTo(foreign_key="user_id")
"""

TEXT = """\
default
  User (users)
    parent_id -> users.id
    zone_id -> secondary.zones.id  [crosses]
secondary
  Zone (zones)
tenant_{tenant}
  Order (or"ders)
    user_id -> default.users.id  [crosses]
3 models, 3 databases, 3 references, 2 of them between databases
"""

MERMAID = """\
flowchart LR
  subgraph d0["default"]
    m0["User<br/>users"]
  end
  subgraph d1["secondary"]
    m1["Zone<br/>zones"]
  end
  subgraph d2["tenant_#123;tenant#125;"]
    m2["Order<br/>or#34;ders"]
  end
  m0 -->|"parent_id"| m0
  m0 ==>|"zone_id"| m1
  m2 ==>|"user_id"| m0
"""

GRAPHVIZ = """\
digraph crosstie {
  rankdir=LR;
  node [shape=box];
  subgraph cluster_0 {
    label="default";
    m0 [label="User\\nusers"];
  }
  subgraph cluster_1 {
    label="secondary";
    m1 [label="Zone\\nzones"];
  }
  subgraph cluster_2 {
    label="tenant_{tenant}";
    m2 [label="Order\\nor\\"ders"];
  }
  m0 -> m0 [label="parent_id"];
  m0 -> m1 [label="zone_id", color=red, style=bold];
  m2 -> m0 [label="user_id", color=red, style=bold];
}
"""


@pytest.fixture(autouse=True)
def models_of_the_test_alone() -> Iterator[None]:
    """Forget the models that the test defined."""
    with registry.isolated():
        yield


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], TEXT),
        (["--format", "text"], TEXT),
        (["--format", "mermaid"], MERMAID),
        (["-f", "graphviz"], GRAPHVIZ),
    ],
    ids=["default", "text", "mermaid", "graphviz"],
)
def test_the_map_is_drawn_in_each_format(arguments: list[str], expected: str, tmp_path: Path, spawn: Spawner) -> None:
    """Whole, in the order of names, by a command of its own that asks no database: none of them exists."""
    (tmp_path / "atlas.py").write_text(MODELS)
    nowhere = {"driver": "postgresql", "host": "127.0.0.1", "port": 1, "database": "nowhere"}
    environment = {
        f"CROSSTIE_CONNECTIONS__{name}__{key.upper()}": str(value)
        for name in ("DEFAULT", "SECONDARY")
        for key, value in nowhere.items()
    }
    command = ("-m", "crosstie.workers", "map", "--import", "atlas", *arguments)
    assert spawn.python(*command, environment=environment).wait_ok() == expected


def test_the_order_of_definition_does_not_matter() -> None:
    """A map that is kept under version control changes only when the models do."""

    class Berth(IntegerPKMixin, ActiveRecord):
        __table_name__ = "berths"
        __connection__ = "b"

    class Anchor(IntegerPKMixin, ActiveRecord):
        __table_name__ = "anchors"
        __connection__ = "a"

        berth_id: int
        spare_id: int

        spare: ClassVar[BelongsTo[Berth]] = BelongsTo(foreign_key="spare_id")
        berth: ClassVar[BelongsTo[Berth]] = BelongsTo(foreign_key="berth_id")

    orders: list[list[type[ActiveRecord]]] = [[Anchor, Berth], [Berth, Anchor], [Anchor]]
    maps = [model_map(models) for models in orders]
    assert maps[0] == maps[1] == maps[2]
    assert [one.column for one in maps[0].references] == ["berth_id", "spare_id"]
    assert [one.name for one in maps[0].models] == ["Anchor", "Berth"]


def test_a_map_without_models_is_empty_and_valid() -> None:
    """In every format."""
    empty = model_map([])
    assert draw(empty, MapFormat.TEXT) == "0 models, 0 databases, 0 references, 0 of them between databases"
    assert draw(empty, MapFormat.MERMAID) == "flowchart LR"
    assert draw(empty, MapFormat.GRAPHVIZ).splitlines()[-1] == "}"


def test_two_tenants_of_one_rule_are_one_place() -> None:
    """A reference within the tenant does not cross, whichever tenant it is."""

    class Crate(IntegerPKMixin, ActiveRecord):
        __table_name__ = "crates"
        __connection__ = Tenants("t_{tenant}")

    class Bottle(IntegerPKMixin, ActiveRecord):
        __table_name__ = "bottles"
        __connection__ = Tenants("t_{tenant}")

        crate_id: int

        crate: ClassVar[BelongsTo[Crate]] = BelongsTo(foreign_key="crate_id")

    (reference,) = model_map([Bottle, Crate]).references
    assert not reference.is_crossing

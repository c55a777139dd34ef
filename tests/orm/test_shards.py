"""The database of a model is found by the key of a shard, or by a function."""

from __future__ import annotations

import pytest

from bench.databases import Pair
from crosstie.orm import ActiveRecord, ConnectionManager, ShardMap, Tenants, connected_to
from crosstie.orm.errors import NoTenantChosen, UnknownConnection
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.placement import Placement


class Order(IntegerPKMixin, ActiveRecord):
    __table_name__ = "orders"
    __connection__ = Tenants("tenant_{tenant}")

    item: str


@pytest.fixture
def places(pair: Pair) -> Pair:
    """Two databases, each with a row of the same key."""
    ConnectionManager.configure({"tenant_acme": pair.first.config, "tenant_bolt": pair.second.config})
    for name in ("acme", "bolt"):
        with connected_to(tenant=name):
            Order.create_table()
            Order(item=name).save()
    return pair


def shard_of(number: int) -> str:
    """Odd numbers are acme's."""
    return f"tenant_{'acme' if number % 2 else 'bolt'}"


@pytest.mark.parametrize(
    ("place", "acme", "bolt", "nowhere"),
    [
        (ShardMap({"eu": "tenant_acme", "us": "tenant_bolt"}), "eu", "us", "cn"),
        (ShardMap({1: "tenant_acme", 2: "tenant_bolt"}), 1, 2, 3),
        (ShardMap(shard_of), 7, 8, None),
        (ShardMap(lambda shard: shard), "tenant_acme", "tenant_bolt", "elsewhere"),
        (Tenants("tenant_{shard}"), "acme", "bolt", "elsewhere"),
    ],
    ids=["map", "map-of-integers", "function", "names", "tenants"],
)
def test_shards_are_chosen_by_a_map_or_a_function(
    place: Placement, acme: object, bolt: object, nowhere: object, places: Pair
) -> None:
    """`connected_to(shard=...)` gives the key; a shard that nobody has configured is an error."""

    class Sharded(IntegerPKMixin, ActiveRecord):
        __table_name__ = "orders"
        __connection__ = place

        item: str

    for shard, name in ((acme, "acme"), (bolt, "bolt")):
        with connected_to(shard=shard):
            assert Sharded.find(1).item == name
    if nowhere is not None:
        with connected_to(shard=nowhere), pytest.raises(UnknownConnection):
            Sharded.find(1)
    with connected_to(tenant="acme"), pytest.raises(NoTenantChosen, match="'shard'"):
        Sharded.find(1)


def test_a_function_names_the_connection(places: Pair) -> None:
    """Called for each statement; what it returns must be configured."""
    now = ["tenant_acme"]

    class Computed(IntegerPKMixin, ActiveRecord):
        __table_name__ = "orders"
        __connection__ = lambda: now[0]  # noqa: E731 - as a user would write it

        item: str

    assert Computed.find(1).item == "acme"
    now[0] = "tenant_bolt"
    assert Computed.find(1).item == "bolt"
    now[0] = "tenant_nobody"
    with pytest.raises(UnknownConnection, match="leads to 'tenant_nobody'"):
        Computed.find(1)

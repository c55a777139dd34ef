"""Tenants and shards: the database of a model is chosen for each statement, and nothing crosses from one to another."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest
import sqlalchemy as sa

from bench.databases import Pair
from bench.faults import crash_at
from crosstie.orm import (
    ActiveRecord,
    ConnectionManager,
    ShardMap,
    Tenants,
    connected_to,
    metadata,
    references,
    transaction,
)
from crosstie.orm.errors import (
    ConfigurationError,
    CrossDatabaseQuery,
    CrossDatabaseWriteWarning,
    ModelDefinitionError,
    NoTenantChosen,
    UnknownConnection,
    WrongTenant,
)
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.integrity import AuditedReference, AuditState, audit_reference
from crosstie.orm.placement import chosen
from crosstie.orm.relation import BelongsTo, HasMany, ManyToMany
from crosstie.orm.statement_log import logged_statements
from crosstie.outbox.tables import create_tables
from crosstie.sagas import SagaAborted, saga

COMPANY = Tenants("tenant_{tenant}")


class Company(IntegerPKMixin, ActiveRecord):
    """In one database for all tenants: that of acme, for want of a third."""

    __table_name__ = "companies"
    __connection__ = "tenant_acme"

    name: str

    orders: ClassVar[HasMany[Order]] = HasMany(foreign_key="company_id")


class Order(IntegerPKMixin, ActiveRecord):
    __table_name__ = "orders"
    __connection__ = COMPANY

    item: str
    company_id: int | None = None

    lines: ClassVar[HasMany[Line]] = HasMany(foreign_key="order_id", inverse_of="order")
    company: ClassVar[BelongsTo[Company]] = BelongsTo(foreign_key="company_id")


class Line(IntegerPKMixin, ActiveRecord):
    __table_name__ = "lines"
    __connection__ = COMPANY

    order_id: int
    text: str

    order: ClassVar[BelongsTo[Order]] = BelongsTo(foreign_key="order_id", inverse_of="lines")


@pytest.fixture
def tenants(pair: Pair) -> Pair:
    """Two tenants, whose rows have the same keys: an order with two lines each."""
    ConnectionManager.configure({"tenant_acme": pair.first.config, "tenant_bolt": pair.second.config})
    for name in ("acme", "bolt"):
        with connected_to(tenant=name):
            Order.create_table()
            Line.create_table()
            order = Order(item=name, company_id=1).save()
            assert order.id == 1
            for text in ("one", "two"):
                Line(order_id=1, text=f"{name} {text}").save()
    Company.create_table()
    Company(name="acme & bolt").save()
    return pair


def items(pair: Pair) -> tuple[list[str], list[str]]:
    """What the databases have, acme's first."""
    acme, bolt = ([item for (item,) in one.rows("SELECT item FROM orders ORDER BY item")] for one in pair.databases)
    return acme, bolt


def test_each_statement_goes_to_the_tenant_that_is_chosen(tenants: Pair) -> None:
    """Reads and writes of every kind; a query made for one tenant and sent for another asks the other."""
    query = Order.find_all()
    for name in ("acme", "bolt"):
        with connected_to(tenant=name), logged_statements() as log:
            assert Order.find(1).item == name
            assert query.pluck("item") == [name]
            Order(item=f"{name} more").save().update(item=f"{name} new")
            Order.find_all().where(item=name).update_all(item=f"{name} old")
            assert set(log.by_database) == {f"tenant_{name}"}
    assert items(tenants) == (["acme new", "acme old"], ["bolt new", "bolt old"])


def test_without_a_choice_no_statement_is_sent(tenants: Pair) -> None:
    """The error says what to choose and what is chosen instead."""
    operations: list[Callable[[], object]] = [
        lambda: Order.find(1),
        lambda: Order.find_by(item="x"),
        Order.find_all().all,
        Order.find_all().count,
        Order.find_all().delete_all,
        Order(item="x").save,
        Order.create_table,
        lambda: Order.transaction().__enter__(),
    ]
    for operation in operations:
        with logged_statements() as log, pytest.raises(NoTenantChosen, match=r"needs 'tenant', and nothing is chosen"):
            operation()
        assert len(log) == 0
    with connected_to(tennant="acme"), pytest.raises(NoTenantChosen, match="tennant='acme' is chosen here"):
        Order.find(1)
    with pytest.raises(NoTenantChosen, match="tenant=None"), connected_to(tenant=None):
        pytest.fail("None is no tenant")
    with pytest.raises(ConfigurationError, match="what to choose"), connected_to():
        pytest.fail("nothing is no choice")


def test_a_choice_selects_among_configured_connections_only(tenants: Pair) -> None:
    """Whatever a caller passes on: no statement, no connection, and no list of the other tenants."""
    for tenant in ["", "nobody", "acme/../bolt", "acme; DROP TABLE orders", "{tenant}", "ACME", 7, "x" * 10_000]:
        with connected_to(tenant=tenant), pytest.raises(UnknownConnection, match="leads to") as refused:
            Order.find(1)
        assert "bolt'" not in str(refused.value).replace(repr(tenant), "").replace(f"tenant_{tenant}", "")
    for tenant in [True, b"acme", 1.5, ["acme"], {"tenant": "acme"}]:
        with connected_to(tenant=tenant), pytest.raises(UnknownConnection, match="a string or an integer"):
            Order.find(1)
    assert items(tenants) == (["acme"], ["bolt"])


def test_blocks_nest_and_end_with_an_exception_too(tenants: Pair) -> None:
    """The inner choice adds to the outer one, or takes its place until its end."""
    with connected_to(tenant="acme"):
        with pytest.raises(ZeroDivisionError), connected_to(tenant="bolt", region="eu"):
            assert dict(chosen()) == {"tenant": "bolt", "region": "eu"}
            assert Order.find(1).item == "bolt"
            raise ZeroDivisionError
        assert Order.find(1).item == "acme"
        with connected_to(region="eu"):
            assert Order.find(1).item == "acme"
    assert not chosen()


def test_threads_and_tasks_have_choices_of_their_own(tenants: Pair) -> None:
    """A thread begins with none; two tasks that take turns do not see each other's."""
    missing: list[BaseException] = []

    def ask() -> None:
        try:
            Order.find(1)
        except NoTenantChosen as error:
            missing.append(error)

    with connected_to(tenant="acme"):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(timeout=60)
    assert len(missing) == 1

    barrier = threading.Barrier(2)

    def work(name: str) -> str:
        with connected_to(tenant=name):
            barrier.wait(timeout=60)
            return Order.find(1).item

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, ["acme", "bolt"])) == ["acme", "bolt"]

    async def task(name: str, mine: asyncio.Event, others: asyncio.Event) -> str:
        with connected_to(tenant=name):
            mine.set()
            await others.wait()
            return await asyncio.to_thread(lambda: Order.find(1).item)

    async def both() -> list[str]:
        one, two = asyncio.Event(), asyncio.Event()
        return list(await asyncio.gather(task("acme", one, two), task("bolt", two, one)))

    assert asyncio.run(both()) == ["acme", "bolt"]


def test_a_transaction_is_the_tenants_that_was_chosen_when_it_began(tenants: Pair) -> None:
    """It takes back its own tenant's rows; a write of another inside it commits by itself, with a warning."""
    with pytest.raises(ZeroDivisionError), connected_to(tenant="acme"), Order.transaction():
        Order(item="lost").save()
        with connected_to(tenant="bolt"), pytest.warns(CrossDatabaseWriteWarning, match="'tenant_bolt'"):
            Order(item="kept").save()
        raise ZeroDivisionError
    with transaction("tenant_bolt"), connected_to(tenant="bolt"):
        Order(item="joined").save()
    assert items(tenants) == (["acme"], ["bolt", "joined", "kept"])


@pytest.mark.parametrize("fault", [None, "saga.branch-committed"])
def test_a_saga_spans_tenants(fault: str | None, tenants: Pair) -> None:
    """The participants are the resolved names, so what moves from one tenant to the other is moved or not."""
    for name in ("tenant_acme", "tenant_bolt"):
        create_tables(ConnectionManager.get(name))

    def move() -> None:
        with saga("move") as block:
            with connected_to(tenant="acme"):
                Order.find(1).delete()
                Order(item="receipt").save()
            with connected_to(tenant="bolt"):
                Order(item="acme", company_id=1).save()
                Order.find(1).increment(company_id=1)
            assert sorted(block._transactions) == ["tenant_acme", "tenant_bolt"]

    if fault is None:
        move()
        assert items(tenants) == (["receipt"], ["acme", "bolt"])
        assert tenants.second.scalar("SELECT company_id FROM orders WHERE id = 1") == 2
    else:
        with crash_at(fault), pytest.raises(SagaAborted):
            move()
        assert items(tenants) == (["acme"], ["bolt"])
        assert tenants.second.scalar("SELECT company_id FROM orders WHERE id = 1") == 1


def test_relations_stay_within_the_tenant(tenants: Pair) -> None:
    """Lazily and eagerly, both ways, each in one query; and to a model that all tenants share."""
    for name in ("acme", "bolt"):
        with connected_to(tenant=name):
            expected = [f"{name} one", f"{name} two"]
            order = Order.find(1)
            assert sorted(line.text for line in order.lines()) == expected
            line = Line.find(1)
            found = line.order()
            assert found is not None
            assert found.item == name
            with logged_statements() as log:
                (eager,) = Order.find_all().with_("lines", "company").all()
                assert sorted(line.text for line in eager.lines()) == expected
                company = eager.company()
            assert len(log) == 3
            assert company is not None
            assert company.name == "acme & bolt"


def test_a_chain_may_lead_over_a_table_that_each_tenant_has(tenants: Pair) -> None:
    """From a shared table over the tenant's and on to a shared one; what one tenant's led to is not another's."""

    class Shop(IntegerPKMixin, ActiveRecord):
        __table_name__ = "shops"
        __connection__ = "tenant_bolt"

        sales: ClassVar[HasMany[Sale]] = HasMany(foreign_key="shop_id")
        carriers: ClassVar[HasMany[Carrier]] = HasMany(through="sales", source="carrier")
        tied: ClassVar[ManyToMany[Carrier]] = ManyToMany(through="Sale")

    class Sale(IntegerPKMixin, ActiveRecord):
        __table_name__ = "sales"
        __connection__ = COMPANY

        shop_id: int
        carrier_id: int

        shop: ClassVar[BelongsTo[Shop]] = BelongsTo(foreign_key="shop_id")
        carrier: ClassVar[BelongsTo[Carrier]] = BelongsTo(foreign_key="carrier_id")

    class Carrier(IntegerPKMixin, ActiveRecord):
        __table_name__ = "carriers"
        __connection__ = "tenant_acme"

        name: str

    Shop.create_table()
    Carrier.create_table()
    shop = Shop().save()
    by_tenant = {"acme": ["acme's"], "bolt": ["bolt's", "everybody's"]}
    for name in ("acme's", "bolt's", "everybody's"):
        Carrier(name=name).save()
    for tenant, carriers in by_tenant.items():
        with connected_to(tenant=tenant):
            Sale.create_table()
            for carrier_id in Carrier.find_all().where(name=carriers).pluck("id"):
                Sale(shop_id=1, carrier_id=carrier_id).save()
    for tenant, carriers in by_tenant.items():
        with connected_to(tenant=tenant):
            for relation in (shop.carriers, shop.tied):
                assert sorted(carrier.name for carrier in relation()) == carriers
                assert sorted(relation.query().pluck("name")) == carriers
                assert relation.count() == len(carriers)
            (eager,) = Shop.find_all().with_("carriers", "tied").with_count("tied").all()
            assert sorted(carrier.name for carrier in eager.carriers()) == carriers
            assert sorted(carrier.name for carrier in eager.tied()) == carriers
            assert eager.tied.count() == len(carriers)
            everybody = Shop.find_all().where_has("carriers", lambda rows: rows.where(name="everybody's"))
            assert everybody.count() == (tenant == "bolt")
    with logged_statements() as log:
        for ask in (shop.carriers, shop.tied, Shop.find_all().where_has("carriers").all):
            with pytest.raises(NoTenantChosen, match="'tenant'"):
                ask()
    assert len(log) == 0


def test_a_record_of_one_tenant_is_refused_while_another_is_chosen(tenants: Pair) -> None:
    """The row of the same key there is somebody else's: neither written, nor read, nor taken for it."""
    with connected_to(tenant="acme"):
        loaded, created = Order.find(1), Order(item="created").save()
        (queried,) = Order.find_all().where(id=1).with_("lines").with_count("lines").all()
        asked = loaded.lines.query()
        assert len(asked.all()) == 2
    restored = pickle.loads(pickle.dumps(loaded))  # noqa: S301 - our own bytes
    with connected_to(tenant="bolt"):
        for record in (loaded, created, queried, restored):
            record.item = "wrong"
            for operation in (record.save, record.delete, record.refresh, record.lines, record.lines.count):
                with pytest.raises(WrongTenant, match="'tenant_acme', and 'tenant_bolt' is chosen"):
                    operation()
            with pytest.raises(WrongTenant):
                record.increment(company_id=1)
        for query in (asked, loaded.lines.query()):
            with pytest.raises(WrongTenant):
                query.all()
            with pytest.raises(WrongTenant):
                query.delete_all()
    assert items(tenants) == (["acme", "created"], ["bolt"])
    with connected_to(tenant="acme"):
        restored.save()
        assert sorted(line.text for line in queried.lines()) == ["acme one", "acme two"]
    assert items(tenants) == (["created", "wrong"], ["bolt"])


def test_what_a_shared_record_has_loaded_counts_for_its_tenant_only(tenants: Pair) -> None:
    """One record of a shared model, used for two tenants in turn, shows each its own rows."""
    company = Company.find(1)
    for name in ("acme", "bolt", "acme"):
        with connected_to(tenant=name):
            assert [order.item for order in company.orders()] == [name]
            with logged_statements() as log:
                assert [order.item for order in company.orders()] == [name]
            assert len(log) == 0
    with pytest.raises(NoTenantChosen):
        company.orders()


def test_replicas_are_chosen_along(tenants: Pair) -> None:
    """Here each tenant's "replica" is the other's database, so that the answer shows who gave it."""
    ConnectionManager.configure(
        {
            "tenant_acme": tenants.first.config,
            "tenant_bolt": tenants.second.config,
            "copy_acme": tenants.second.config,
            "copy_bolt": tenants.first.config,
        }
    )

    class Copied(IntegerPKMixin, ActiveRecord):
        __table_name__ = "orders"
        __connection__ = COMPANY
        __read_connection__ = Tenants("copy_{tenant}")

        item: str

    results: list[tuple[str, set[str]]] = []

    def ask() -> None:  # in a thread that has written nothing
        with connected_to(tenant="acme"), logged_statements() as log:
            read = Copied.find(1)
            results.append((read.item, set(log.by_database)))
            read.update(item="written")
            results.append((Copied.find(1).item, set(log.by_database)))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(timeout=60)
    assert results == [("bolt", {"copy_acme"}), ("written", {"copy_acme", "tenant_acme"})]
    assert items(tenants) == (["written"], ["bolt"])

    with pytest.raises(ModelDefinitionError, match="one database for all of them"):

        class Leaking(IntegerPKMixin, ActiveRecord):
            __table_name__ = "orders"
            __connection__ = COMPANY
            __read_connection__ = "tenant_acme"


def test_conditions_may_use_tables_of_the_same_place_only(tenants: Pair) -> None:
    """Two models of one tenant are in one database whichever it is; a shared model is in another."""
    with connected_to(tenant="bolt"):
        lines = sa.select(Line.c.order_id).where(Line.c.text == "bolt one")
        assert Order.find_all().where(Order.c.id.in_(lines)).count() == 1
        companies = sa.select(Company.c.id)
        with pytest.raises(CrossDatabaseQuery, match=r"Tenants\('tenant_\{tenant\}'\)"):
            Order.find_all().where(Order.c.company_id.in_(companies)).all()
        assert Order.find_all().join("lines").where(Line.c.text == "bolt one").count() == 1
    joined = Line.find_all().join("order")
    for name in ("acme", "bolt"):
        with connected_to(tenant=name):
            assert set(joined.pluck("text", Order.c.item)) == {(f"{name} one", name), (f"{name} two", name)}
    with pytest.raises(CrossDatabaseQuery, match=r"Tenants\('tenant_\{tenant\}'\).*'tenant_acme'.*where_has\("):
        Order.find_all().join("company")


def test_each_tenant_has_its_references(tenants: Pair) -> None:
    """For the audit: within the tenant, or from each tenant to what they share; none where a function decides."""

    class Note(IntegerPKMixin, ActiveRecord):
        __table_name__ = "notes"
        __connection__ = lambda: "tenant_acme"  # noqa: E731 - as a user would write it

        order_id: int

        order: ClassVar[BelongsTo[Order]] = BelongsTo(foreign_key="order_id")

    class Bill(IntegerPKMixin, ActiveRecord):
        __table_name__ = "bills"
        __connection__ = ShardMap({"acme": "tenant_bolt", "bolt": "tenant_acme", "x": "missing"}, by="tenant")

        order_id: int

        order: ClassVar[BelongsTo[Order]] = BelongsTo(foreign_key="order_id")

    assert [one.name for one in references([Line, Order, Note, Bill])] == [
        "tenant_acme.lines.order_id -> tenant_acme.orders.id",
        "tenant_bolt.lines.order_id -> tenant_bolt.orders.id",
        "tenant_acme.orders.company_id -> tenant_acme.companies.id",
        "tenant_bolt.orders.company_id -> tenant_acme.companies.id",
        "tenant_bolt.bills.order_id -> tenant_acme.orders.id",
        "tenant_acme.bills.order_id -> tenant_bolt.orders.id",
    ]
    crossing = references([Line, Order], crossing_only=True)
    assert [one.name for one in crossing] == ["tenant_bolt.orders.company_id -> tenant_acme.companies.id"]
    (found,) = (AuditedReference.declared(one) for one in crossing)
    tenants.second.execute("UPDATE orders SET company_id = 99 WHERE id = 1")
    result = audit_reference(found)
    assert (result.state, result.orphan_rows) == (AuditState.FINDINGS, 1)


def test_metadata_of_a_connection_has_the_models_that_may_be_there(tenants: Pair) -> None:
    """So that each tenant's database is migrated alike."""
    assert {"orders", "lines"} <= set(metadata("tenant_bolt").tables)
    assert "companies" not in metadata("tenant_bolt").tables
    assert {"orders", "lines", "companies"} <= set(metadata("tenant_acme").tables)
    assert "orders" not in metadata("default").tables


@pytest.mark.parametrize("pattern", ["tenant", "", "tenant_{}", "tenant_{0}", "{tenant.__class__}", "{tenant!r}", "{a"])
def test_a_pattern_has_plain_placeholders(pattern: str) -> None:
    """Anything else a format string can do has no place in the name of a connection."""
    with pytest.raises(ModelDefinitionError, match="expected"):
        Tenants(pattern)


@pytest.mark.parametrize("place", [None, "", 7, ["a"], object()])
def test_a_connection_is_a_name_or_a_rule(place: object) -> None:
    """Anything else is refused where the model is defined."""
    with pytest.raises(ModelDefinitionError, match=r"expected __connection__ = .*Tenants"):

        class Nowhere(IntegerPKMixin, ActiveRecord):
            __table_name__ = "nowhere"
            __connection__ = place  # type: ignore[assignment]

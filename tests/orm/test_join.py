from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, ClassVar

import pytest
import sqlalchemy as sa

from bench.databases import Pair, TestDatabase
from crosstie.orm import ActiveRecord, Query
from crosstie.orm.errors import CrossDatabaseQuery, InvalidQuery
from crosstie.orm.field import Column, CompositePKMixin, IntegerPKMixin, SoftDeleteMixin
from crosstie.orm.relation import BelongsTo, HasMany, ManyToMany
from crosstie.orm.statement_log import logged_statements
from orm.blog import Comment, Post, User, create_blog, seed_blog


class Customer(IntegerPKMixin, ActiveRecord):
    __table_name__ = "customers"
    __connection__ = "default"

    id: int | None = None
    name: str
    referrer_id: int | None = None

    orders: ClassVar[HasMany[Order]] = HasMany(foreign_key="customer_id")
    lines: ClassVar[HasMany[Line]] = HasMany(through="orders")
    referrer: ClassVar[BelongsTo[Customer]] = BelongsTo(foreign_key="referrer_id")


class Order(IntegerPKMixin, ActiveRecord):
    __table_name__ = "orders"
    __connection__ = "default"

    id: int | None = None
    customer_id: int | None
    billed_id: int | None = None
    total: Decimal
    notes: list[str]

    customer: ClassVar[BelongsTo[Customer]] = BelongsTo(foreign_key="customer_id")
    billed: ClassVar[BelongsTo[Customer]] = BelongsTo(foreign_key="billed_id")
    lines: ClassVar[HasMany[Line]] = HasMany(foreign_key="order_id")
    labels: ClassVar[ManyToMany[Label]] = ManyToMany(through="Labelling")


class Line(IntegerPKMixin, SoftDeleteMixin):
    __table_name__ = "lines"
    __connection__ = "default"

    id: int | None = None
    order_id: int
    sku: str
    pieces: int = 1

    order: ClassVar[BelongsTo[Order]] = BelongsTo(foreign_key="order_id")


class Label(IntegerPKMixin, ActiveRecord):
    __table_name__ = "labels"
    __connection__ = "default"

    id: int | None = None
    word: str


class Labelling(IntegerPKMixin, ActiveRecord):
    __table_name__ = "labellings"
    __connection__ = "default"

    order_id: int
    label_id: int

    order: ClassVar[BelongsTo[Order]] = BelongsTo(foreign_key="order_id")
    label: ClassVar[BelongsTo[Label]] = BelongsTo(foreign_key="label_id")


@pytest.fixture
def shop(configured_database: TestDatabase) -> TestDatabase:
    """Zoe has orders 1 and 2, Ann order 3, nobody order 4; order 1 has lines a, b and a hidden one, order 3 line a."""
    for model in (Customer, Order, Line, Label, Labelling):
        model.create_table()
    for name in ("zoe", "ann", "bob"):
        Customer(name=name).save()
    for customer_id, total in ((1, 10), (1, 20), (2, 30), (None, 40)):
        Order(customer_id=customer_id, total=Decimal(total), notes=["x"]).save()
    for order_id, sku in ((1, "a"), (1, "b"), (3, "a")):
        Line(order_id=order_id, sku=sku).save()
    Line(order_id=1, sku="hidden").save().delete()
    Label(word="urgent").save()
    Labelling(order_id=2, label_id=1).save()
    return configured_database


def ids(orders: object) -> list[int | None]:
    """The ids of records."""
    assert isinstance(orders, list)
    return [order.id for order in orders]


def test_a_join_narrows_and_orders_by_another_table(shop: TestDatabase) -> None:
    """In one statement; rows with nothing to join are left out."""
    joined = Order.find_all().join("customer")
    with logged_statements() as log:
        assert ids(joined.where(Customer.c.name == "zoe").order_by("id").all()) == [1, 2]
    assert len(log) == 1
    assert ids(joined.order_by(Customer.c.name, "-id").all()) == [3, 2, 1]
    assert ids(joined.order_by(Customer.c.name.desc(), "id").limit(1).offset(1).all()) == [2]
    last, first = joined.order_by(Customer.c.name, "id").last(), joined.order_by(Customer.c.name).first()
    assert last is not None
    assert first is not None
    assert (last.id, first.id) == (2, 3)
    assert joined.where(Customer.c.name == "ann").one().total == 30
    page = joined.order_by(Customer.c.name, "id").paginate(2, per_page=2)
    assert (ids(page.records), page.total) == ([2], 3)


def test_a_left_join_keeps_rows_with_nothing_to_join(shop: TestDatabase) -> None:
    """Their columns of the other table are NULL."""
    joined = Order.find_all().left_join("customer")
    assert joined.count() == 4
    assert ids(joined.where(Customer.c.id.is_(None)).all()) == [4]
    assert Customer.find_all().left_join("orders").where(Order.c.id.is_(None)).pluck("name") == ["bob"]


def test_values_of_the_other_table_can_be_counted_and_read(shop: TestDatabase) -> None:
    """Converted as the other model's fields are."""
    joined = Order.find_all().join("customer")
    assert joined.count() == 3
    assert joined.where(Customer.c.name == "bob").exists() is False
    assert joined.exists() is True
    assert joined.sum("total") == 60
    assert joined.where(Customer.c.name == "zoe").avg("total") == 15
    assert joined.max(Customer.c.name) == "zoe"
    assert joined.group_by(Customer.c.name).sum("total") == {"zoe": 30, "ann": 30}
    assert joined.group_by(Customer.c.name).having(sa.func.count() > 1).count() == {"zoe": 2}
    assert joined.order_by("id").pluck("id", Customer.c.name) == [(1, "zoe"), (2, "zoe"), (3, "ann")]
    assert sorted(joined.distinct().pluck(Customer.c.name)) == ["ann", "zoe"]
    assert joined.distinct().count(Customer.c.name) == 2
    assert joined.order_by("id").limit(2).sum("total") == 30
    lines = Customer.find_all().join("orders")
    assert lines.where(name="zoe").sum(Order.c.total) == Decimal(30)
    assert type(lines.max(Order.c.total)) is Decimal
    with pytest.raises(InvalidQuery, match="a model that is joined, and found"):
        joined.pluck(Line.c.sku)
    with pytest.raises(InvalidQuery, match="a model that is joined, and found"):
        Order.find_all().sum(Customer.c.id)


def test_a_join_to_many_repeats_rows_until_they_are_distinct(shop: TestDatabase) -> None:
    """Then each is one record, counts as one, and is added once; documents without an equality are no obstacle."""
    joined = Order.find_all().join("lines").order_by("id")
    assert ids(joined.all()) == [1, 1, 3]
    assert (joined.count(), joined.sum("total")) == (3, 50)
    once = joined.distinct()
    assert ids(once.all()) == [1, 3]
    assert (once.count(), once.sum("total"), once.exists()) == (2, 40, True)
    assert once.group_by("id").count() == {1: 1, 3: 1}
    assert once.where(Line.c.sku == "b").one().id == 1
    assert ids(once.limit(1).offset(1).all()) == [3]
    assert once.limit(1).count() == 1
    assert once.paginate(1, per_page=1).total == 2
    with pytest.raises(InvalidQuery, match=r"distinct\(\) of joined rows .* of its own model, and found lines\.sku"):
        Order.find_all().join("lines").order_by(Line.c.sku).distinct().all()
    groups = Order.find_all().join("lines").group_by("id").having(sa.func.max(Line.c.pieces) > 0)
    assert groups.count() == {1: 2, 3: 1}
    with pytest.raises(InvalidQuery, match="lines, which it does not read"):
        once.group_by("id").having(sa.func.max(Line.c.pieces) > 0).count()
    with pytest.raises(InvalidQuery, match=r"lines\.pieces may have several values"):
        once.sum(Line.c.pieces)
    assert Order.find_all().join("customer").distinct().order_by(Customer.c.name).count() == 3


def test_rows_with_a_key_of_several_fields_are_joined_too(configured_database: TestDatabase) -> None:
    """And are told apart by all of it, in reads and in writes."""

    class Shelf(CompositePKMixin, ActiveRecord):
        __table_name__ = "shelves"
        __connection__ = "default"
        __primary_key__ = ("room", "number")

        room: str
        number: int
        code: Annotated[int, Column(unique=True)]
        full: bool = False

        books: ClassVar[HasMany[Book]] = HasMany(foreign_key="shelf_code", primary_key="code")

    class Book(IntegerPKMixin, ActiveRecord):
        __table_name__ = "books"
        __connection__ = "default"

        shelf_code: int

    Shelf.create_table()
    Book.create_table()
    for code, (room, number) in enumerate((("a", 1), ("a", 2), ("b", 1)), 1):
        Shelf(room=room, number=number, code=code).save()
    for code in (2, 2, 3):
        Book(shelf_code=code).save()
    joined = Shelf.find_all().join("books")
    assert joined.count() == 3
    assert [shelf.code for shelf in joined.distinct().order_by("code")] == [2, 3]
    assert [[shelf.code for shelf in batch] for batch in joined.in_batches(1)] == [[2], [3]]
    assert joined.update_all(full=True) == 2
    assert joined.where(room="a").delete_all() == 1
    assert Shelf.find_all().order_by("code").pluck("code", "full") == [(1, False), (3, True)]


def test_batches_of_joined_rows_have_each_record_once(shop: TestDatabase) -> None:
    """Though the key by which they go on comes several times."""
    joined = Order.find_all().join("lines")
    assert [ids(batch) for batch in joined.in_batches(1)] == [[1], [3]]
    assert [order.id for order in joined.where(Line.c.sku == "a").find_each(10)] == [1, 3]


def test_hidden_rows_are_not_joined(shop: TestDatabase) -> None:
    """A row whose only match is hidden has none."""
    for line in Line.find_all().where(order_id=3):
        line.delete()
    assert ids(Order.find_all().join("lines").distinct().all()) == [1]
    assert Order.find_all().join("lines").where(Line.c.sku == "hidden").count() == 0
    bare = Order.find_all().left_join("lines").where(Line.c.id.is_(None))
    assert ids(bare.order_by("id").all()) == [2, 3, 4]
    assert Line.find_all().join("order").count() == 2
    assert Line.find_all().join("order").with_deleted().count() == 4


def test_paths_and_relations_through_others_join_all_on_the_way(shop: TestDatabase) -> None:
    """What several paths share is joined once."""
    lines = Line.find_all().join("order", "order.customer").where(Customer.c.name == "zoe", sku="a")
    assert lines.pluck("id", Order.c.id, Customer.c.id) == [(1, 1, 1)]
    assert lines.to_sql().count("JOIN") == 2
    assert (
        Line.find_all().join("order.customer").join("order").to_sql() == Line.find_all().join("order.customer").to_sql()
    )
    assert Customer.find_all().join("lines").where(Line.c.sku == "b").pluck("name") == ["zoe"]
    assert ids(Order.find_all().join("labels").where(Label.c.word == "urgent").all()) == [2]
    assert Line.find_all().join("order").left_join("order.labels").where(Label.c.id.is_(None)).count() == 3


def test_writes_reach_the_rows_of_a_join(shop: TestDatabase) -> None:
    """Each once, whatever the server says of a table that is written and read; only the query's own table changes."""
    Order.find_all().join("customer", "lines").where(Customer.c.name == "zoe").update_all(billed_id=7)
    assert Order.find_all().where(billed_id=7).pluck("id") == [1]
    assert Line.find_all().join("order").where(Order.c.billed_id == 7).delete_all() == 2
    assert Order.find_all().join("customer").where(Customer.c.name == "ann").delete_all() == 1
    assert sorted(Order.find_all().pluck("id")) == [1, 2, 4]
    assert Customer.find_all().count() == 3
    with pytest.raises(InvalidQuery, match="an order"):
        Order.find_all().join("customer").order_by(Customer.c.name).delete_all()


def test_joined_rows_can_be_locked(shop: TestDatabase) -> None:
    """The query's own rows are; a left join has none of the other table to lock."""
    with Order.transaction():
        assert ids(Order.find_all().left_join("customer").for_update().order_by("id").all()) == [1, 2, 3, 4]
        assert ids(Order.find_all().join("lines").distinct().for_update().order_by("id").all()) == [1, 3]


def test_related_rows_may_be_narrowed_by_a_join(shop: TestDatabase) -> None:
    """In an eager load, a count, a condition and one record's query; no record is dealt out twice."""

    def with_lines(orders: Query[Any]) -> Query[Any]:
        return orders.join("lines")

    zoe = Customer.find_all().with_(orders=with_lines).where(name="zoe").one()
    assert ids(zoe.orders()) == [1]
    zoe = Customer.find_all().with_count(orders=with_lines).where(name="zoe").one()
    assert zoe.orders.count() == 1
    assert sorted(Customer.find_all().where_has("orders", with_lines).pluck("name")) == ["ann", "zoe"]
    assert Customer.find_all().where_missing("orders", with_lines).pluck("name") == ["bob"]
    assert Customer.find_all().where_has("orders", lambda orders: orders.join("customer")).count() == 2
    assert Customer.find_all().where_has("orders", lambda orders: orders.join("customer")).update_all(name="x") == 2
    assert zoe.orders.query().join("lines").where(Line.c.sku == "b").pluck("id") == [1]


def test_a_table_is_joined_once(shop: TestDatabase) -> None:
    """Nothing could tell its columns apart; a condition on a table that is not joined is refused too."""
    with pytest.raises(InvalidQuery, match=r"joining 'referrer' would read the table 'customers' twice"):
        Customer.find_all().join("referrer")
    with pytest.raises(InvalidQuery, match=r"joining 'billed' would read the table 'customers' twice"):
        Order.find_all().join("customer", "billed")
    with pytest.raises(InvalidQuery, match=r"'customer' is joined twice, by join\(\) and by left_join\(\)"):
        Order.find_all().join("customer").left_join("customer")
    with pytest.raises(InvalidQuery, match=r"has no relation 'custmer'.*'customer'"):
        Order.find_all().join("custmer")
    with pytest.raises(InvalidQuery, match="at least one relation"):
        Order.find_all().join()
    with pytest.raises(InvalidQuery, match=r"lines, which it does not read: join\(\) its relation"):
        Order.find_all().join("customer").where(Line.c.sku == "a").all()
    with pytest.raises(InvalidQuery, match="no joins"):
        Order.find_all().merge(Order.find_all().join("customer"))
    assert Order.find_all().join("customer").merge(Order.find_all().where(Customer.c.name == "ann")).count() == 1


def test_a_join_of_two_databases_is_refused_before_it_is_sent(configured: Pair) -> None:
    """Both are named, and what to do instead; in a path and through other relations too."""
    create_blog()
    seed_blog()
    with logged_statements() as log:
        for model, path in ((User, "posts"), (Post, "user"), (Comment, "post.user"), (User, "posts.comments")):
            with pytest.raises(CrossDatabaseQuery, match=r"'(default|secondary)'.*'(default|secondary)'.*where_has"):
                model.find_all().join(path)
            with pytest.raises(CrossDatabaseQuery, match="with_"):
                model.find_all().left_join(path)
        with pytest.raises(CrossDatabaseQuery):
            Comment.find_all().join("post").where(User.c.id == 1)
    assert len(log) == 0
    assert Comment.find_all().join("post").where(Post.c.title == "post1.1").where_has("author").count() == 2

from __future__ import annotations

import pytest
import sqlalchemy as sa

from bench.databases import Pair, TestDatabase
from crosstie.orm import ActiveRecord
from crosstie.orm.errors import (
    InvalidQuery,
    ModelDefinitionError,
    MultipleRecords,
    RecordNotFound,
)
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.statement_log import logged_statements
from orm.blog import Comment, Post, User, create_blog, seed_blog


class Item(IntegerPKMixin, ActiveRecord):
    __table_name__ = "items"
    __connection__ = "default"

    id: int | None = None
    name: str
    size: int | None = None
    price: float = 0.0


@pytest.fixture
def items(configured_database: TestDatabase) -> TestDatabase:
    """Five items; the size of the last is NULL."""
    Item.create_table()
    for number, size in enumerate([3, 1, 2, 1, None], 1):
        Item(name=f"item {number}", size=size, price=number / 2).save()
    return configured_database


def names(records: object) -> list[int | None]:
    """The ids of records."""
    assert isinstance(records, list)
    return [record.id for record in records]


def test_find_takes_the_key_and_find_by_any_fields(items: TestDatabase) -> None:
    """`find` raises where there is no row, `find_by` returns None; a key given as text is the same key."""
    assert Item.find(2).name == "item 2"
    assert Item.find("2").id == 2
    found = Item.find_by(name="item 3", size=2)
    assert found is not None
    assert found.id == 3
    assert Item.find_by(name="item 3", size=1) is None
    last = Item.find_by(size=None)
    assert last is not None
    assert last.id == 5
    either = Item.find_by(id=[4, 99])
    assert either is not None
    assert either.id == 4
    assert Item.find_by() is not None
    with pytest.raises(RecordNotFound, match="99"):
        Item.find(99)
    with pytest.raises(InvalidQuery, match="expected a value"):
        Item.find(None)


def test_conditions_narrow_and_leave_the_query_before_them_alone(items: TestDatabase) -> None:
    """Keywords and expressions join with AND; each step is a query of its own."""
    everything = Item.find_all()
    small = everything.where(size=1)
    cheap = small.where(Item.c.price < 1.5)
    assert names(everything.order_by("id").all()) == [1, 2, 3, 4, 5]
    assert names(small.order_by("id").all()) == [2, 4]
    assert names(cheap.all()) == [2]
    assert names(everything.where(Item.c.size.is_(None)).all()) == [5]
    assert names(everything.where(sa.or_(Item.c.size == 3, Item.c.size == 2)).order_by("id").all()) == [1, 3]
    assert names(everything.where(sa.text("size > :least").bindparams(least=1)).order_by("id").all()) == [1, 3]


def test_a_list_is_in_and_none_is_null(items: TestDatabase) -> None:
    """Lists, tuples and sets; NULL among the values matches NULL; an empty list matches nothing."""
    rows = Item.find_all().order_by("id")
    assert names(rows.where(size=[1, 3]).all()) == [1, 2, 4]
    assert names(rows.where(size={2, None}).all()) == [3, 5]
    assert names(rows.where(size=(None,)).all()) == [5]
    assert names(rows.where(size=None).all()) == [5]
    assert names(rows.where(id=[]).all()) == []
    assert names(rows.where(id=["1", 1, 2]).all()) == [1, 2]


def test_a_list_of_any_length_is_one_statement(items: TestDatabase) -> None:
    """Seventy thousand keys pass every driver's parameter limit."""
    keys = list(range(4, 70_004))
    with logged_statements() as log:
        assert names(Item.find_all().where(id=keys).order_by("id").all()) == [4, 5]
        assert Item.find_all().where(name=[f"item {key}" for key in keys]).count() == 2
    assert len(log) == 2


@pytest.mark.parametrize("value", ["abc", "1x", 1.5, object()])
def test_a_value_of_another_type_is_refused(items: TestDatabase, value: object) -> None:
    """What cannot be the field's type never silently matches nothing."""
    for ask in (
        lambda: Item.find(value),
        lambda: Item.find_by(size=value),
        lambda: Item.find_all().where(size=value),
        lambda: Item.find_all().where(size=[1, value]),
    ):
        with pytest.raises(InvalidQuery, match=r"items\.(id|size): "):
            ask()
    with pytest.raises(InvalidQuery, match=r"items\.name"):
        Item.find_by(name=1)


def test_a_number_that_no_row_can_have_is_refused(items: TestDatabase) -> None:
    """Beyond 64 bits drivers overflow, each in its own way; the transaction stays whole."""
    with Item.transaction():
        for ask in (lambda: Item.find(2**63), lambda: Item.find_all().where(id=[1, -(2**63) - 1])):
            with pytest.raises(InvalidQuery, match="64 bits"):
                ask()
        assert Item.find(1).id == 1


def test_order_limit_and_offset(items: TestDatabase) -> None:
    """Fields ascending and descending, expressions, and windows of the result."""
    rows = Item.find_all()
    assert names(rows.where(Item.c.id < 5).order_by("size", "-id").all()) == [4, 2, 3, 1]
    assert names(rows.order_by("-id").limit(2).all()) == [5, 4]
    assert names(rows.order_by("-id").limit(2).offset(1).all()) == [4, 3]
    assert names(rows.order_by("id").offset(3).all()) == [4, 5]
    assert names(rows.order_by((Item.c.price * -1).asc()).limit(1).all()) == [5]
    assert names(rows.order_by("id").limit(2).limit(None).all()) == [1, 2, 3, 4, 5]
    assert rows.limit(0).all() == []


def test_first_one_count_exists_and_pluck(items: TestDatabase) -> None:
    """Each asks for no more than it needs."""
    rows = Item.find_all()
    first = rows.first()
    assert first is not None
    assert first.id == 1
    last = rows.order_by("-id").first()
    assert last is not None
    assert last.id == 5
    assert rows.where(id=99).first() is None
    assert rows.limit(0).first() is None
    assert rows.where(id=3).one().id == 3
    with pytest.raises(RecordNotFound):
        rows.where(id=99).one()
    with pytest.raises(MultipleRecords):
        rows.one()
    assert rows.count() == 5
    assert rows.where(size=1).count() == 2
    assert rows.limit(2).count() == 2
    assert rows.offset(3).count() == 2
    assert rows.limit(0).count() == 0
    assert rows.exists()
    assert not rows.where(id=99).exists()
    assert not rows.limit(0).exists()
    assert rows.order_by("id").limit(2).pluck("name") == ["item 1", "item 2"]
    assert rows.where(size=1).order_by("id").pluck("id", "size") == [(2, 1), (4, 1)]
    with pytest.raises(InvalidQuery):
        rows.pluck()  # type: ignore[call-overload]
    assert [item.id for item in rows.order_by("id")] == [1, 2, 3, 4, 5]


def test_bulk_writes_are_one_statement(items: TestDatabase) -> None:
    """`update_all` and `delete_all` write what matches and say how many rows that was."""
    with logged_statements() as log:
        assert Item.find_all().where(size=1).update_all(size="9", name="changed") == 2
        assert Item.find_all().where(Item.c.id > 3).delete_all() == 2
    assert len(log) == 2
    rows = items.rows("SELECT id, name, size FROM items ORDER BY id")
    assert rows == [(1, "item 1", 3), (2, "changed", 9), (3, "item 3", 2)]
    assert Item.find_all().update_all(price=1) == 3
    for refused in (Item.find_all().limit(1), Item.find_all().offset(1), Item.find_all().order_by("id")):
        with pytest.raises(InvalidQuery, match="update_all"):
            refused.update_all(size=1)
        with pytest.raises(InvalidQuery, match="delete_all"):
            refused.delete_all()
    with pytest.raises(InvalidQuery, match="key"):
        Item.find_all().update_all(id=7)
    with pytest.raises(InvalidQuery):
        Item.find_all().update_all()
    assert Item.find_all().delete_all() == 3


def test_an_unknown_name_is_refused_with_the_nearest(items: TestDatabase) -> None:
    """Fields and relations are checked where they are named, before any statement."""
    rows = Item.find_all()
    for ask in (
        lambda: Item.find_by(naem="x"),
        lambda: rows.where(naem="x"),
        lambda: rows.order_by("naem"),
        lambda: rows.order_by("-naem"),
        lambda: rows.pluck("naem"),
        lambda: rows.where(Item.c.naem == "x"),
        lambda: rows.where(Item.c["naem"] == "x"),
        lambda: rows.update_all(naem="x"),
    ):
        with pytest.raises(InvalidQuery, match=r"Item has no field 'naem'\. Did you mean 'name'\?"):
            ask()
    assert not hasattr(Item.c, "naem")
    assert "name" in Item.c
    assert [column.name for column in Item.c] == ["id", "name", "size", "price"]
    with pytest.raises(InvalidQuery, match="'posts' is a relation"):
        User.find_all().where(posts=1)
    with pytest.raises(InvalidQuery, match=r"User has no relation 'post'\. Did you mean 'posts'\?"):
        User.find_all().with_("post")
    with pytest.raises(InvalidQuery, match=r"Post has no relation 'comment'\. Did you mean 'comments'\?"):
        User.find_all().with_("posts.comment")
    with pytest.raises(InvalidQuery, match="'username' is a field, not a relation"):
        User.find_all().with_("username")


@pytest.mark.turns("database")
@pytest.mark.parametrize("term", ["name; DROP TABLE items", "name DESC", "1", "", "--", "items.name", 'name"'])
def test_a_name_is_never_put_into_sql(items: TestDatabase, term: str) -> None:
    """Only names of fields are names; anything else is refused and never reaches a database."""
    with logged_statements() as log:
        for ask in (
            lambda: Item.find_all().order_by(term),
            lambda: Item.find_all().pluck(term),
            lambda: Item.find_all().where(**{term: 1}),
            lambda: Item.find_by(**{term: 1}),
            lambda: Item.find_all().update_all(**{term: 1}),
        ):
            with pytest.raises(InvalidQuery):
                ask()
    assert len(log) == 0
    assert Item.find_by(name="x' OR '1'='1") is None


def test_nonsense_is_refused(items: TestDatabase) -> None:
    """A condition that Python has evaluated already, a negative limit, a term that is no name."""
    for condition in (True, False, "name = 'x'", None, 1):
        with pytest.raises(InvalidQuery, match="expected keywords or an expression"):
            Item.find_all().where(condition)  # type: ignore[call-overload]
    for count in (-1, 1.5, True, "1"):
        with pytest.raises(InvalidQuery, match="number of rows"):
            Item.find_all().limit(count)  # type: ignore[arg-type]
        with pytest.raises(InvalidQuery, match="number of rows"):
            Item.find_all().offset(count)  # type: ignore[arg-type]
    with pytest.raises(InvalidQuery, match="order_by"):
        Item.find_all().order_by(1)  # type: ignore[arg-type]


def test_another_table_of_the_same_database_needs_a_subquery(configured: Pair) -> None:
    """Named bare it would pair every row with every row; in a subquery it is what is meant."""
    create_blog()
    seed_blog(users=3, posts=2, comments=2)
    with logged_statements() as log, pytest.raises(InvalidQuery, match="subquery"):
        Post.find_all().where(Comment.c.body == "!").all()
    with pytest.raises(InvalidQuery, match="subquery"):
        Post.find_all().where(Comment.c.body == "!").delete_all()
    assert len(log) == 0
    commented = Post.find_all().where(Post.c.id.in_(sa.select(Comment.c.post_id).where(Comment.c.body == "!")))
    assert commented.count() == 4
    has_comment = sa.exists().where(Comment.c.post_id == Post.c.id)
    assert Post.find_all().where(has_comment).count() == 4
    assert Post.find_all().where(~has_comment).delete_all() == 0


def test_an_abstract_model_has_no_rows() -> None:
    """A class without a table is told so when it is queried."""

    class Base(IntegerPKMixin, ActiveRecord):
        __connection__ = "default"

    for ask in (Base.find_all, lambda: Base.find(1), lambda: Base.find_by(id=1), lambda: Base().save()):
        with pytest.raises(ModelDefinitionError, match="Base has no __table_name__"):
            ask()

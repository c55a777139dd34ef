from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterable
from typing import ClassVar

import pytest

from bench.databases import Trio
from crosstie.orm import ActiveRecord, ConnectionManager
from crosstie.orm.errors import InvalidQuery, LazyLoadWarning, StrictLoadingViolation
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.relation import BelongsTo, HasMany
from crosstie.orm.state import mark_loaded
from crosstie.orm.statement_log import logged_statements
from crosstie.orm.strictness import Strictness
from orm.blog import Post, User, create_blog, seed_blog


@pytest.fixture
def blog(configured_trio: Trio) -> Trio:
    """Users in one database, posts and comments in another."""
    create_blog()
    seed_blog(users=6, posts=1, comments=1)
    return configured_trio


def test_a_strict_query_refuses_lazy_loads(blog: Trio) -> None:
    """The error names model and relation, no query is sent, and what was loaded with the rows may be used."""
    users = User.find_all().with_("posts").with_count("posts").strict().order_by("id").all()
    with logged_statements() as log:
        assert [len(user.posts()) for user in users] == [1, 1, 1, 1, 1, 0]
        assert users[0].posts()[0].user() is users[0]
        assert users[0].posts.count() == 1
        with pytest.raises(StrictLoadingViolation, match=r"User\.profile was loaded lazily.*with_\('profile'\)"):
            users[0].profile()
        with pytest.raises(StrictLoadingViolation, match=r"Post\.comments"):
            users[0].posts()[0].comments()
        with pytest.raises(StrictLoadingViolation, match=r"Post\.comments"):
            users[0].posts()[0].comments.count()
    assert len(log) == 0
    assert users[0].profile.query().count() == 1
    assert User.find(1).profile() is not None


def test_strictness_stays_with_a_refreshed_record_and_not_with_copies(blog: Trio) -> None:
    """A copy or a pickled record was loaded by no query."""
    user = User.find_all().strict().where(id=1).one()
    with pytest.raises(StrictLoadingViolation):
        user.refresh().posts()
    assert len(pickle.loads(pickle.dumps(user)).posts()) == 1  # noqa: S301
    user.posts.reset()
    with pytest.raises(StrictLoadingViolation):
        user.posts()


class Parent(IntegerPKMixin, ActiveRecord):
    __table_name__ = "parents"
    __connection__ = "default"
    __strict_loading__: ClassVar[Strictness | None] = "raise"

    children: ClassVar[HasMany[Child]] = HasMany(foreign_key="parent_id")


class Child(IntegerPKMixin, ActiveRecord):
    __table_name__ = "children"
    __connection__ = "secondary"
    __strict_loading__ = "warn"

    parent_id: int

    parent: ClassVar[BelongsTo[Parent]] = BelongsTo(foreign_key="parent_id")


def test_a_strict_model_is_strict_however_its_records_were_found(configured_trio: Trio) -> None:
    """`__strict_loading__` raises or warns; a query may say otherwise for its own records."""
    Parent.create_table()
    Child.create_table()
    parent = Parent().save()
    assert parent.id is not None
    child = Child(parent_id=parent.id).save()
    for strict in (parent, Parent.find(1), Parent.find_all().one(), Parent.find_by(id=1)):
        assert strict is not None
        with pytest.raises(StrictLoadingViolation, match=r"Parent\.children"):
            strict.children()
    assert Parent.find_all().strict("off").one().children() == [child]
    assert Parent.find_all().with_("children").one().children() == [child]
    with pytest.warns(LazyLoadWarning, match=r"Child\.parent was loaded lazily"):
        assert child.parent() == parent
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        child.parent()  # loaded now
    with pytest.raises(StrictLoadingViolation):
        Child.find_all().strict("raise").one().parent()
    with pytest.warns(LazyLoadWarning):
        Parent.find_all().strict("warn").one().children()
    assert Child(parent_id=1).parent.is_loaded is False


def test_a_word_that_is_no_strictness_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a query at once; in a model when it would matter."""
    with pytest.raises(InvalidQuery, match="expected 'raise', 'warn' or 'off', and found 'error'"):
        User.find_all().strict("error")  # type: ignore[arg-type]
    monkeypatch.setattr(Parent, "__strict_loading__", "loud")
    parent = Parent(id=1)
    mark_loaded(parent, ())
    with pytest.raises(InvalidQuery, match=r"Parent\.__strict_loading__"):
        parent.children()


def read_comments(users: Iterable[User]) -> None:
    """Ask for the comments of every post, as a page that lists them would."""
    for user in users:
        for post in user.posts():
            post.comments()


def test_one_query_for_each_record_is_warned_of_once(blog: Trio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the configuration gives a number: with that many lazy loads of one relation for one query's records."""
    users = User.find_all().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sum(len(user.posts()) for user in users) == 5  # no number is given
    monkeypatch.setenv("CROSSTIE_RELATIONS__LAZY_LOADS", "3")
    ConnectionManager.configure(blog.configuration)
    with pytest.warns(LazyLoadWarning, match=r"User\.posts was loaded lazily for 3 records.*with_\('posts'\)") as found:
        read_comments(User.find_all())  # of one post for each user: the posts are of different queries
    assert len(found) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_comments(User.find_all().with_("posts.comments"))
        for user in User.find_all().strict("off"):
            user.posts()
        for number in range(1, 6):
            User.find(number).posts()
    with pytest.warns(LazyLoadWarning, match=r"Post\.comments was loaded lazily for 3 records"):
        read_comments(User.find_all().with_("posts"))


def test_records_of_a_query_that_nobody_watches_carry_nothing(blog: Trio) -> None:
    """What is not asked for costs no memory."""
    user, post = User.find_all().all()[0], Post.find_all().all()[0]
    for record in (user, post):
        with pytest.raises(AttributeError):
            object.__getattribute__(record, "_related")

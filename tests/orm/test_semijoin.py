from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest
import sqlalchemy as sa

from bench.databases import Pair, Trio
from crosstie.orm import ActiveRecord, ConnectionManager
from crosstie.orm.condition import Condition
from crosstie.orm.database import Database
from crosstie.orm.errors import InvalidQuery
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.relation import BelongsTo, HasMany
from crosstie.orm.statement_log import logged_statements
from orm.blog import Comment, Post, User, create_blog, seed_blog
from orm.club import Event, Membership, Person, Tag, Team, create_club, seed_club


@pytest.fixture
def blog(configured: Pair) -> Pair:
    """Two databases: three users in the first; two posts for each but the last in the second; a post of nobody's."""
    create_blog()
    seed_blog()
    Post(user_id=None, title="nobody's").save()
    Post(user_id=99, title="orphan").save()
    return configured


@pytest.fixture
def club(configured_trio: Trio) -> Trio:
    """Three databases: people and events, memberships and taggings, teams and tags."""
    create_club()
    seed_club()
    return configured_trio


def test_rows_that_have_related_rows_in_another_database(blog: Pair) -> None:
    """The other database is asked for its keys first: two plain statements, NULL and dangling keys among none."""
    with logged_statements() as log:
        found = User.find_all().where_has("posts").order_by("id").pluck("username")
    assert found == ["user1", "user2"]
    assert log.by_database == {"secondary": 1, "default": 1}
    assert User.find_all().where_missing("posts").pluck("username") == ["user3"]
    assert User.find_all().where_has("posts", lambda posts: posts.where(title="post2.1")).pluck("id") == [2]
    missing = User.find_all().where_missing("posts", lambda posts: posts.where(title="post2.1"))
    assert sorted(missing.pluck("id")) == [1, 3]
    assert User.find_all().where_has("posts", lambda posts: posts.where(title="none")).count() == 0
    assert User.find_all().where_missing("posts", lambda posts: posts.where(title="none")).count() == 3
    assert User.find_all().where_has("posts").where(id=[2, 3]).pluck("id") == [2]


def test_children_with_and_without_a_parent(blog: Pair) -> None:
    """A NULL reference and one to a row that does not exist both lead nowhere."""
    assert Post.find_all().where_has("user").count() == 4
    assert sorted(Post.find_all().where_missing("user").pluck("title")) == ["nobody's", "orphan"]
    older = Post.find_all().where_has("user", lambda users: users.where(User.c.age > 21))
    assert older.order_by("id").pluck("title") == ["post2.1", "post2.2"]
    assert Post.find_all().where_missing("user", lambda users: users.where(User.c.age > 21)).count() == 4


def test_within_one_database_it_is_a_subquery(blog: Pair) -> None:
    """One statement, which writes may use too."""
    Comment.find_all().where(post_id=2).delete_all()
    with logged_statements() as log:
        assert sorted(Post.find_all().where_has("comments").pluck("id")) == [1, 3, 4]
        assert Post.find_all().where_missing("comments").count() == 3
    assert log.by_database == {"secondary": 2}
    with logged_statements() as log:
        assert Post.find_all().where_missing("comments").update_all(likes=7) == 3
        assert Comment.find_all().where_has("post", lambda posts: posts.where(id=1)).delete_all() == 2
    assert log.by_database == {"secondary": 2}
    assert sorted(Post.find_all().where(likes=7).pluck("title")) == ["nobody's", "orphan", "post1.2"]


def test_paths_and_nested_conditions(blog: Pair) -> None:
    """`posts.comments` is asked over both relations; a modifier may itself ask for related rows."""
    Comment.find(1).update(body="first")
    path = User.find_all().where_has("posts.comments", lambda comments: comments.where(body="first"))
    assert path.pluck("id") == [1]
    nested = User.find_all().where_has("posts", lambda posts: posts.where_missing("comments").where(Post.c.id > 0))
    assert nested.count() == 0
    back = Post.find_all().where_has(
        "comments", lambda comments: comments.where_has("post", lambda post: post.where(id=2))
    )
    assert back.pluck("id") == [2]  # the innermost posts are not the outermost ones
    assert User.find_all().where_missing("posts.comments").pluck("id") == [3]
    assert Comment.find_all().where_has("post.user", lambda users: users.where(id=2)).count() == 4


def test_updates_by_a_condition_on_another_database(blog: Pair) -> None:
    """The keys are read from the one, the rows written in the other."""
    with logged_statements() as log:
        assert User.find_all().where_missing("posts").update_all(age=1) == 1
    assert log.by_database == {"secondary": 1, "default": 1}
    assert User.find(3).age == 1
    assert Post.find_all().where_missing("user").delete_all() == 2
    assert Post.find_all().count() == 4


class Meeting(Condition):
    """Met by every row; two threads that send it wait for each other while they hold the connection it is sent on."""

    is_given = True

    def __init__(self, barrier: threading.Barrier) -> None:
        self._barrier = barrier

    def clause(self, database: Database) -> sa.ColumnElement[bool]:
        """No condition at all."""
        self._barrier.wait(timeout=60)
        return sa.true()


def one_connection_each(pair: Pair) -> None:
    """Pools that give a second connection to nobody."""
    narrow = {"pool_size": 1, "max_overflow": 0, "pool_timeout_s": 30.0}
    ConnectionManager.configure({name: {**one.config, **narrow} for name, one in pair.by_name.items()})


def test_no_connection_is_held_while_another_database_is_asked_for_keys(blog: Pair) -> None:
    """A path that leads to the other database and back needs one connection of each at a time, whatever is asked."""
    one_connection_each(blog)
    back = User.find_all().where_has("posts.comments.author", lambda users: users.where_has("profile"))
    assert sorted(back.pluck("id")) == [1, 2]
    assert back.count() == len(back.all()) == back.paginate(1).total == 2
    assert back.exists()
    assert back.sum("age") == 43
    assert back.group_by("age").count() == {21: 1, 22: 1}
    assert back.explain()
    assert "users" in back.to_sql()
    assert [len(batch) for batch in back.in_batches(1)] == [1, 1]
    counted = User.find_all().with_count(posts=lambda posts: posts.where_has("user")).order_by("id").all()
    assert [user.posts.count() for user in counted] == [2, 2, 0]
    assert User.find_all().where_missing("posts.user").pluck("id") == [3]
    assert back.update_all(age=50) == 2
    assert back.delete_all() == 2


def test_two_threads_that_ask_in_opposite_directions_do_not_wait_for_each_other(blog: Pair) -> None:
    """Each reads the other's database while it holds no connection of its own, though no pool has a second."""
    one_connection_each(blog)
    meeting = Meeting(threading.Barrier(2))
    users = User.find_all().where_has("posts", lambda posts: posts.meeting(meeting))
    posts = Post.find_all().where_has("user", lambda owners: owners.meeting(meeting))
    with ThreadPoolExecutor(2) as threads:
        found = [threads.submit(query.count) for query in (users, posts)]
    assert [one.result() for one in found] == [2, 4]


def test_batches_read_the_keys_of_another_database_once(blog: Pair) -> None:
    """When the first batch is asked for; and so does a query that was resolved by hand."""
    rows = Post.find_all().where_has("user", lambda users: users.where_has("posts"))
    with logged_statements() as log:
        batches = rows.in_batches(1)
        assert len(log) == 0
        assert [[post.id for post in batch] for batch in batches] == [[1], [2], [3], [4]]
    assert log.by_database == {"default": 1, "secondary": 1 + 5}
    with logged_statements() as log:
        assert [post.id for post in rows.find_each(3)] == [1, 2, 3, 4]
    assert log.by_database == {"default": 1, "secondary": 1 + 2}
    with logged_statements() as log:
        resolved = rows.resolved()
        assert resolved.count() == len(resolved.all()) == 4
    assert log.by_database == {"default": 1, "secondary": 1 + 2}


class Worker(IntegerPKMixin, ActiveRecord):
    __table_name__ = "workers"
    __connection__ = "default"

    id: int | None = None
    boss_id: int | None = None
    name: str

    boss: ClassVar[BelongsTo[Worker]] = BelongsTo(foreign_key="boss_id")
    staff: ClassVar[HasMany[Worker]] = HasMany(foreign_key="boss_id")
    staff_of_staff: ClassVar[HasMany[Worker]] = HasMany(through="staff", source="staff")


def test_a_table_that_refers_to_itself(configured: Pair) -> None:
    """The subquery's rows are not mistaken for the outer ones, in reads and in writes."""
    Worker.create_table()
    for name, boss_id in (("ann", None), ("bob", 1), ("cid", 2), ("dan", 2)):
        Worker(name=name, boss_id=boss_id).save()
    assert sorted(Worker.find_all().where_has("staff").pluck("name")) == ["ann", "bob"]
    assert sorted(Worker.find_all().where_missing("staff").pluck("name")) == ["cid", "dan"]
    assert Worker.find_all().where_has("staff", lambda staff: staff.where(name="cid")).pluck("name") == ["bob"]
    assert Worker.find_all().where_missing("boss").pluck("name") == ["ann"]
    assert [one.name for one in Worker.find(1).staff_of_staff.query().order_by("name")] == ["cid", "dan"]
    assert Worker.find_all().where_has("staff_of_staff").pluck("name") == ["ann"]
    assert Worker.find_all().where_missing("staff").delete_all() == 2
    assert Worker.find_all().where_has("staff").update_all(name="boss") == 1


def test_chains_over_three_databases(club: Trio) -> None:
    """One query for each table on the way; a membership of no team, or of one that does not exist, leads nowhere."""
    with logged_statements() as log:
        assert Person.find_all().where_has("teams").order_by("id").pluck("name") == ["ann", "bob"]
    assert log.by_database == {"tertiary": 1, "secondary": 1, "default": 1}
    assert Person.find_all().where_missing("teams").order_by("id").pluck("name") == ["cid", "dan"]
    assert Person.find_all().where_has("teams", lambda teams: teams.where(rank=1)).pluck("name") == ["ann"]
    assert Event.find_all().where_has("tags", lambda tags: tags.where(name="red")).pluck("id") == [1]
    assert Event.find_all().where_missing("tags").pluck("id") == [3]
    assert Tag.find_all().where_has("events").count() == 3
    assert Membership.find_all().where_missing("team").count() == 2


def test_counts_are_one_query_for_each_relation_and_database(club: Trio) -> None:
    """Related rows are counted, each once; the records tell the number without asking."""
    with logged_statements() as log:
        people = Person.find_all().with_count("memberships", "teams", "badges", "tags").order_by("id").all()
    assert log.by_database == {"default": 2, "secondary": 4, "tertiary": 4}
    with logged_statements() as log:
        counts = [(one.memberships.count(), one.teams.count(), one.badges.count(), one.tags.count()) for one in people]
    assert len(log) == 0
    assert counts == [(4, 3, 3, 3), (2, 1, 1, 0), (1, 0, 0, 0), (0, 0, 0, 0)]
    narrowed = Person.find_all().with_count(teams=lambda teams: teams.where(Team.c.rank > 1)).order_by("id").all()
    assert [one.teams.count() for one in narrowed] == [2, 1, 0, 0]


def test_a_count_is_what_was_counted_or_loaded_or_else_a_query(club: Trio) -> None:
    """Forgotten with the relation; none for a record without a row."""
    ann = Person.find(1)
    with logged_statements() as log:
        assert ann.memberships.count() == 4
    assert log.by_database == {"secondary": 1}
    ann.memberships()
    with logged_statements() as log:
        assert ann.memberships.count() == 4
        assert Person(name="new").memberships.count() == 0
        assert Person(name="new").teams.count() == 0
    assert len(log) == 0
    counted = Person.find_all().with_count("memberships").where(id=1).one()
    Membership(person_id=1, team_id=1).save()
    assert counted.memberships.count() == 4
    counted.memberships.reset()
    assert counted.memberships.count() == 5


def test_what_has_no_number_is_not_counted() -> None:
    """A relation to one record is there or not; names are checked when they are given."""
    with pytest.raises(InvalidQuery, match="leads to one record at most"):
        Post.find_all().with_count("user")
    with pytest.raises(InvalidQuery, match="no relation 'pots'"):
        User.find_all().with_count("pots")
    with pytest.raises(InvalidQuery, match="no relation 'pots'"):
        User.find_all().where_has("pots")
    with pytest.raises(InvalidQuery, match="no relation 'coments'"):
        User.find_all().where_missing("posts.coments")

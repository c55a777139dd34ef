from __future__ import annotations

import threading
from typing import Any, ClassVar

import pytest

from bench.databases import Pair
from bench.guard import configured_databases
from cache.blog import asked, cached_name, misses, person
from crosstie.orm import ActiveRecord, ConnectionManager, Tenants, connected_to, transaction
from crosstie.orm.cache import Cached, counters, request_cache
from crosstie.orm.errors import StrictLoadingViolation
from crosstie.orm.field import IntegerPKMixin, SoftDeleteMixin
from crosstie.orm.relation import BelongsTo
from crosstie.orm.statement_log import logged_statements
from crosstie.outbox import create_tables, sync_routes
from crosstie.sagas import saga


def name_of(found: Any) -> Any:
    """Its name, where something was found."""
    return None if found is None else found.name


def test_a_parent_is_asked_for_once(blog: Any) -> None:
    """Whoever looks next finds it in Redis, as a loaded record of its own."""
    author = person(blog)
    assert [asked(blog, author) for _ in range(3)] == [1, 0, 0]
    first, second = (blog.Post.find_by(author_id=author.id).author() for _ in range(2))
    assert first == second == author
    assert first is not second
    assert not first.is_new
    assert first.changes == {}


def test_a_key_that_is_not_the_primary_key_finds_too(blog: Any) -> None:
    """Under names of its own."""
    person(blog)
    first, second = (blog.Review.find_by(handle="ann") for _ in range(2))
    with logged_statements() as log:
        assert first.author() == second.author()
    assert log.by_database == {"default": 1}


def test_an_eager_load_asks_for_the_missing_keys_in_one_query(blog: Any) -> None:
    """And for none where all are known."""
    people = [person(blog, handle) for handle in "abcdef"]
    for known in people[:2]:
        assert asked(blog, known) == 1
    before = misses()
    with logged_statements() as log:
        posts = blog.Post.find_all().with_("author").order_by("id").all()
    assert log.by_database == {"secondary": 1, "default": 1}
    assert misses() - before == 4
    assert [post.author() for post in posts] == people
    with logged_statements() as log:
        posts = blog.Post.find_all().with_("author").order_by("id").all()
    assert log.by_database == {"secondary": 1}
    assert [post.author() for post in posts] == people


def test_posts_of_one_author_share_the_record_of_an_eager_load(blog: Any) -> None:
    """As they do when the database is asked."""
    author = person(blog)
    blog.Post(author_id=author.id).save()
    for _ in range(2):
        one, other = blog.Post.find_all().with_("author").all()
        assert one.author() is other.author()


def test_a_modified_load_asks_the_database(blog: Any) -> None:
    """The cache knows rows by key, and no conditions."""
    author = person(blog, name="Ann")
    assert cached_name(blog, author) == "Ann"
    for _ in range(2):
        with logged_statements() as log:
            (post,) = blog.Post.find_all().with_(author=lambda rows: rows.where(name="Bob")).all()
        assert log.by_database == {"secondary": 1, "default": 1}
        assert post.author() is None


def test_relations_below_a_cached_parent_are_loaded(blog: Any) -> None:
    """From found parents as from loaded ones."""
    city = blog.City(name="Rome").save()
    person(blog, city_id=city.id)
    for _ in range(2):
        (post,) = blog.Post.find_all().with_("author.city").all()
        with logged_statements() as log:
            assert post.author().city().name == "Rome"
        assert len(log) == 0


def test_a_strict_query_is_strict_about_the_parents_found(blog: Any) -> None:
    """They belong to the load, wherever they come from."""
    city = blog.City().save()
    person(blog, city_id=city.id)
    for _ in range(2):
        (post,) = blog.Post.find_all().strict().with_("author").all()
        with pytest.raises(StrictLoadingViolation, match=r"Author\.city"):
            post.author().city()


def test_a_missing_parent_is_not_remembered(blog: Any) -> None:
    """An insert tells nobody, so the database is asked each time."""
    post = blog.Post(author_id=77).save()
    assert [blog.Post.find(post.id).author() for _ in range(2)] == [None, None]
    blog.Author(id=77, handle="late").save()
    assert blog.Post.find(post.id).author().handle == "late"


def test_null_asks_nobody(blog: Any) -> None:
    """Neither the cache nor the database."""
    post = blog.Post(author_id=None).save()
    before = counters()
    with logged_statements() as log:
        assert blog.Post.find(post.id).author() is None
    assert log.by_database == {"secondary": 1}
    assert counters() == before


def test_a_transaction_of_the_parents_database_asks_that_alone(blog: Any) -> None:
    """It sees its own writes, and puts nothing in that could be rolled back."""
    author = person(blog, name="Ann")
    assert cached_name(blog, author) == "Ann"
    with pytest.raises(ZeroDivisionError), transaction("default"):
        author.update(name="Bob")
        assert [cached_name(blog, author), cached_name(blog, author)] == ["Bob", "Bob"]
        raise ZeroDivisionError
    assert cached_name(blog, author) == "Ann"


def test_a_transaction_of_another_database_finds_parents_in_the_cache(blog: Any) -> None:
    """What it may see of the parents is no affair of its own."""
    author = person(blog)
    with transaction("secondary"):
        assert [asked(blog, author) for _ in range(2)] == [1, 0]


def test_a_saga_finds_parents_and_puts_none_in(blog: Any) -> None:
    """Its reads are those of an open transaction, which may have begun before a change."""
    author = person(blog, name="Ann")
    with saga("look"):
        assert asked(blog, author) == 1
    assert asked(blog, author) == 1
    with saga("look again"):
        assert asked(blog, author) == 0
        blog.Author.find(author.id)  # opens the transaction there
        assert asked(blog, author) == 1


def test_a_record_from_the_cache_is_written_correctly_in_a_saga(blog: Any) -> None:
    """Undo images come from the server, whatever the record remembers."""
    author = person(blog, name="Ann")
    assert cached_name(blog, author) == "Ann"
    with pytest.raises(ZeroDivisionError), saga("rename"):
        blog.Post.find_by(author_id=author.id).author().update(name="Bob")
        assert cached_name(blog, author) == "Bob"
        raise ZeroDivisionError
    assert cached_name(blog, author) == "Ann"


def test_a_request_keeps_what_it_found(blog: Any, monkeypatch: pytest.MonkeyPatch, crash_pair: Pair) -> None:
    """Without any Redis, until its end, as records of their own."""
    monkeypatch.delenv("CROSSTIE_CACHE__REDIS_URL")
    ConnectionManager.configure(crash_pair.configuration)
    author = person(blog)
    assert [asked(blog, author) for _ in range(2)] == [1, 1]
    with request_cache():
        assert [asked(blog, author) for _ in range(2)] == [1, 0]
        with request_cache():
            assert asked(blog, author) == 0
        with logged_statements() as log:
            posts = blog.Post.find_all().with_("author").all()
        assert log.by_database == {"secondary": 1}
        assert posts[0].author() is not blog.Post.find_by(author_id=author.id).author()
    assert asked(blog, author) == 1


def test_a_request_sees_its_own_writes(blog: Any, monkeypatch: pytest.MonkeyPatch, crash_pair: Pair) -> None:
    """A write of any kind, in a transaction or not, voids what the request has of that database."""
    monkeypatch.delenv("CROSSTIE_CACHE__REDIS_URL")
    ConnectionManager.configure(crash_pair.configuration)
    author = person(blog, name="Ann")
    with request_cache():
        assert cached_name(blog, author) == "Ann"
        author.update(name="Bob")
        assert cached_name(blog, author) == "Bob"
        with transaction("default"):
            blog.Author.find_all().where(name="Bob").update_all(name="Cid")
        assert cached_name(blog, author) == "Cid"
    assert crash_pair.first.scalar("SELECT count(*) FROM crosstie_outbox") == 0


def test_a_request_and_redis_together(blog: Any) -> None:
    """The nearer one answers first, and a write reaches both."""
    author = person(blog, name="Ann")
    assert cached_name(blog, author) == "Ann"
    with request_cache():
        before = counters()
        assert [cached_name(blog, author) for _ in range(3)] == ["Ann"] * 3
        assert (counters().hits - before.hits, counters().request_hits - before.request_hits) == (3, 2)
        author.update(name="Bob")
        assert [cached_name(blog, author) for _ in range(2)] == ["Bob"] * 2
    assert cached_name(blog, author) == "Bob"


def test_a_thread_of_a_request_has_no_request_cache(
    blog: Any, monkeypatch: pytest.MonkeyPatch, crash_pair: Pair
) -> None:
    """It would not know of its parent's writes."""
    monkeypatch.delenv("CROSSTIE_CACHE__REDIS_URL")
    ConnectionManager.configure(crash_pair.configuration)
    author = person(blog)
    found: list[int] = []
    with request_cache():
        assert [asked(blog, author) for _ in range(2)] == [1, 0]
        thread = threading.Thread(target=lambda: found.append(asked(blog, author)))
        thread.start()
        thread.join()
    assert found == [1]


def test_hidden_parents_are_not_found(crash_pair: Pair, prefix: str) -> None:
    """A soft delete is a change like any other, and so is a restoration."""

    class Owner(IntegerPKMixin, SoftDeleteMixin, ActiveRecord):
        __table_name__ = "owners"
        __connection__ = "default"

        id: int | None = None

    class Pet(IntegerPKMixin, ActiveRecord):
        __table_name__ = "pets"
        __connection__ = "secondary"

        id: int | None = None
        owner_id: int

        owner: ClassVar[BelongsTo[Owner]] = BelongsTo(foreign_key="owner_id", cache=True)

    with configured_databases(crash_pair):
        for model in (Owner, Pet):
            model.create_table()
        sync_routes()
        owner = Owner().save()
        pet = Pet(owner_id=owner.id or 0).save()
        assert [Pet.find(pet.id).owner() for _ in range(2)] == [owner, owner]
        owner.delete()
        assert [Pet.find(pet.id).owner() for _ in range(2)] == [None, None]
        owner.restore()
        assert Pet.find(pet.id).owner() is not None


def test_a_read_only_parent_is_not_put_into_redis(crash_pair: Pair, prefix: str, keys: Any) -> None:
    """Whoever writes it does so under another name, and would not tell of this one."""

    class Owner(IntegerPKMixin, ActiveRecord):
        __table_name__ = "owners"
        __connection__ = "copy"

        id: int | None = None

    class Pet(IntegerPKMixin, ActiveRecord):
        __table_name__ = "pets"
        __connection__ = "secondary"

        id: int | None = None
        owner_id: int

        owner: ClassVar[BelongsTo[Owner]] = BelongsTo(foreign_key="owner_id", cache=True)

    copy = {**crash_pair.first.config, "read_only": True}
    ConnectionManager.configure({"copy": copy, "secondary": crash_pair.second.config})
    crash_pair.first.execute("CREATE TABLE owners (id INTEGER PRIMARY KEY)")
    crash_pair.first.execute("INSERT INTO owners (id) VALUES (1)")
    Pet.create_table()
    Pet(owner_id=1).save()
    for _ in range(2):
        with logged_statements() as log:
            assert Pet.find(1).owner() == Owner.find(1)
        assert log.by_database == {"secondary": 1, "copy": 2}
    assert keys("row") == []
    with request_cache():
        assert Pet.find(1).owner() == Owner.find(1)
        with logged_statements() as log:
            assert Pet.find(1).owner() is not None
        assert log.by_database == {"secondary": 1}


def test_a_tenants_parents_are_its_own(crash_pair: Pair, prefix: str) -> None:
    """The same table and key in two databases are two entries, and a found record belongs to its tenant."""
    ConnectionManager.configure({"tenant_a": crash_pair.first.config, "tenant_b": crash_pair.second.config})
    tenants = Tenants("tenant_{tenant}")

    class Owner(IntegerPKMixin, ActiveRecord):
        __table_name__ = "owners"
        __connection__ = tenants

        id: int | None = None
        name: str

    class Pet(IntegerPKMixin, ActiveRecord):
        __table_name__ = "pets"
        __connection__ = tenants

        id: int | None = None
        owner_id: int

        owner: ClassVar[BelongsTo[Owner]] = BelongsTo(foreign_key="owner_id", cache=Cached(ttl_s=60))

    for tenant in "ab":
        create_tables(ConnectionManager.get(f"tenant_{tenant}"))
    assert sync_routes().added == {
        f"tenant_{tenant}": (("crosstie.cache", "crosstie.cache.changed:owners"),) for tenant in "ab"
    }
    for tenant in "ab":
        with connected_to(tenant=tenant):
            Owner.create_table()
            Pet.create_table()
            owner = Owner(name=tenant).save()
            Pet(owner_id=owner.id or 0).save()
    for expected in (1, 0):
        for tenant in "ab":
            with connected_to(tenant=tenant):
                pet = Pet.find(1)
                with logged_statements() as log:
                    assert name_of(pet.owner()) == tenant
                assert len(log) == expected
    with connected_to(tenant="a"):
        Owner.find(1).update(name="changed")
    for tenant, name in (("a", "changed"), ("b", "b")):
        with connected_to(tenant=tenant):
            assert name_of(Pet.find(1).owner()) == name


def test_what_is_put_in_comes_from_the_primary(crash_pair: Pair, prefix: str) -> None:
    """A replica may lag behind by more than the cache promises."""
    ConnectionManager.configure({"primary": crash_pair.first.config, "replica": crash_pair.second.config})

    class Owner(IntegerPKMixin, ActiveRecord):
        __table_name__ = "owners"
        __connection__ = "primary"
        __read_connection__ = "replica"

        id: int | None = None
        name: str

    class Pet(IntegerPKMixin, ActiveRecord):
        __table_name__ = "pets"
        __connection__ = "replica"

        id: int | None = None
        owner_id: int

        owner: ClassVar[BelongsTo[Owner]] = BelongsTo(foreign_key="owner_id", cache=True)

    Owner.create_table()
    Pet.create_table()
    for database, name in ((crash_pair.first, "new"), (crash_pair.second, "lagging")):
        if name == "lagging":
            database.execute("CREATE TABLE owners (id INTEGER PRIMARY KEY, name VARCHAR(255) NOT NULL)")
        database.execute("INSERT INTO owners (id, name) VALUES (1, %s), (2, %s)", (name, name))
    crash_pair.second.execute("INSERT INTO pets (id, owner_id) VALUES (1, 1), (2, 2)")
    assert Owner.find(1).name == "lagging"
    assert [name_of(Pet.find(1).owner()) for _ in range(2)] == ["new", "new"]
    assert [name_of(pet.owner()) for pet in Pet.find_all().with_("owner").order_by("id").all()] == ["new", "new"]

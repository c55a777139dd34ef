from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import pytest
import sqlalchemy as sa

from bench.databases import Pair
from bench.faults import crash_at, crash_env
from bench.guard import configured_databases
from bench.processes import Spawner
from bench.waiting import eventually
from cache.blog import cached_name, carry, events, person
from crosstie.orm import ActiveRecord, ConnectionManager, transaction
from crosstie.orm.cache import changes, forget
from crosstie.orm.denormalized import Denormalized
from crosstie.orm.errors import InvalidQuery, ModelDefinitionError
from crosstie.orm.faults import FaultInjected
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.registry import registry
from crosstie.orm.relation import BelongsTo
from crosstie.outbox import pending, sync_routes
from crosstie.outbox.errors import CacheUnrouted
from crosstie.sagas import saga, sweep_sagas

Write = Callable[[Any, Any], object]


def _in_saga_branch(blog: Any, author: Any) -> None:
    with saga("two", home="secondary"):
        author.update(name="Bob")
        blog.Post(author_id=None).save()


def _in_saga_home(blog: Any, author: Any) -> None:
    with saga("two", home="default"):
        author.update(name="Bob")
        blog.Post(author_id=None).save()


def _upsert_in_saga(blog: Any, author: Any) -> None:
    with saga("two"):
        blog.Author(handle=author.handle, name="Bob").upsert(on="handle")


def _in_savepoint(blog: Any, author: Any) -> None:
    with transaction("default"), transaction("default"):
        author.update(name="Bob")


def _after_savepoint(blog: Any, author: Any) -> None:
    with transaction("default"):
        with pytest.raises(ZeroDivisionError), transaction("default"):
            blog.Author.find(author.id).update(name="Cid")
            raise ZeroDivisionError
        author.update(name="Bob")


def _bulk_update(blog: Any, author: Any) -> None:
    author.name = "Bob"
    blog.Author.bulk_update([author])


def _by_cascade(blog: Any, author: Any) -> None:
    blog.City.find(author.city_id).delete()
    carry()


WRITES: dict[str, Write] = {
    "update": lambda blog, author: author.update(name="Bob"),
    "increment": lambda blog, author: author.increment(posts_count=2),
    "delete": lambda blog, author: author.delete(),
    "update_all": lambda blog, author: blog.Author.find_all().where(name="Ann").update_all(name="Bob"),
    "delete_all": lambda blog, author: blog.Author.find_all().delete_all(),
    "upsert": lambda blog, author: blog.Author(handle=author.handle, name="Bob").upsert(on="handle"),
    "bulk_update": _bulk_update,
    "in a saga's branch": _in_saga_branch,
    "in a saga's home": _in_saga_home,
    "upsert in a saga": _upsert_in_saga,
    "in a savepoint": _in_savepoint,
    "after a savepoint": _after_savepoint,
    "key changed": lambda blog, author: author.update(handle="eve"),
    "cascade": _by_cascade,
}


@pytest.fixture(params=WRITES)
def write(request: pytest.FixtureRequest) -> Write:
    """A way to change an author or delete it."""
    return WRITES[request.param]


def _found(blog: Any, author: Any) -> list[Any]:
    """What a post and a review find."""
    post, review = blog.Post.find_by(author_id=author.id), blog.Review.find_by(handle="ann")
    return [one and one.author() for one in (post, review)]


def _there(blog: Any, author: Any) -> list[Any]:
    """What they ought to find."""
    return [blog.Author.find_by(id=author.id), blog.Author.find_by(handle="ann")]


def _cached(blog: Any) -> Any:
    """An author that a post and a review have looked up."""
    city = blog.City().save()
    author = person(blog, name="Ann", city_id=city.id)
    assert _found(blog, author) == [author, author]
    return author


def test_every_write_is_seen_at_once(blog: Any, write: Write) -> None:
    """By the writer's own word, before any relay runs."""
    author = _cached(blog)
    before = _there(blog, author)
    write(blog, author)
    assert _there(blog, author) != before
    assert _found(blog, author) == _there(blog, author)


def test_every_write_is_seen_by_its_event(blog: Any, write: Write, crash_pair: Pair) -> None:
    """Where the writer dies before it can tell, the entry is as old as the event, and no older."""
    author = _cached(blog)
    before = _there(blog, author)
    with crash_at("cache.forgetting"):
        write(blog, author)
    if write is not _by_cascade:  # whose own relay may have carried the word already
        assert _found(blog, author) == before
    carry()
    assert events(crash_pair) == 0
    assert _found(blog, author) == _there(blog, author)


def test_what_runs_after_the_commit_sees_the_write(blog: Any) -> None:
    """A hook that was set before it, too."""
    author = _cached(blog)
    seen: list[str | None] = []
    with transaction("default") as tx:
        tx.after_commit(lambda: seen.append(cached_name(blog, author)))
        author.update(name="Bob")
    assert seen == ["Bob"]


def test_a_write_that_is_rolled_back_tells_nobody(blog: Any, crash_pair: Pair) -> None:
    """Nor one whose savepoint is."""
    author = _cached(blog)
    with pytest.raises(ZeroDivisionError), transaction("default"):
        author.update(name="Bob")
        raise ZeroDivisionError
    with transaction("default"):
        with pytest.raises(ZeroDivisionError), transaction("default"):
            author.update(name="Bob")
            raise ZeroDivisionError
        blog.City().save()
    assert events(crash_pair) == 0
    assert cached_name(blog, author) == "Ann"


def test_writes_that_change_no_cached_row_tell_nobody(blog: Any, crash_pair: Pair) -> None:
    """Inserts, models that nobody caches, and updates to what is there already."""
    author = _cached(blog)
    blog.Author(handle="new").save()
    blog.City().save().update(name="Rome")
    blog.Author.find_all().update_all(posts_count=0)
    author.save()
    assert events(crash_pair) == 0


def test_a_transaction_tells_once(blog: Any, crash_pair: Pair) -> None:
    """One event for each table, however many rows and writes."""
    for handle in "abc":
        person(blog, handle, name="Ann")
    with transaction("default"):
        blog.Author.find_all().update_all(name="Bob")
        blog.Author.find_by(handle="a").update(name="Cid")
    assert events(crash_pair) == 1


def test_a_change_of_very_many_rows_forgets_the_table(
    blog: Any, crash_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event names no keys then."""
    monkeypatch.setattr(changes, "NAMED_KEYS", 2)
    author = _cached(blog)
    blog.Author.bulk_create([blog.Author(handle=handle) for handle in "abc"])
    blog.Author.find_all().update_all(name="Bob")
    assert '"keys":null' in crash_pair.first.scalar("SELECT payload FROM crosstie_outbox")
    assert cached_name(blog, author) == "Bob"


def test_copies_in_a_cached_row_are_kept_right_there_too(crash_pair: Pair, prefix: str) -> None:
    """What aligns a copied column tells of it like any other write."""

    class City(IntegerPKMixin, ActiveRecord):
        __table_name__ = "cities"
        __connection__ = "default"

        id: int | None = None
        name: str

    class Person(IntegerPKMixin, ActiveRecord):
        __table_name__ = "people"
        __connection__ = "default"

        id: int | None = None
        city_id: int
        city_name: Annotated[str | None, Denormalized("city.name")] = None

        city: ClassVar[BelongsTo[City]] = BelongsTo(foreign_key="city_id")

    class Note(IntegerPKMixin, ActiveRecord):
        __table_name__ = "notes"
        __connection__ = "secondary"

        id: int | None = None
        person_id: int

        person: ClassVar[BelongsTo[Person]] = BelongsTo(foreign_key="person_id", cache=True)

    def found() -> str | None:
        person = Note.find(1).person()
        return None if person is None else person.city_name

    with configured_databases(crash_pair):
        for model in (City, Person, Note):
            model.create_table()
        sync_routes()
        city = City(name="Rome").save()
        Person(city_id=city.id or 0).save()
        Note(person_id=1).save()
        assert found() == "Rome"
        city.update(name="Roma")
        carry()
        assert found() == "Roma"


def _leave_branch_committed(blog: Any, author: Any) -> None:
    """A saga whose branch has changed the author, and whose process has gone before home decided."""
    with (
        crash_at("saga.branch-committed"),
        crash_at("recovery.before-decision"),
        pytest.raises(FaultInjected),
        saga("rename", home="secondary", expiry_s=60),
    ):
        author.update(name="Bob")
        blog.Post(author_id=None).save()


def test_an_undo_is_a_change_too(blog: Any, crash_pair: Pair) -> None:
    """Somebody has looked the author up between the branch's commit and its undo."""
    author = _cached(blog)
    _leave_branch_committed(blog, author)
    assert carry() == 1, "the branch's own word does not wait for the decision"
    assert cached_name(blog, author) == "Bob"
    crash_pair.first.execute("UPDATE crosstie_saga SET expires_at_ms = 0")
    assert sweep_sagas("default").aborted == 1
    assert cached_name(blog, author) == "Ann"
    assert carry() == 1


def test_a_redo_is_a_change_too(blog: Any) -> None:
    """Somebody has looked the author up between home's commit and the redo in the branch, whose own word was lost."""
    author = _cached(blog)
    with (
        crash_at("forward.home-committed"),
        pytest.raises(FaultInjected),
        saga("rename", recover="forward", home="secondary", expiry_s=-1),
    ):
        blog.Author(handle=author.handle, name="Bob").upsert(on="handle")
        blog.Post(author_id=None).save()
    assert cached_name(blog, author) == "Ann"
    assert carry() == 0
    assert sweep_sagas("secondary").settled == 1
    assert cached_name(blog, author) == "Bob"
    assert carry() == 1


def test_an_undo_whose_process_dies_is_told_by_its_event(blog: Any, crash_pair: Pair) -> None:
    """Written in the transaction that undoes."""
    author = _cached(blog)
    _leave_branch_committed(blog, author)
    carry()
    assert cached_name(blog, author) == "Bob"
    crash_pair.first.execute("UPDATE crosstie_saga SET expires_at_ms = 0")
    with crash_at("cache.forgetting"):
        sweep_sagas("default")
    assert cached_name(blog, author) == "Bob"
    carry()
    assert cached_name(blog, author) == "Ann"


def test_an_undo_by_a_process_that_knows_no_models_tells_too(blog: Any, crash_pair: Pair) -> None:
    """The stored subscription says which tables are cached."""
    author = _cached(blog)
    _leave_branch_committed(blog, author)
    carry()
    assert cached_name(blog, author) == "Bob"
    crash_pair.first.execute("UPDATE crosstie_saga SET expires_at_ms = 0")
    known = dict(registry._models)
    registry._models.clear()
    registry.generation += 1
    try:
        assert sweep_sagas("default").aborted == 1
        assert carry() == 1
    finally:
        registry._models.update(known)
        registry.generation += 1
    assert cached_name(blog, author) == "Ann"


def test_a_saga_that_fails_by_itself_leaves_no_entry(blog: Any) -> None:
    """The original process undoes its branch, and tells."""
    author = _cached(blog)
    with crash_at("saga.home-recorded"), pytest.raises(Exception, match="aborted"):
        _in_saga_branch(blog, author)
    assert cached_name(blog, author) == "Ann"
    carry()
    assert cached_name(blog, author) == "Ann"


def test_other_writes_are_told_by_hand(blog: Any, crash_pair: Pair) -> None:
    """Raw SQL is not seen; who writes it says so, in the same transaction."""
    author = _cached(blog)
    rename = sa.text("UPDATE authors SET name = :name")
    with transaction("default") as tx:
        tx.mark_written()
        tx.connection.execute(rename, {"name": "Bob"})
    assert cached_name(blog, author) == "Ann"
    with transaction("default") as tx:
        tx.connection.execute(rename, {"name": "Cid"})
        forget(blog.Author, "ann")
        forget(blog.Author, author.id)
    assert events(crash_pair) == 1
    assert cached_name(blog, author) == "Cid"
    crash_pair.first.execute("UPDATE authors SET name = 'Dan'")
    forget(blog.Author)
    assert cached_name(blog, author) == "Dan"
    with pytest.raises(InvalidQuery, match="City"):
        forget(blog.City)
    with pytest.raises(InvalidQuery, match=r"authors\.id"):
        forget(blog.Author, object())


def test_telling_by_hand_can_be_taken_back(blog: Any, crash_pair: Pair) -> None:
    """In a savepoint that rolls back it tells nobody, and leaves a transaction that commits."""
    author = _cached(blog)
    with transaction("default"), pytest.raises(ZeroDivisionError), transaction("default"):
        forget(blog.Author, author.id)
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), saga("forget"):
        forget(blog.Author)
        raise ZeroDivisionError
    assert events(crash_pair) == 0
    with saga("forget"):
        forget(blog.Author)
    assert events(crash_pair) == 1


def test_without_a_route_a_write_is_refused(blog: Any, crash_pair: Pair) -> None:
    """Nobody would tell the other processes; the entry would be stale until its time is up."""
    author = _cached(blog)
    crash_pair.first.execute("DELETE FROM crosstie_route")
    with pytest.raises(CacheUnrouted, match=r"crosstie init"):
        author.update(name="Bob")
    assert crash_pair.first.scalar("SELECT name FROM authors") == "Ann"
    sync_routes()
    blog.Author.find(author.id).update(name="Bob")


def test_without_the_outbox_a_write_is_refused(blog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer below cannot tell anybody."""
    author = _cached(blog)
    monkeypatch.setattr(changes, "_carriers", [])
    with pytest.raises(ModelDefinitionError, match=r"import crosstie\.outbox"):
        author.update(name="Bob")


@pytest.mark.parametrize("payload", ["", "[]", '{"table": "authors"}', '{"database": "d", "table": "t", "keys": [1]}'])
def test_a_word_that_nobody_can_read_holds_up_no_other(blog: Any, crash_pair: Pair, payload: str) -> None:
    """It is set aside, as any event that cannot be applied."""
    author = _cached(blog)
    with crash_at("cache.forgetting"):
        author.update(name="Bob")
    crash_pair.first.execute("UPDATE crosstie_outbox SET lane = 0, id = id + 100")
    crash_pair.first.execute(
        "INSERT INTO crosstie_outbox (id, route, lane, uid, {key}, operation, type, schema_version, payload, headers, "
        "created_at_ms) SELECT id - 1, route, lane, 'u', 'u', operation, type, schema_version, %s, headers, "
        "created_at_ms FROM crosstie_outbox".replace("{key}", "`key`" if crash_pair.first.kind == "mariadb" else "key"),
        (payload,),
    )
    carry()
    assert events(crash_pair) == 0
    assert crash_pair.first.scalar("SELECT count(*) FROM crosstie_parked") == 1
    assert cached_name(blog, author) == "Bob"


def test_the_cache_has_lanes_of_its_own(blog: Any, crash_pair: Pair) -> None:
    """A Redis that is down holds up no other event of the database, and is seen in the backlog."""
    author = _cached(blog)
    author.update(name="Bob")
    assert {one.route: one.depth for one in pending("default")}["crosstie.cache"] == 1
    assert crash_pair.first.scalar("SELECT count(*) FROM crosstie_lane WHERE route = 'crosstie.cache'") == 4


@pytest.fixture
def redis_environment(redis_url: str, prefix: str) -> dict[str, str]:
    """The cache's settings for a child process."""
    return {"CROSSTIE_CACHE__REDIS_URL": redis_url, "CROSSTIE_CACHE__PREFIX": prefix}


RELAY = """
    from cache.blog import carry
    carry()
"""


@pytest.mark.parametrize("point", ["relay.claimed", "relay.acknowledged", "relay.source-committed"])
def test_a_killed_relay_loses_no_word(
    blog: Any, crash_pair: Pair, redis_environment: dict[str, str], spawn: Spawner, point: str
) -> None:
    """Whoever comes next tells it again, which does no harm."""
    author = _cached(blog)
    with crash_at("cache.forgetting"):
        author.update(name="Bob")
    environment = crash_pair.environment | redis_environment | {"CROSSTIE_OUTBOX__LEASE_S": "0.2"}
    spawn.code(RELAY, environment=environment | crash_env(point)).wait_killed()
    eventually(lambda: carry() or events(crash_pair) == 0, describe="the dead owner's lease runs out")
    assert cached_name(blog, author) == "Bob"


WRITER = """
    from cache.blog import define
    define().Author.find_by(handle="ann").update(name="Bob")
"""


def test_a_killed_writers_word_is_carried_by_a_worker(
    blog: Any, crash_pair: Pair, redis_environment: dict[str, str], spawn: Spawner
) -> None:
    """A real one, that knows no models."""
    author = _cached(blog)
    environment = crash_pair.environment | redis_environment
    spawn.code(WRITER, environment=environment | crash_env("cache.forgetting")).wait_killed()
    assert cached_name(blog, author) == "Ann"
    spawn.worker(environment=environment)
    eventually(lambda: cached_name(blog, author) == "Bob", describe="the worker tells the cache")
    eventually(lambda: events(crash_pair) == 0, describe="the event is acknowledged")


def test_a_worker_without_redis_keeps_the_event(
    blog: Any, crash_pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its lane says what to configure, and waits."""
    author = _cached(blog)
    author.update(name="Bob")
    monkeypatch.delenv("CROSSTIE_CACHE__REDIS_URL")
    ConnectionManager.configure(crash_pair.configuration)
    assert carry() == 0
    assert "cache.redis_url" in caplog.text
    assert events(crash_pair) == 1

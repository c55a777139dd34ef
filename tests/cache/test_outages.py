"""A Redis that is down, deaf, or answers nonsense costs time, and nothing else."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from bench.databases import Pair
from bench.guard import configured_databases
from bench.processes import Spawner
from bench.proxy import Proxy
from cache.blog import asked, cached_name, carry, events, open_blog, person
from crosstie.orm.cache import counters
from crosstie.orm.cache.outage import breaker
from crosstie.orm.errors import ConfigurationError


@pytest.fixture
def proxy(redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Before the Redis of the configuration."""
    there = urlsplit(redis_url)
    with Proxy(there.hostname or "127.0.0.1", there.port or 6379) as made:
        here = there._replace(netloc=f"{there.netloc.rpartition('@')[0]}@127.0.0.1:{made.port}".lstrip("@"))
        monkeypatch.setenv("CROSSTIE_CACHE__REDIS_URL", here.geturl())
        monkeypatch.setenv("CROSSTIE_CACHE__PAUSE_S", "60")
        yield made


@pytest.fixture
def blog_behind(crash_pair: Pair, furnished: None, proxy: Proxy) -> Iterator[Any]:
    """The models, with the Redis behind the proxy."""
    with configured_databases(crash_pair):
        yield open_blog()


def after_the_pause() -> None:
    """Let the breaker's pause be over."""
    found = breaker()
    assert found is not None
    found.monotonic = lambda: time.monotonic() + 100


def retry_now(pair: Pair) -> None:
    """End the lanes' back-off."""
    pair.first.execute("UPDATE crosstie_lane SET ready_at_ms = 0")


@pytest.mark.parametrize("failure", ["cut", "deaf"])
def test_an_outage_costs_one_attempt_and_one_line(
    blog_behind: Any, proxy: Proxy, failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Then the databases are asked as if there were no cache, for a while."""
    author = person(blog_behind)
    assert asked(blog_behind, author) == 1
    assert asked(blog_behind, author) == 0
    getattr(proxy, failure)()
    before = counters()
    assert [asked(blog_behind, author) for _ in range(5)] == [1] * 5
    assert [post.author() for post in blog_behind.Post.find_all().with_("author").all()] == [author]
    author.update(name="Bob")
    assert cached_name(blog_behind, author) == "Bob"
    assert counters().errors - before.errors == 1
    assert [r.levelname for r in caplog.records if r.name == "crosstie.orm.cache.outage"] == ["WARNING"]


def test_after_an_outage_the_cache_answers_again(
    blog_behind: Any, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """And says so; a pause that was in vain is not told of again."""
    author = person(blog_behind)
    proxy.cut()
    assert asked(blog_behind, author) == 1
    after_the_pause()
    assert asked(blog_behind, author) == 1
    proxy.heal()
    found = breaker()
    assert found is not None
    found.monotonic = lambda: time.monotonic() + 1000
    assert [asked(blog_behind, author) for _ in range(2)] == [1, 0]
    told = [r.getMessage() for r in caplog.records if r.name == "crosstie.orm.cache.outage"]
    assert len(told) == 2
    assert "answers again" in told[1]


def test_a_change_during_an_outage_is_told_after_it(
    blog_behind: Any, proxy: Proxy, crash_pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """The event waits in its lane; until it has come, and no longer, the entry of before is found."""
    author = person(blog_behind, name="Ann")
    assert cached_name(blog_behind, author) == "Ann"
    proxy.cut()
    author.update(name="Bob")
    assert carry() == 0
    assert "crosstie.cache" in caplog.text
    assert events(crash_pair) == 1
    assert cached_name(blog_behind, author) == "Bob"
    proxy.heal()
    after_the_pause()
    assert cached_name(blog_behind, author) == "Ann"
    retry_now(crash_pair)
    assert carry() == 1
    assert cached_name(blog_behind, author) == "Bob"


def test_a_redis_that_is_down_holds_up_no_other_event(blog_behind: Any, proxy: Proxy, crash_pair: Pair) -> None:
    """A cascade over the database's own route goes on."""
    city = blog_behind.City().save()
    author = person(blog_behind, city_id=city.id)
    assert asked(blog_behind, author) == 1
    proxy.cut()
    city.delete()
    carry()
    assert crash_pair.first.scalar("SELECT count(*) FROM authors") == 0
    assert events(crash_pair) == 1
    assert cached_name(blog_behind, author) is None


def test_connections_that_redis_has_closed_are_made_again(blog_behind: Any, proxy: Proxy) -> None:
    """A restart between two requests is no outage."""
    author = person(blog_behind)
    assert asked(blog_behind, author) == 1
    before = counters()
    proxy.cut()
    proxy.heal()
    assert asked(blog_behind, author) == 0
    assert counters().errors == before.errors


FORKING = """
    import os
    from cache.blog import cached_name, define

    blog = define()
    ann, bob = (blog.Author.find_by(handle=handle) for handle in ("ann", "bob"))
    assert cached_name(blog, ann) == "Ann"
    child = os.fork()
    one, name = (bob, "Bob") if child == 0 else (ann, "Ann")
    for _ in range(300):
        assert cached_name(blog, one) == name
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_process_has_a_connection_of_its_own(
    blog: Any, crash_pair: Pair, redis_url: str, prefix: str, spawn: Spawner
) -> None:
    """On the parent's it would read the parent's answers."""
    person(blog, "ann", name="Ann")
    person(blog, "bob", name="Bob")
    redis_settings = {"CROSSTIE_CACHE__REDIS_URL": redis_url, "CROSSTIE_CACHE__PREFIX": prefix}
    spawn.code(FORKING, environment=crash_pair.environment | redis_settings).wait_ok()


@pytest.fixture
def babbler() -> Iterator[int]:
    """A server that is no Redis; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def babble() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    client.recv(10_000)
                    client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 20)

        thread = threading.Thread(target=babble, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(60)


def test_a_server_that_is_no_redis_is_an_outage(
    crash_pair: Pair, prefix: str, babbler: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers are not taken for rows."""
    monkeypatch.setenv("CROSSTIE_CACHE__REDIS_URL", f"redis://127.0.0.1:{babbler}/0")
    monkeypatch.setenv("CROSSTIE_CACHE__PAUSE_S", "60")
    with configured_databases(crash_pair):
        blog = open_blog()
        author = person(blog)
        before = counters()
        assert [asked(blog, author) for _ in range(3)] == [1, 1, 1]
        assert counters().errors - before.errors == 1


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"[",
        b"{}",
        b"[1]",
        b'[1,"ann","Ann",0]',
        b'[2,"bob","Bob",0,null]',
        b"\xff\xfe",
        b"null",
    ],
)
def test_an_entry_that_cannot_be_read_is_none(blog: Any, keys: Any, redis_url: str, damage: bytes) -> None:
    """Nor is one that is another row's: the database is asked."""
    author = person(blog, name="Ann")
    assert cached_name(blog, author) == "Ann"
    (row,), (table,) = keys("row"), keys("table")
    with redis.Redis.from_url(redis_url) as client:
        generation = client.get(table)
        ((form, good),) = client.hgetall(row).items()
        assert good.startswith(generation)
        client.hset(row, form, generation + damage)
    before = counters()
    assert cached_name(blog, author) == "Ann"
    assert counters().errors - before.errors == 1
    author.update(name="Bob")
    assert [cached_name(blog, author), cached_name(blog, author)] == ["Bob", "Bob"]


def test_a_name_that_somebody_else_uses_is_an_outage(blog: Any, keys: Any, redis_url: str) -> None:
    """Of another type of Redis than the cache's."""
    author = person(blog)
    assert asked(blog, author) == 1
    (row,) = keys("row")
    with redis.Redis.from_url(redis_url) as client:
        client.delete(row)
        client.set(row, "mine")
    assert asked(blog, author) == 1


def test_rows_without_their_generation_are_void(blog: Any, keys: Any, redis_url: str) -> None:
    """Redis may evict any of its keys: what is left is never older for it."""
    author = person(blog)
    assert asked(blog, author) == 1
    (table,) = keys("table")
    with redis.Redis.from_url(redis_url) as client:
        client.delete(table)
    assert [asked(blog, author) for _ in range(2)] == [1, 0]


def test_entries_end_by_themselves(blog: Any, keys: Any, redis_url: str) -> None:
    """After the time of the relation, leases after a short one, a table's generation after a day."""
    author = person(blog)
    blog.Post(author_id=0).save()
    asked(blog, author)
    assert blog.Post.find_by(author_id=0).author() is None
    with redis.Redis.from_url(redis_url) as client:
        left = {word: [client.pttl(name) / 1000 for name in keys(word)] for word in ("row", "lease", "table")}
    assert [0 < left["row"][0] <= 300, 0 < left["lease"][0] <= 10, 300 < left["table"][0] <= 86_400] == [True] * 3
    assert {word: len(times) for word, times in left.items()} == {"row": 1, "lease": 1, "table": 1}


def test_the_package_redis_is_asked_for_by_name(crash_pair: Pair, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration that cannot work is an error, and no slow database."""
    with configured_databases(crash_pair):
        blog = open_blog()
        author = person(blog)
        monkeypatch.setitem(sys.modules, "redis", None)
        with pytest.raises(ConfigurationError, match=r"crosstie\[redis\]"):
            asked(blog, author)

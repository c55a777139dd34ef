"""Readers and writers that meet at the worst moment: what is put in is never older than a change that was told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from bench.faults import crash_at
from cache.blog import asked, cached_name, carry, person
from crosstie.orm import transaction
from crosstie.orm.cache import changes, counters
from crosstie.orm.faults import armed


def elsewhere(action: Callable[[], object]) -> None:
    """Run it to its end in another thread, which has a transaction, and a history, of its own."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def rename(blog: Any, author: Any) -> None:
    """By one record."""
    blog.Author.find(author.id).update(name="Bob")


def rename_all(blog: Any, author: Any) -> None:
    """By so many rows that the table is forgotten."""
    blog.Author.find_all().update_all(name="Bob")


def rename_and_carry(blog: Any, author: Any) -> None:
    """By a writer that dies after its commit, and a relay that is quick."""
    with crash_at("cache.forgetting"):
        rename(blog, author)
    carry()


@pytest.fixture(autouse=True)
def tables_are_forgotten_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a change of two rows."""
    monkeypatch.setattr(changes, "NAMED_KEYS", 1)


@pytest.mark.parametrize("point", ["cache.looked", "cache.read"])
@pytest.mark.parametrize("write", [rename, rename_all, rename_and_carry])
@pytest.mark.parametrize("eager", [False, True], ids=["lazy", "eager"])
def test_a_row_that_changes_while_it_is_read_is_not_put_in(
    blog: Any, point: str, write: Callable[[Any, Any], None], *, eager: bool
) -> None:
    """The change, told between the reader's look and its filling, takes the lease away."""
    author = person(blog, name="Ann")
    person(blog, "other")
    post = blog.Post.find_by(author_id=author.id)
    before = counters()
    with armed(point, lambda: elsewhere(lambda: write(blog, author))):
        if eager:
            (found,) = (p for p in blog.Post.find_all().with_("author").all() if p.id == post.id)
        else:
            found = post
        seen = found.author().name
    assert seen == ("Ann" if point == "cache.read" else "Bob")
    assert counters().refused - before.refused >= 1
    assert cached_name(blog, author) == "Bob"
    assert asked(blog, author) == 0, "the next reader has put it in"
    assert cached_name(blog, author) == "Bob"


def test_a_row_read_before_the_commit_is_taken_out_after_it(blog: Any) -> None:
    """The reader fills while the writer's transaction is open; then the writer commits and tells."""
    author = person(blog, name="Ann")
    held: list[str | None] = []
    with transaction("default"):
        blog.Author.find(author.id).update(name="Bob")
        elsewhere(lambda: held.extend([cached_name(blog, author), str(asked(blog, author))]))
    assert held == ["Ann", "0"]
    assert cached_name(blog, author) == "Bob"


def test_two_readers_of_one_row(blog: Any) -> None:
    """The second finds the lease taken: it asks the database and puts nothing in; the first one's fill stands."""
    author = person(blog, name="Ann")
    before = counters()
    with armed("cache.read", lambda: elsewhere(lambda: cached_name(blog, author))):
        assert cached_name(blog, author) == "Ann"
    after = counters()
    assert (after.fills - before.fills, after.refused - before.refused, after.misses - before.misses) == (1, 0, 2)
    assert asked(blog, author) == 0


def test_a_reader_that_is_overtaken_by_a_change_and_another_reader(blog: Any) -> None:
    """Its lease is another's by then, and the newer row stays."""
    author = person(blog, name="Ann")

    def change_and_look() -> None:
        rename(blog, author)
        assert cached_name(blog, author) == "Bob"
        assert asked(blog, author) == 0

    with armed("cache.read", lambda: elsewhere(change_and_look)):
        assert cached_name(blog, author) == "Ann"
    assert [cached_name(blog, author) for _ in range(2)] == ["Bob", "Bob"]


def test_a_reader_that_is_overtaken_does_not_fill_on_another_ones_lease(blog: Any) -> None:
    """The row changes, another reader takes the lease, and stands still while the first one comes to fill."""
    author = person(blog, name="Ann")
    waiting, go_on = threading.Event(), threading.Event()
    seen: list[str | None] = []
    second = threading.Thread(target=lambda: seen.append(cached_name(blog, author)))

    def first_has_read() -> None:
        rename(blog, author)
        second.start()
        assert waiting.wait(60)

    def second_has_its_lease() -> None:
        waiting.set()
        assert go_on.wait(60)

    with armed("cache.read", first_has_read), armed("cache.looked", second_has_its_lease, nth=2):
        assert cached_name(blog, author) == "Ann"
        before = counters()
        go_on.set()
        second.join()
    assert seen == ["Bob"]
    assert counters().fills - before.fills == 1
    assert (asked(blog, author), cached_name(blog, author)) == (0, "Bob")


def test_a_deleted_parent_does_not_come_back(blog: Any) -> None:
    """The reader has seen the row; it is deleted; the reader would put it in."""
    author = person(blog, name="Ann")
    with armed("cache.read", lambda: elsewhere(blog.Author.find(author.id).delete)):
        assert cached_name(blog, author) == "Ann"
    assert cached_name(blog, author) is None


def test_a_write_told_twice_takes_a_newer_row_out_and_nothing_else(blog: Any) -> None:
    """At least once: an event that comes after the row was looked up again costs one query."""
    author = person(blog, name="Ann")
    author.update(name="Bob")
    assert cached_name(blog, author) == "Bob"
    carry()
    assert asked(blog, author) == 1
    assert cached_name(blog, author) == "Bob"


def test_many_threads_read_and_write(blog: Any) -> None:
    """Each reader sees, after a write was told, that write or a later one."""
    author = person(blog, posts_count=0)
    told = [0]
    wrong: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            least = told[0]
            found = blog.Post.find_by(author_id=author.id).author().posts_count
            if found < least:
                wrong.append(f"{found} after {least}")

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    try:
        record = blog.Author.find(author.id)
        for count in range(1, 60):
            record.update(posts_count=count)
            told[0] = count
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert wrong == []
    assert blog.Post.find_by(author_id=author.id).author().posts_count == 59

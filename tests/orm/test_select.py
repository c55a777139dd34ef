from __future__ import annotations

import copy
import pickle
from typing import Any, ClassVar

import pytest

from bench.databases import Pair
from copies.forum import copied, open_forum
from crosstie.orm import ActiveRecord
from crosstie.orm.errors import DuplicateKey, FieldNotLoaded, InvalidQuery, RecordInvalid, StaleRecord
from crosstie.orm.field import IntegerPKMixin, OptimisticLockMixin, SoftDeleteMixin, TimestampMixin
from crosstie.orm.relation import BelongsTo, HasMany
from crosstie.orm.statement_log import logged_statements


class Author(IntegerPKMixin, ActiveRecord):
    __table_name__ = "authors"
    __connection__ = "default"

    id: int | None = None
    name: str
    born: int = 1900

    books: ClassVar[HasMany[Book]] = HasMany(foreign_key="author_id", inverse_of="author")


class Book(IntegerPKMixin, ActiveRecord):
    __table_name__ = "books"
    __connection__ = "secondary"

    id: int | None = None
    author_id: int
    title: str
    pages: int = 0
    words: list[str] | None = None

    author: ClassVar[BelongsTo[Author]] = BelongsTo(foreign_key="author_id", inverse_of="books")


class Draft(OptimisticLockMixin, TimestampMixin, SoftDeleteMixin):
    __table_name__ = "drafts"
    __connection__ = "default"
    __primary_key__ = ("id",)

    id: int | None = None
    text: str
    tags: list[str] | None = None


@pytest.fixture
def library(configured: Pair) -> Pair:
    """One author, two books in the other database, a draft."""
    for model in (Author, Book, Draft):
        model.create_table()
    Author(name="Ann", born=1950).save()
    for title in ("One", "Two"):
        Book(author_id=1, title=title, pages=100, words=["a"]).save()
    Draft(text="once", tags=["x"]).save()
    return configured


def test_records_have_the_selected_fields_and_their_key(library: Pair) -> None:
    """In every form: attributes, dumps, names, text; the statement asks for no more."""
    rows = Book.find_all().select("title").order_by("id")
    assert "pages" not in rows.to_sql()
    book = rows.all()[0]
    assert (book.id, book.title) == (1, "One")
    assert book.model_dump() == dict(book) == {"id": 1, "title": "One"}
    assert book.model_dump_json() == '{"id":1,"title":"One"}'
    assert book.model_fields_set == {"id", "title"}
    assert repr(book) == "Book(id=1, title='One')"
    assert book == rows.first()
    assert book != Book.find(1)
    both = Book.find_all().select("title").select("pages", "title").order_by("-id").first()
    assert both is not None
    assert both.model_dump() == {"id": 2, "title": "Two", "pages": 100}
    assert [batch[0].pages for batch in Book.find_all().select("pages").in_batches(1)] == [100, 100]


def test_a_field_that_was_not_loaded_is_refused_by_its_name(library: Pair) -> None:
    """Reading, assigning and writing it; a property that needs it says so too."""
    book = Book.find_all().select("title").where(id=1).one()
    with pytest.raises(FieldNotLoaded, match=r"Book\.pages was not loaded.*selects id, title: add select\('pages'\)"):
        book.pages  # noqa: B018
    with pytest.raises(FieldNotLoaded, match=r"Book\.words"):
        getattr(book, "words", None)
    for use in (
        lambda: setattr(book, "pages", 5),
        lambda: book.update(title="changed", pages=5),
        lambda: book.increment(pages=1),
        book.author,
        lambda: pickle.loads(pickle.dumps(book)).pages,  # noqa: S301
    ):
        with pytest.raises(FieldNotLoaded, match=r"Book\.(pages|author_id)"):
            use()
    assert book.title == "One"
    assert book.changes == {}
    with pytest.raises(AttributeError):
        book.nothing  # type: ignore[attr-defined] # noqa: B018
    assert Book.find(1).pages == 100


def test_a_save_writes_what_has_changed_and_nothing_else(library: Pair) -> None:
    """Documents that were not loaded stay as they are, also when the transaction is rolled back."""
    book = Book.find_all().select("title").where(id=1).one()
    book.title = "First"
    assert book.changes == {"title": ("One", "First")}
    with pytest.raises(ZeroDivisionError), Book.transaction():
        book.save()
        raise ZeroDivisionError
    assert book.changes == {"title": ("One", "First")}
    assert Book.find(1).title == "One"
    Book.find_all().where(id=1).update_all(pages=7)
    book.save()
    assert book.changes == {}
    whole = Book.find(1)
    assert (whole.title, whole.pages, whole.words) == ("First", 7, ["a"])
    assert book.refresh() == whole
    assert book.model_fields_set == whole.model_fields_set
    book.words = ["b"]
    book.save()
    assert Book.find(1).words == ["b"]
    Book.find_all().select("title").where(id=2).one().delete()
    assert Book.find_all().count() == 1


def test_what_a_save_needs_is_loaded_with_it(library: Pair) -> None:
    """The lock version, the time of the last update, and whether the row is hidden."""
    first, second = (Draft.find_all().select("text").one() for _ in range(2))
    assert set(first.model_dump()) == {"id", "text", "lock_version", "updated_at", "deleted_at"}
    first.update(text="twice")
    assert first.lock_version == 1
    with pytest.raises(StaleRecord):
        second.update(text="too late")
    first.touch()
    with pytest.raises(FieldNotLoaded, match=r"Draft\.created_at"):
        first.touch("created_at")
    assert not first.is_deleted
    first.delete()
    assert first.is_deleted
    assert first.restore().refresh().tags == ["x"]


def test_a_copy_of_a_part_is_never_a_new_row(library: Pair) -> None:
    """A copy is a new record, and one without its fields is refused, whatever else it has."""
    book = Book.find_all().select("title").where(id=1).one()
    for other in (book.model_copy(), copy.copy(book), copy.deepcopy(book), book.model_copy(update={"id": None})):
        assert other.is_new
        with pytest.raises(RecordInvalid, match=r"books\.author_id has no value"):
            other.save()
        with pytest.raises(RecordInvalid, match=r"books\.author_id has no value"):
            Book.bulk_create([other])
    assert Book.find_all().count() == 2
    with pytest.raises(DuplicateKey):  # made whole by hand, it is a record like any other
        book.model_copy(update={"author_id": 1, "pages": 1, "words": None}).save()


def test_relations_start_from_what_was_selected(library: Pair) -> None:
    """And load what they need to be dealt out; what a relation starts from cannot be left out."""
    book = Book.find_all().select("author_id").where(id=1).with_("author").one()
    with logged_statements() as log:
        author = book.author()
        assert author is not None
        assert author.name == "Ann"
    assert len(log) == 0
    with logged_statements() as log:
        for refused in (
            Book.find_all().select("title").with_("author"),
            Book.find_all().select("pages").with_("author.books"),
        ):
            with pytest.raises(InvalidQuery, match=r"select\(\) leaves out 'author_id'.*add select\('author_id'\)"):
                refused.all()
    assert len(log) == 0
    found = Author.find_all().select("name").with_(books=lambda books: books.select("title").order_by("-id")).one()
    assert [one.model_dump() for one in found.books()] == [
        {"id": 2, "author_id": 1, "title": "Two"},
        {"id": 1, "author_id": 1, "title": "One"},
    ]
    assert found.books()[0].author() is found
    counted = Author.find_all().select("name").with_count("books").one()
    assert counted.books.count() == 2
    with pytest.raises(FieldNotLoaded, match=r"Author\.born"):
        counted.born  # noqa: B018
    assert [one.title for one in Author.find_all().select("born").one().books()] == ["One", "Two"]


@pytest.mark.usefixtures("own_registries")
def test_copies_of_other_databases_follow_though_they_were_not_selected(configured: Pair) -> None:
    """They are written with the foreign key that they belong to."""
    forum = open_forum()
    for name in ("ann", "bob"):
        forum.User(username=name).save()
    forum.Post(user_id=1).save()
    forum.Post.find_all().select("user_id").one().update(user_id=2)
    assert copied(configured) == [(2, "bob")]


def test_a_selection_names_fields(library: Pair) -> None:
    """Of the model, at least one; numbers and conditions know all fields."""
    with pytest.raises(InvalidQuery, match=r"no field 'titel'.*'title'"):
        Book.find_all().select("titel")
    with pytest.raises(InvalidQuery, match="at least one field"):
        Book.find_all().select()
    rows: Any = Book.find_all().select("title").where(pages=100)
    assert (rows.count(), rows.sum("pages"), rows.pluck("pages")) == (2, 200, [100, 100])
    assert Author.find_all().where_has("books", lambda books: books.select("title")).count() == 1
    assert rows.update_all(pages=1) == 2

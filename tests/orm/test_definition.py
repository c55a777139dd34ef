from __future__ import annotations

import sys
from types import ModuleType
from typing import Annotated, Any, ClassVar, Optional

import pytest
import sqlalchemy as sa

from bench.databases import Pair, TestDatabase
from crosstie.orm import ActiveRecord, ConnectionManager, metadata, references
from crosstie.orm.errors import AmbiguousModel, InvalidQuery, ModelDefinitionError
from crosstie.orm.field import Column, CompositePKMixin, IntegerPKMixin, Text
from crosstie.orm.registry import registry
from crosstie.orm.relation import BelongsTo, HasMany, HasOne, ManyToMany
from crosstie.orm.statement_log import logged_statements
from orm.blog import Comment, Post, Profile, User


def test_a_model_needs_a_key() -> None:
    """Without one no row could be found again."""

    class Keyless(ActiveRecord):
        __table_name__ = "keyless"
        __connection__ = "default"

        name: str

    with pytest.raises(ModelDefinitionError, match="no primary key"):
        Keyless.find_all()


def test_a_reference_needs_its_field() -> None:
    """A foreign key that is no field is named with the nearest."""

    class Note(IntegerPKMixin, ActiveRecord):
        __table_name__ = "notes"
        __connection__ = "default"

        user_id: int

        user: ClassVar[BelongsTo[Note]] = BelongsTo(foreign_key="usr_id")

    with pytest.raises(ModelDefinitionError, match=r"no field 'usr_id'.*Did you mean 'user_id'"):
        Note.__table__  # noqa: B018


def test_a_relation_refers_to_one_field() -> None:
    """A composite key is refused where it is named and where it is meant, with what to do instead."""
    several: Any = ("tenant_id", "user_id")
    declarations: list[tuple[type[Any], dict[str, Any]]] = [
        (BelongsTo, {"foreign_key": several}),
        (HasMany, {"foreign_key": list(several)}),
        (HasOne, {"foreign_key": "user_id", "primary_key": several}),
        (ManyToMany, {"through": "Tie", "target_key": several}),
    ]
    for kind, arguments in declarations:
        with pytest.raises(ModelDefinitionError, match=r"(foreign|primary|target)_key to be the name of one field"):
            kind(**arguments)

    class Tenancy(CompositePKMixin, ActiveRecord):
        __table_name__ = "tenancies"
        __connection__ = "default"
        __primary_key__ = ("tenant_id", "user_id")

        tenant_id: int
        user_id: int

    class Lease(IntegerPKMixin, ActiveRecord):
        __table_name__ = "leases"
        __connection__ = "secondary"

        user_id: int

        tenancy: ClassVar[BelongsTo[Tenancy]] = BelongsTo(foreign_key="user_id")
        by_user: ClassVar[BelongsTo[Tenancy]] = BelongsTo(foreign_key="user_id", primary_key="user_id")

    with pytest.raises(ModelDefinitionError, match=r"the composite key \(tenant_id, user_id\).*primary_key="):
        Lease.find_all().with_("tenancy")
    assert Lease.find_all().with_("by_user") is not None


@pytest.mark.filterwarnings("ignore:Field name")
def test_names_of_the_api_are_not_fields() -> None:
    """A field called `save` would hide the method; its column may be called so."""
    with pytest.raises(ModelDefinitionError, match="'changes'"):

        class Clash(IntegerPKMixin, ActiveRecord):
            __table_name__ = "clash"
            __connection__ = "default"

            changes: int  # type: ignore[assignment]

    with pytest.raises(ModelDefinitionError, match="'delete'"):

        class Hidden(IntegerPKMixin, ActiveRecord):
            __table_name__ = "hidden"
            __connection__ = "default"

            delete: ClassVar[HasMany[Hidden]] = HasMany(foreign_key="id")  # type: ignore[assignment]

    class Renamed(IntegerPKMixin, ActiveRecord):
        __table_name__ = "renamed"
        __connection__ = "default"

        change_count: Annotated[int, Column(name="changes")]

    assert Renamed.c.change_count.name == "changes"


def test_a_relation_is_no_private_attribute() -> None:
    """`_posts` holds what `posts` has loaded, so it cannot be something else."""
    with pytest.raises(ModelDefinitionError, match="'posts'"):

        class Clash(IntegerPKMixin, ActiveRecord):
            __table_name__ = "clash"
            __connection__ = "default"

            _posts: int = 0
            posts: ClassVar[HasMany[Clash]] = HasMany(foreign_key="id")


def test_a_field_may_use_a_type_defined_later() -> None:
    """The table is built when it is first needed; what is undefined then is named."""

    class Early(IntegerPKMixin, ActiveRecord):
        __table_name__ = "early"
        __connection__ = "default"

        shape: NotThere  # type: ignore[name-defined] # noqa: F821

    with pytest.raises(ModelDefinitionError, match="NotThere"):
        Early.__table__  # noqa: B018


def defined_in(module: str, source: str) -> ModuleType:
    """Run source as the module of this name, as importing it or running a notebook cell would."""
    home = sys.modules.setdefault(module, ModuleType(module))
    imports = (
        "from typing import ClassVar, Optional\n"
        "from crosstie.orm import ActiveRecord\n"
        "from crosstie.orm.field import IntegerPKMixin\n"
        "from crosstie.orm.relation import BelongsTo, HasMany\n"
    )
    exec(compile(imports + source, module, "exec"), vars(home))  # noqa: S102 - source of the test's own
    return home


@pytest.fixture
def modules() -> object:
    """Modules made by the test are forgotten after it."""
    before = set(sys.modules)
    yield None
    for name in set(sys.modules) - before:
        if name.startswith("made_for_test"):
            del sys.modules[name]


AUTHOR = """
class Author(IntegerPKMixin, ActiveRecord):
    __table_name__ = "authors"
    __connection__ = "default"
    name: str
    books: ClassVar[HasMany["Book"]] = HasMany(foreign_key="author_id", inverse_of="author")
"""
BOOK = """
class Book(IntegerPKMixin, ActiveRecord):
    __table_name__ = "books"
    __connection__ = "secondary"
    author_id: int
    author: ClassVar[BelongsTo["Author"]] = BelongsTo(foreign_key="author_id")
"""


def test_a_class_defined_again_takes_the_place_of_the_former(configured: Pair, modules: object) -> None:
    """As when a notebook cell is run twice: relations lead to the new class, and its table is the new one."""
    cell = defined_in("made_for_test_cell", AUTHOR + BOOK)
    cell.Author.create_table()
    author = cell.Author(name="ann").save()
    assert author.books.query().pluck is not None
    defined_in("made_for_test_cell", BOOK.replace("author_id: int", "author_id: int\n    title: str = 'untitled'"))
    cell.Book.create_table()
    book = cell.Book(author_id=author.id).save()
    assert author.books() == [book]
    assert type(author.books()[0]) is cell.Book
    assert list(metadata("secondary").tables["books"].columns.keys()) == ["id", "author_id", "title"]
    assert [reference.name for reference in references(crossing_only=True)].count(
        "secondary.books.author_id -> default.authors.id"
    ) == 1


def test_a_target_is_looked_for_in_its_own_module_and_then_anywhere(modules: object) -> None:
    """Names imported into the owner's module count first; elsewhere a name must be unique, or it is ambiguous."""
    one = defined_in("made_for_test_one", AUTHOR)
    two = defined_in("made_for_test_two", BOOK)
    assert one.Author.books.link(one.Author).target.model is two.Book
    three = defined_in("made_for_test_three", BOOK)
    with pytest.raises(AmbiguousModel, match=r"made_for_test_two\.Book and made_for_test_three\.Book"):
        one.Author.books.link(one.Author)
    vars(one)["Book"] = three.Book  # as `from made_for_test_three import Book` would do
    defined_in("made_for_test_four", AUTHOR.replace("Author", "Other"))  # what was resolved is resolved again
    assert one.Author.books.link(one.Author).target.model is three.Book
    exact = defined_in("made_for_test_five", AUTHOR.replace('"Book"', '"made_for_test_two.Book"'))
    assert exact.Author.books.link(exact.Author).target.model is two.Book


def test_annotations_are_understood_however_they_are_written() -> None:
    """The class itself, a forward reference, and a string of the whole annotation."""

    class Parent(IntegerPKMixin, ActiveRecord):
        __table_name__ = "parents"
        __connection__ = "default"

    class Child(IntegerPKMixin, ActiveRecord):
        __table_name__ = "children"
        __connection__ = "default"

        parent_id: int
        first: ClassVar[BelongsTo["Parent"]] = BelongsTo(foreign_key="parent_id")  # noqa: UP037
        second: "ClassVar[BelongsTo[Parent]]" = BelongsTo(foreign_key="parent_id")  # noqa: UP037
        third: ClassVar[BelongsTo[Parent]] = BelongsTo(foreign_key="parent_id")

    Child.__annotations__["first"] = ClassVar[BelongsTo["Parent"]]
    Child.__annotations__["third"] = ClassVar[BelongsTo[Parent]]
    for name in ("first", "second", "third"):
        assert getattr(Child, name).link(Child).target.model is Parent


class Shelf(IntegerPKMixin, ActiveRecord):
    __table_name__ = "shelves"
    __connection__ = "default"

    id: Optional[int] = None  # noqa: UP045
    label: Annotated[str, Column(unique=True)]
    room: Annotated[str, Column(index=True)]
    notes: Text = ""


class Volume(IntegerPKMixin, ActiveRecord):
    __table_name__ = "volumes"
    __connection__ = "default"

    shelf_id: int
    title: str

    shelf: ClassVar[BelongsTo[Shelf]] = BelongsTo(foreign_key="shelf_id")


def test_a_created_table_has_its_keys_and_indexes(configured_database: TestDatabase) -> None:
    """Foreign keys are indexed, since loading and audits go by them; creating twice is no error."""
    for _ in range(2):
        Shelf.create_table()
        Volume.create_table()
    with ConnectionManager.get("default").engine.connect() as connection:
        inspector = sa.inspect(connection)
        assert inspector.get_pk_constraint("shelves")["constrained_columns"] == ["id"]
        assert [index["column_names"] for index in inspector.get_indexes("volumes")] == [["shelf_id"]]
        indexed = {tuple(index["column_names"]) for index in inspector.get_indexes("shelves")}
        unique = {tuple(one["column_names"]) for one in inspector.get_unique_constraints("shelves")}
        assert ("room",) in indexed
        assert ("label",) in indexed | unique
        nullable = {column["name"]: column["nullable"] for column in inspector.get_columns("shelves")}
    assert nullable == {"id": False, "label": False, "room": False, "notes": False}
    Volume.drop_table()
    Volume.drop_table()
    with ConnectionManager.get("default").engine.connect() as connection:
        assert not sa.inspect(connection).has_table("volumes")


def test_a_deleted_key_is_not_given_out_again(configured_database: TestDatabase) -> None:
    """Rows in another database may still refer to it."""
    Shelf.create_table()
    first = Shelf(label="a", room="r").save()
    last = Shelf(label="b", room="r").save()
    last.delete()
    again = Shelf(label="c", room="r").save()
    assert first.id is not None
    assert last.id is not None
    assert again.id is not None
    assert first.id < last.id < again.id


def test_ddl_inside_a_transaction_is_refused_where_it_would_commit(configured_database: TestDatabase) -> None:
    """MySQL and MariaDB end the transaction at a CREATE TABLE; the others take it back."""
    with pytest.raises(InvalidQuery if configured_database.kind == "mariadb" else RuntimeError), Shelf.transaction():
        Shelf.create_table()
        raise RuntimeError
    with ConnectionManager.get("default").engine.connect() as connection:
        assert not sa.inspect(connection).has_table("shelves")


def test_metadata_holds_the_tables_of_one_connection(configured: Pair) -> None:
    """For Alembic: what is defined now; two models of one table must agree."""

    class Label(IntegerPKMixin, ActiveRecord):
        __table_name__ = "labels"
        __connection__ = "only-here"

        text: str

    class Tagged(Label):
        pass

    assert list(metadata("only-here").tables) == ["labels"]
    assert metadata("only-here").tables["labels"].columns.keys() == ["id", "text"]

    class Other(IntegerPKMixin, ActiveRecord):
        __table_name__ = "labels"
        __connection__ = "only-here"

        text: str
        size: int

    with pytest.raises(ModelDefinitionError, match=r"differently: size"):
        metadata("only-here")


def test_references_are_the_belongs_to_relations(configured: Pair) -> None:
    """Each once, with models, tables, columns and connections of both sides; those that cross can be had alone."""
    found = references([User, Profile, Post, Comment])
    assert [reference.name for reference in found] == [
        "secondary.profiles.user_id -> default.users.id",
        "secondary.posts.user_id -> default.users.id",
        "secondary.comments.post_id -> secondary.posts.id",
        "secondary.comments.author_id -> default.users.id",
    ]
    crossing = references([User, Profile, Post, Comment], crossing_only=True)
    assert [str(one) for one in crossing] == [one.name for one in found if one.is_crossing]
    posts = found[1]
    assert (posts.child_model, posts.parent_model) == (Post, User)
    assert (posts.child_table, posts.parent_table) == (Post.__table__, User.__table__)
    assert (posts.child_column, posts.parent_column) == (Post.c.user_id, User.c.id)
    assert (posts.child_connection, posts.parent_connection) == ("secondary", "default")
    assert set(found) <= set(references())


def test_what_a_test_defined_is_forgotten() -> None:
    """The registry's isolation: models of the block are gone after it, those before it are not."""
    before = registry.models()
    with registry.isolated():

        class Passing(IntegerPKMixin, ActiveRecord):
            __table_name__ = "passing"
            __connection__ = "default"

        assert registry.models() == [*before, Passing]
    assert registry.models() == before


def test_defining_models_asks_no_database(configured: Pair) -> None:
    """Building tables and queries costs no statement and needs no server."""
    with logged_statements() as log:
        Shelf.find_all().where(label="x").order_by("room").with_()
        Volume.find_all().with_("shelf")
        references([Shelf, Volume])
    assert len(log) == 0


@pytest.mark.filterwarnings("ignore:Field name")  # pydantic's own word on it, which is no refusal
@pytest.mark.parametrize("name", ["c", "save", "changes"])
def test_a_name_of_active_record_is_not_a_fields(name: str) -> None:
    """It is refused where the model is defined, and the message tells of the way out."""
    namespace = {"__annotations__": {name: int}, "__table_name__": "t", "__connection__": "default"}
    with pytest.raises(ModelDefinitionError, match=rf"'{name}' is taken.*Column\(name="):
        type("Taken", (IntegerPKMixin, ActiveRecord), namespace | {"__module__": __name__})

"""Declarations that cannot be kept are refused, by names, before any row is written."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field

from bench.databases import Solo, TestDatabase
from bench.guard import configured_databases
from crosstie.orm import ActiveRecord, Tenants, copies, copy_keeper
from crosstie.orm.copies import copy_groups
from crosstie.orm.denormalized import Denormalized
from crosstie.orm.errors import ModelDefinitionError
from crosstie.orm.field import IntegerPKMixin, TimestampMixin
from crosstie.orm.relation import BelongsTo
from crosstie.outbox import sync_routes
from crosstie.outbox.errors import CopyUnrouted


def user() -> Any:
    """The parent of all declarations."""

    class User(IntegerPKMixin, ActiveRecord):
        __table_name__ = "users"
        __connection__ = "default"

        id: int | None = None
        username: Annotated[str, Field(max_length=50)] = ""
        balance: Decimal | None = None
        boss_id: int | None = None
        boss_name: Annotated[str | None, Denormalized("boss.username")] = None

        boss: ClassVar[BelongsTo[User]] = BelongsTo(foreign_key="boss_id")

    return User


def post(annotation: Any, *, name: str = "copy_", place: Any = "secondary", **more: Any) -> Any:
    """A child with one copy, declared so."""
    parent: Any = user()
    namespace = {
        "__module__": __name__,
        "__qualname__": "Post",
        "__table_name__": "posts",
        "__connection__": place,
        "__annotations__": {
            "id": int | None,
            "user_id": int | None,
            name: annotation,
            "user": ClassVar[BelongsTo[parent]],
        },
        "id": None,
        "user_id": None,
        name: None,
        "user": BelongsTo(foreign_key="user_id"),
    }
    return type("Post", (TimestampMixin, IntegerPKMixin, ActiveRecord), namespace | more)


def test_a_copy_within_one_table_is_one() -> None:
    """The original may be in another row of the same table."""
    user()
    assert [group.name for group in copy_groups()] == ["default.users.boss_id -> default.users.id"]


def test_a_longer_text_may_hold_a_shorter_one() -> None:
    """The types need not be the same, as long as every value fits."""
    post(Annotated[str | None, Field(max_length=80), Denormalized("user.username")])
    assert len(copy_groups()) == 2


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (Annotated[str | None, Denormalized("username")], r'expected "<relation>\.<field>" with one BelongsTo'),
        (Annotated[str | None, Denormalized("user.boss.username")], r"A path over several would have to follow"),
        (Annotated[str | None, Denormalized("usr.username")], r"has no BelongsTo relation 'usr'; it has: user"),
        (Annotated[str | None, Denormalized("user.usernam")], r"no field 'usernam'.*Did you mean 'username'"),
        (
            Annotated[str | None, Denormalized("user.boss_name")],
            r"User\.boss_name is a copy itself, of 'boss",
        ),
        (Annotated[str, Denormalized("user.username")], r"annotate it `\.\.\. \| None`"),
        (
            Annotated[int | None, Denormalized("user.username")],
            r"expected a column that holds whatever users\.",
        ),
        (Annotated[str | None, Field(max_length=49), Denormalized("user.username")], r"holds whatever users\.username"),
        (
            Annotated[Decimal | None, Field(max_digits=5, decimal_places=1), Denormalized("user.balance")],
            r"holds whatever users\.balance",
        ),
        (
            Annotated[str | None, Denormalized("user.username"), Denormalized("user.balance")],
            r"a copy of 'user\.username' and of 'user\.balance'.*has one owner",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(annotation: Any, message: str) -> None:
    """The message names the field, what was expected and what to do."""
    with pytest.raises(ModelDefinitionError, match=rf"(?s)Post\.copy_.*{message}"):
        post(annotation)
        copy_groups()


@pytest.mark.parametrize("name", ["id", "user_id", "created_at"])
def test_a_column_with_another_meaning_is_no_copy(name: str) -> None:
    """Keys and time stamps have a writer already."""
    post(Annotated[int | None, Denormalized("user.id")], name=name)
    with pytest.raises(ModelDefinitionError, match=rf"Post\.{name}.*it is a key, a lock version or a time stamp"):
        copy_groups()


def test_models_without_a_fixed_database_have_no_copies() -> None:
    """Nobody could say whose outbox tells them."""
    post(Annotated[str | None, Denormalized("user.username")], place=Tenants("tenant_{tenant}"))
    with pytest.raises(ModelDefinitionError, match=r"Post\.copy_.*chosen anew for each statement"):
        copy_groups()


def test_every_model_of_a_table_must_know_of_its_copies() -> None:
    """Another one could write the column."""
    post(Annotated[str | None, Denormalized("user.username")])

    class Draft(IntegerPKMixin, ActiveRecord):
        __table_name__ = "posts"
        __connection__ = "secondary"

        id: int | None = None
        copy_: str | None = None

    with pytest.raises(ModelDefinitionError, match=r"Draft\.copy_, the same column, is no copy: a column has one"):
        copy_groups()


def test_without_the_outbox_nothing_is_written(database: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would keep the copies right."""
    users = user()
    monkeypatch.setattr(copy_keeper, "_keepers", [])
    with configured_databases(Solo(database)):
        users.create_table()
        with pytest.raises(ModelDefinitionError, match=r"import crosstie\.outbox where the models are defined"):
            users(username="ann").save()
        assert database.rows("SELECT * FROM users") == []


def test_before_the_routes_are_stored_nothing_is_written(configured_database: TestDatabase) -> None:
    """An event would be dropped, and the copies be wrong for ever."""
    users = user()
    users.create_table()
    with pytest.raises(CopyUnrouted, match=r"Run `crosstie init` with the module of user\.<locals>\.User imported"):
        users(username="ann").save()
    assert configured_database.rows("SELECT * FROM users") == []
    sync_routes()
    boss = users(username="ann").save()
    assert users(boss_id=boss.id).save().boss_name == "ann"


def test_models_without_copies_are_not_looked_at() -> None:
    """A model that has none, and of which there is none, has no watcher of this kind."""

    class Tag(IntegerPKMixin, ActiveRecord):
        __table_name__ = "tags"
        __connection__ = "default"

        id: int | None = None

    from crosstie.orm.mapping import mapping_of

    assert copy_keeper._watcher(mapping_of(Tag)) is None
    assert copies.copies_in(mapping_of(Tag)) == ()

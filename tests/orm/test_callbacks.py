"""Callbacks belong to the class, run around every save and delete, and take the write back where they raise."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import ClassVar

import pytest

from bench.databases import Pair, TestDatabase
from crosstie.orm import ActiveRecord
from crosstie.orm.callback import (
    after_commit,
    after_create,
    after_delete,
    after_save,
    after_update,
    before_create,
    before_delete,
    before_save,
    before_update,
)
from crosstie.orm.field import IntegerPKMixin, SoftDeleteMixin
from crosstie.sagas import saga


class Audited(ActiveRecord):
    """A base class with callbacks, and no table."""

    __connection__ = "default"

    seen: ClassVar[list[str]] = []
    refused: ClassVar[set[str]] = set()

    @classmethod
    def note(cls, moment: str) -> None:
        """Remember that a moment came, or refuse it."""
        cls.seen.append(moment)
        if moment in cls.refused:
            raise PermissionError(moment)

    @before_save
    def _first(self) -> None:
        self.note("before_save of the base")


class Letter(IntegerPKMixin, Audited):
    """A model with a callback of each kind."""

    __table_name__ = "letters"

    id: int | None = None
    text: str

    @before_save
    def tidy(self) -> None:
        """Change the record before it is written."""
        self.note("before_save")
        self.text = self.text.strip()

    @before_create
    @before_update
    @before_delete
    def before(self) -> None:
        """One method may serve several moments."""
        self.note("before")

    @after_create
    def created(self) -> None:
        """The key is there."""
        assert self.id is not None
        self.note("after_create")

    @after_update
    def updated(self) -> None:
        """Told of the update."""
        self.note("after_update")

    @after_delete
    def deleted(self) -> None:
        """Told of the delete."""
        self.note("after_delete")

    @after_save
    def saved(self) -> None:
        """Told of both."""
        self.note("after_save")

    @after_commit
    def committed(self) -> None:
        """Once it is durable."""
        self.note("after_commit")


class Copy(IntegerPKMixin, ActiveRecord):
    """A row in another database."""

    __table_name__ = "copies"
    __connection__ = "secondary"

    id: int | None = None
    text: str


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    Letter.seen.clear()
    Letter.refused.clear()
    yield
    Letter.seen.clear()
    Letter.refused.clear()


BEFORE_SAVE = ["before_save of the base", "before_save", "before"]


def test_callbacks_run_in_order_around_each_write(configured_database: TestDatabase) -> None:
    """Those of the base class first; what a callback assigns is written."""
    Letter.create_table()

    letter = Letter(text="  hello ").save()
    assert Letter.seen == [*BEFORE_SAVE, "after_create", "after_save", "after_commit"]
    assert configured_database.scalar("SELECT text FROM letters") == "hello"

    Letter.seen.clear()
    letter.text = "bye"
    letter.save()
    assert Letter.seen == [*BEFORE_SAVE, "after_update", "after_save", "after_commit"]

    Letter.seen.clear()
    letter.delete()
    assert Letter.seen == ["before", "after_delete", "after_commit"]


@pytest.mark.parametrize("moment", [*BEFORE_SAVE, "after_create", "after_save"])
def test_a_callback_that_raises_takes_the_write_back(moment: str, configured_database: TestDatabase) -> None:
    """Also an `after` one: the record is new again, and can be saved once the reason is gone."""
    Letter.create_table()
    Letter.refused.add(moment)
    letter = Letter(text="hello")

    with pytest.raises(PermissionError, match=moment):
        letter.save()
    assert letter.is_new
    assert letter.id is None
    assert configured_database.scalar("SELECT count(*) FROM letters") == 0
    assert "after_commit" not in Letter.seen

    Letter.refused.clear()
    letter.save()
    assert configured_database.scalar("SELECT count(*) FROM letters") == 1


def test_a_delete_that_is_refused_keeps_the_row(configured_database: TestDatabase) -> None:
    """The record is not deleted either."""
    Letter.create_table()
    letter = Letter(text="hello").save()
    Letter.refused.add("after_delete")

    with pytest.raises(PermissionError):
        letter.delete()

    assert not letter.is_deleted
    assert configured_database.scalar("SELECT count(*) FROM letters") == 1


def test_after_commit_waits_for_the_outer_transaction(configured_database: TestDatabase) -> None:
    """A rolled-back transaction commits nothing, and says so to nobody."""
    Letter.create_table()

    with Letter.transaction():
        Letter(text="hello").save()
        assert "after_commit" not in Letter.seen
    assert Letter.seen[-1] == "after_commit"

    Letter.seen.clear()
    with pytest.raises(ZeroDivisionError), Letter.transaction():
        Letter(text="hello").save()
        raise ZeroDivisionError
    assert "after_commit" not in Letter.seen


def test_after_commit_waits_for_the_decision_of_a_saga(configured: Pair) -> None:
    """In a branch, too: it runs once home has committed."""
    Letter.create_table()
    Copy.create_table()

    with saga("copy", home="secondary"):
        Copy(text="hello").save()
        Letter(text="hello").save()
        assert "after_commit" not in Letter.seen

    assert Letter.seen[-1] == "after_commit"
    assert configured.second.scalar("SELECT state FROM crosstie_saga") == "committed"


def test_after_commit_cannot_undo_and_its_error_is_logged(
    configured_database: TestDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """The row is durable, so the save has succeeded."""
    Letter.create_table()
    Letter.refused.add("after_commit")

    with caplog.at_level(logging.ERROR):
        Letter(text="hello").save()

    assert "the commit stands" in caplog.text
    assert configured_database.scalar("SELECT count(*) FROM letters") == 1


def test_a_subclass_inherits_callbacks_and_may_override_them(configured_database: TestDatabase) -> None:
    """An overridden method runs once, in its own form."""

    class Postcard(Letter):
        __table_name__ = "postcards"
        __connection__ = "default"

        def tidy(self) -> None:
            self.text = self.text.upper()

    Postcard.create_table()
    Postcard(text="hello").save()

    assert configured_database.scalar("SELECT text FROM postcards") == "HELLO"
    assert "after_create" in Letter.seen


class Hidden(SoftDeleteMixin, IntegerPKMixin, Audited):
    """A row that a delete only hides."""

    __table_name__ = "hidden"

    id: int | None = None

    @before_delete
    def asked(self) -> None:
        """May refuse."""
        self.note("before_delete")

    @after_delete
    def told(self) -> None:
        """Told of it."""
        self.note("after_delete")


def test_a_soft_delete_runs_the_callbacks_of_a_delete(configured_database: TestDatabase) -> None:
    """For the model's owner it is a delete, and it can be refused like one."""
    Hidden.create_table()
    row = Hidden().save()
    Hidden.seen.clear()

    Hidden.refused.add("after_delete")
    with pytest.raises(PermissionError):
        row.delete()
    assert configured_database.scalar("SELECT deleted_at FROM hidden") is None
    assert not row.is_deleted

    Hidden.refused.clear()
    Hidden.seen.clear()
    row.delete()
    assert Hidden.seen == ["before_delete", "after_delete"]
    assert configured_database.scalar("SELECT deleted_at FROM hidden") is not None

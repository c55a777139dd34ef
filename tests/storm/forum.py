"""A forum over three databases, whose posts refer to authors in the next one, and those who write and delete both.

Some write by sagas, of which some pause or die between two commits; others know no sagas, and write the author before
the post and delete it after. The authors with the lowest keys are left to whoever plants orphans.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from contextlib import ExitStack
from typing import Any, ClassVar, Final

import sqlalchemy as sa

from crosstie.orm import ActiveRecord, ConnectionManager, CrosstieError
from crosstie.orm.faults import armed
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.relation import BelongsTo
from crosstie.sagas import saga
from crosstie.workers import doorbell
from storm.mill import grind
from storm.stream import GivenUp, pause

__all__ = ["AUTHOR", "DOOMED", "MODELS", "PARENTS", "POST", "write_forum"]

DOOMED: Final = 40
"""Authors 1 to this one of each database are not touched by writers."""
TOGGLED: Final = 2
"""Authors of one plain writer, which come and go."""
EXPIRY_S: Final = 3.0
LONGEST_PAUSE_S: Final = 0.5


class _Author(IntegerPKMixin, ActiveRecord):
    id: int | None = None
    name: str = ""


class _Post(IntegerPKMixin, ActiveRecord):
    id: int | None = None
    author_id: int | None = None


class AuthorOfDefault(_Author):
    __table_name__ = "forum_authors"
    __connection__ = "default"


class AuthorOfSecondary(_Author):
    __table_name__ = "forum_authors"
    __connection__ = "secondary"


class AuthorOfTertiary(_Author):
    __table_name__ = "forum_authors"
    __connection__ = "tertiary"


class PostOfDefault(_Post):
    __table_name__ = "forum_posts"
    __connection__ = "default"

    author: ClassVar[BelongsTo[AuthorOfSecondary]] = BelongsTo(foreign_key="author_id")


class PostOfSecondary(_Post):
    __table_name__ = "forum_posts"
    __connection__ = "secondary"

    author: ClassVar[BelongsTo[AuthorOfTertiary]] = BelongsTo(foreign_key="author_id")


class PostOfTertiary(_Post):
    __table_name__ = "forum_posts"
    __connection__ = "tertiary"

    author: ClassVar[BelongsTo[AuthorOfDefault]] = BelongsTo(foreign_key="author_id")


PARENTS: Final = {"default": "secondary", "secondary": "tertiary", "tertiary": "default"}
"""Where the authors of a database's posts are."""
AUTHOR: Final[dict[str, type[_Author]]] = {
    "default": AuthorOfDefault,
    "secondary": AuthorOfSecondary,
    "tertiary": AuthorOfTertiary,
}
POST: Final[dict[str, type[_Post]]] = {
    "default": PostOfDefault,
    "secondary": PostOfSecondary,
    "tertiary": PostOfTertiary,
}
MODELS: Final[list[type[ActiveRecord]]] = [*AUTHOR.values(), *POST.values()]
_COMMITS: Final = ("saga.home-committed", "saga.branch-committed", "forward.home-committed", "forward.branch-committed")


class SagaWriter:
    """Adds posts with their authors and deletes them, in two databases at once."""

    def __init__(self, number: int, seed: int) -> None:
        self._choose = random.Random(seed)
        self._next = 10**7 + 10**5 * number
        self._alive: list[tuple[str, int]] = []

    def step(self) -> None:
        """One saga, which may raise."""
        with ExitStack() as stack:
            for place in _COMMITS:
                stack.enter_context(armed(place, self._between_commits))
            if self._choose.random() < 0.5 or len(self._alive) < 10:
                self._add()
            else:
                self._remove()

    def _add(self) -> None:
        database = self._choose.choice(list(PARENTS))
        self._next += 1
        rows: list[ActiveRecord] = [
            AUTHOR[PARENTS[database]](id=self._next),
            POST[database](id=self._next, author_id=self._next),
        ]
        recover = self._choose.choice(["backward", "forward"])
        try:
            with self._saga(database, recover):
                for row in self._choose.sample(rows, 2):
                    row.save()
                if self._choose.random() < 0.1:
                    raise GivenUp
        except GivenUp:
            return
        self._alive.append((database, self._next))

    def _remove(self) -> None:
        database, key = self._alive.pop(self._choose.randrange(len(self._alive)))
        with self._saga(database, "backward"):  # a delete of a row without a version cannot be redone
            models: list[type[ActiveRecord]] = [AUTHOR[PARENTS[database]], POST[database]]
            for model in self._choose.sample(models, 2):
                model.find(key).delete()

    def _saga(self, database: str, recover: Any) -> Any:
        home = self._choose.choice([database, PARENTS[database]])
        return saga("forum", home=home, recover=recover, expiry_s=EXPIRY_S)

    def _between_commits(self) -> None:
        """One half can be seen now, the other cannot; a process that dies here has its saga undone by others."""
        fate = self._choose.random()
        if fate < 0.05:
            sys.stdout.write("crashed\n")
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        elif fate < 0.5:
            pause(self._choose.uniform(0, LONGEST_PAUSE_S))


class PlainWriter:
    """Knows no sagas: an author comes before its posts and goes after them, each by a transaction of its own."""

    def __init__(self, number: int, seed: int) -> None:
        self._choose = random.Random(seed)
        self._first = 1_000 * (number + 1)
        self._present: set[tuple[str, int]] = set()

    def step(self) -> None:
        """An author comes, or goes; keys are used again. What fails half-way is deleted by the next turn of its key."""
        database = self._choose.choice(list(PARENTS))
        key = self._first + self._choose.randrange(TOGGLED)
        authors, posts = AUTHOR[PARENTS[database]].__table__, POST[database].__table__
        if (database, key) in self._present:
            _execute(database, sa.delete(posts).where(posts.c.author_id == key))
            _execute(PARENTS[database], sa.delete(authors).where(authors.c.id == key))
            self._present.remove((database, key))
        else:
            self._present.add((database, key))
            _execute(PARENTS[database], sa.insert(authors).values(id=key, name="plain"))
            _execute(database, sa.insert(posts).values([{"id": -10 * key - n, "author_id": key} for n in range(2)]))


def _execute(database: str, statement: sa.Executable) -> None:
    with ConnectionManager.get(database).autocommit.connect() as connection:
        connection.execute(statement)


def _write(number: int, seed: int) -> int:
    doorbell.deliver_locally(lambda _: None)
    steps = [SagaWriter(number, seed).step, PlainWriter(number, seed).step]
    choose = random.Random(seed)
    while True:
        try:
            choose.choices(steps, weights=[1, 2])[0]()
        except (CrosstieError, sa.exc.SQLAlchemyError) as error:
            sys.stdout.write(f"error {type(error).__name__}\n")
            sys.stdout.flush()
        pause(0.01)


def write_forum(count: int, seed: int) -> None:
    """Keep so many writers."""
    ConnectionManager.configure()
    grind(_write, count, seed)

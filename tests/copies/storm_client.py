"""Run as child processes by the storm: writers of users and posts, and workers; any may be killed at any moment."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

from copies.forum import define
from crosstie.orm import ConnectionManager, CrosstieError
from crosstie.outbox import sync_routes
from crosstie.sagas import saga
from crosstie.workers.sweep import sweep_database

__all__ = ["USERS", "work", "write"]

USERS = 8


class GivenUp(Exception):
    """Raised inside a saga that its writer thinks better of."""


class Writer:
    """Does one random thing after another."""

    def __init__(self, forum: Any, name: str, seed: int) -> None:
        self._forum = forum
        self._name = name
        self._choose = random.Random(seed)
        self._number = 0

    def step(self) -> None:
        """One write, or a saga of some."""
        acts: list[Callable[[], object]] = [
            self.rename, self.rename, self.rename_many, self.post, self.post, self.move, self.move_many, self.pay,
            self.badge, self.replace, self.story, self.story,
        ]  # fmt: skip
        self._choose.choice(acts)()

    def _new_name(self) -> str:
        self._number += 1
        return f"{self._name}-{self._number}"

    def _user(self) -> Any:
        return self._forum.User.find(self._choose.randint(1, USERS))

    def rename(self) -> None:
        """Change an original."""
        self._user().update(username=self._new_name())

    def rename_many(self) -> None:
        """Change some by one statement."""
        chosen = self._choose.sample(range(1, USERS + 1), 3)
        self._forum.User.find_all().where(id=chosen).update_all(username=self._new_name())

    def pay(self) -> None:
        """Add to an original."""
        self._user().increment(balance=1)

    def post(self) -> None:
        """Make children."""
        user = self._choose.randint(1, USERS)
        self._forum.Post.bulk_create([self._forum.Post(user_id=user) for _ in range(self._choose.randint(1, 3))])

    def _some_post(self) -> Any:
        newest = self._forum.Post.find_all().order_by("-id").first()
        if newest is None:
            return None
        return self._forum.Post.find_by(id=self._choose.randint(max(1, newest.id - 30), newest.id))

    def move(self) -> None:
        """Give a child another parent, or none."""
        found = self._some_post()
        if found is not None:
            found.update(user_id=self._choose.choice([None, *range(1, USERS + 1)]))

    def move_many(self) -> None:
        """All children of one, as far as they are few."""
        source, target = self._choose.randint(1, USERS), self._choose.randint(1, USERS)
        few = self._forum.Post.find_all().where(user_id=source).limit(5).pluck("id")
        self._forum.Post.find_all().where(id=few).update_all(user_id=target)

    def badge(self) -> None:
        """A child by another key, made or changed."""
        place, owner = self._choose.choice("ab"), f"user {self._choose.randint(1, USERS)}"
        self._forum.Badge(place=place, number=self._choose.randint(1, 5), owner=owner).upsert(on=("place", "number"))

    def replace(self) -> None:
        """Delete a parent, and insert one with its key."""
        found = self._user()
        found.delete()
        self._forum.User(id=found.id, email=found.email, username=self._new_name(), balance=found.balance).save()

    def story(self) -> None:
        """Some of it in a saga, which is sometimes given up."""
        try:
            with saga("story", home=self._choose.choice(["default", "secondary"]), expiry_s=0.5):
                self.rename()
                self.post()
                self.move()
                self.rename()
                if self._choose.random() < 0.3:
                    raise GivenUp
        except GivenUp:
            pass


def write(name: str, seed: int) -> None:
    """Write until killed; a refused or failed write is as good as any."""
    ConnectionManager.configure()
    writer = Writer(define(), name, seed)
    done = 0
    while True:
        try:
            writer.step()
        except CrosstieError as error:
            sys.stdout.write(f"{type(error).__name__}\n")
        else:
            done += 1
            sys.stdout.write(f"done {done}\n")
        sys.stdout.flush()


def work(name: str) -> None:
    """Finish sagas and deliver events until killed."""
    ConnectionManager.configure()
    forum = define()
    assert forum.Post is not None
    sync_routes()
    while True:
        for database in ("default", "secondary"):
            try:
                sweep_database(database, owner=name, limit_s=1)
            except CrosstieError as error:
                sys.stdout.write(f"{type(error).__name__}: {error}\n")
                sys.stdout.flush()

"""Audits of changes between the steps of transactions that overlap: each finds exactly what is durable by then."""

from __future__ import annotations

import random
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

import pytest

from bench import engines
from crosstie.orm.integrity import AuditScope
from crosstie.workers.audit import run_audit
from crosstie.workers.audit_triggers import create_noting
from integrity.tables import Linked, orphans

STEPS, WRITERS = 90, 3
POSTS = [range(100 * number + 1, 100 * number + 20) for number in range(WRITERS)]
USERS = [range(100 * number + 1, 100 * number + 11) for number in range(WRITERS)]
"""Those of each writer. The rows between them, which nobody touches, keep InnoDB's locks of gaps apart."""
FENCES = [100 * number for number in range(WRITERS + 1)]


@dataclass
class Writer:
    """One connection with rows of its own, which no other touches: nobody ever waits."""

    cursor: Any
    own: range
    durable: dict[int, int]
    rows: dict[int, int] = field(default_factory=dict)
    open: bool = False

    def __post_init__(self) -> None:
        self.rows = {row: key for row, key in self.durable.items() if row in self.own}

    def run(self, statement: str) -> None:
        """Within a transaction, which begins with it if need be."""
        if not self.open:
            self.cursor.execute("BEGIN")
            self.open = True
        self.cursor.execute(statement)

    def end(self, *, commit: bool) -> None:
        """What it has written is durable now, or gone."""
        if not self.open:
            return
        self.cursor.execute("COMMIT" if commit else "ROLLBACK")
        self.open = False
        if commit:
            for row in self.own:
                self.durable.pop(row, None)
            self.durable.update(self.rows)
        else:
            self.rows = {row: key for row, key in self.durable.items() if row in self.own}


def post(writer: Writer, dice: random.Random) -> None:
    """Insert, change or delete a post."""
    row, key = dice.choice(writer.own), dice.choice(dice.choice(USERS))
    if row not in writer.rows:
        writer.run(f"INSERT INTO posts (id, user_id) VALUES ({row}, {key})")
    elif dice.random() < 0.5:
        writer.run(f"UPDATE posts SET user_id = {key} WHERE id = {row}")
    else:
        writer.run(f"DELETE FROM posts WHERE id = {row}")
        del writer.rows[row]
        return
    writer.rows[row] = key


def join(writer: Writer, dice: random.Random) -> None:
    """Insert a user, or delete one that is there."""
    key = dice.choice(writer.own)
    if key in writer.rows:
        writer.run(f"DELETE FROM users WHERE id = {key}")
        del writer.rows[key]
    else:
        writer.run(f"INSERT INTO users (id) VALUES ({key})")
        writer.rows[key] = key


@pytest.mark.parametrize("pair", [("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join)
def test_each_audit_finds_what_is_durable(world: Linked) -> None:
    """Notes are numbered in another order than they commit, across any number of audits; the seed is printed."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    dice = random.Random(seed)
    create_noting(world.reference)
    users = {key: key for own in USERS for key in own[::2]}
    posts: dict[int, int] = {}
    world.register([*users, *FENCES])
    world.post([(fence, None) for fence in FENCES])
    audited = run_audit([world.reference], scope=AuditScope.CHANGES).results[0]
    assert audited.scope is AuditScope.FULL
    with ExitStack() as stack:

        def cursor(database: Any) -> Any:
            return stack.enter_context(closing(engines.connect(database.direct))).cursor()

        posting = [Writer(cursor(world.child), own, posts) for own in POSTS]
        joining = [Writer(cursor(world.parent), own, users) for own in USERS]
        for step in range(STEPS):
            if step % 10 == 9:
                audited = run_audit([world.reference], scope=AuditScope.CHANGES).results[0]
                expected = {row: key for row, key in posts.items() if key not in users}
                assert (audited.scope, orphans(audited)) == (AuditScope.CHANGES, expected)
                continue
            writer = dice.choice([*posting, *joining])
            if dice.random() < 0.25:
                writer.end(commit=dice.random() < 0.8)
            else:
                (post if writer in posting else join)(writer, dice)

"""Two linked tables, `posts` in the first database of a pair and `users` in the second, without any model.

Keys are seeded through raw connections; what an audit must find is computed in Python.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from bench.databases import Pair, TestDatabase
from crosstie.orm.integrity import AuditedReference, AuditResult, Endpoint, audit_reference

INTEGER_TYPES = {"sqlite": "BIGINT", "postgresql": "BIGINT", "mariadb": "BIGINT"}
TEXT_TYPES = {"sqlite": "TEXT", "postgresql": "TEXT", "mariadb": "VARCHAR(60)"}
UUID_TYPES = {"sqlite": "CHAR(32)", "postgresql": "UUID", "mariadb": "UUID"}


@dataclass
class Linked:
    """`posts.user_id` in `child` refers to `users.id` in `parent`."""

    child: TestDatabase
    parent: TestDatabase
    reference: AuditedReference

    def post(self, rows: Iterable[Sequence[Any]]) -> None:
        """Insert (id, user_id) rows."""
        self.child.execute_many("INSERT INTO posts (id, user_id) VALUES (%s, %s)", rows)

    def register(self, keys: Iterable[Any]) -> None:
        """Insert users."""
        self.parent.execute_many("INSERT INTO users (id) VALUES (%s)", [(key,) for key in keys])

    def audit(self, **options: Any) -> AuditResult:
        """Audit the reference."""
        return audit_reference(self.reference, **options)


def linked(
    pair: Pair,
    child_type: str | dict[str, str] = INTEGER_TYPES,
    parent_type: str | dict[str, str] | None = None,
    *,
    declared: Any = sa.BigInteger,
) -> Linked:
    """Create both tables; a type is the same everywhere, or one for each kind of database."""
    child, parent = pair.first, pair.second
    parent_type = child_type if parent_type is None else parent_type
    child_sql = child_type if isinstance(child_type, str) else child_type[child.kind]
    parent_sql = parent_type if isinstance(parent_type, str) else parent_type[parent.kind]
    child.execute(f"CREATE TABLE posts (id INTEGER PRIMARY KEY, user_id {child_sql})")
    child.execute("CREATE INDEX posts_user ON posts (user_id)")
    parent.execute(f"CREATE TABLE users (id {parent_sql} NOT NULL PRIMARY KEY)")
    return Linked(child, parent, reference(declared))


def reference(declared: Any = sa.BigInteger) -> AuditedReference:
    """The reference between the two tables, as connections `default` and `secondary`."""
    posts = sa.Table(
        "posts", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("user_id", declared)
    )
    users = sa.Table("users", sa.MetaData(), sa.Column("id", declared, primary_key=True))
    return AuditedReference.between(
        Endpoint("default", posts, posts.c.user_id), Endpoint("secondary", users, users.c.id)
    )


def orphans(result: AuditResult) -> dict[int, Any]:
    """Child id → foreign key, of everything that was found."""
    return {finding.child_key["id"]: finding.parent_key for finding in result.findings}

"""Text keys: the child's own order makes the chunks, the parent's own `=` decides what is an orphan."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from bench.databases import Pair
from crosstie.orm.integrity import AuditPhase, AuditProgress, AuditState, audit_chunk, fetch, plan_audit
from crosstie.orm.integrity.plan import ChunkResult
from integrity.tables import TEXT_TYPES, linked, orphans

WORDS = ["", " ", "a", "A", "aa", "Ab", "b", "é", "É", "ß", "ss", "z", "漢字", "😀", "%_'\\\"", "a b", "10", "9"]


@pytest.mark.parametrize("chunk_size", [1, 3, 50_000])
def test_identical_text_is_never_an_orphan(configured: Pair, chunk_size: int) -> None:
    """Accents, quotes, emoji, the empty string: each text finds the parent that is spelt the same."""
    world = linked(configured, TEXT_TYPES, declared=sa.String)
    world.post([(n, word) for n, word in enumerate(WORDS)] + [(99, None)])
    # A case-insensitive primary key takes one of each group only.
    kept = WORDS if configured.second.kind != "mariadb" else ["", "a", "aa", "Ab", "b", "z", "漢字", "%_'\\\"", "a b"]
    world.register(kept)
    result = world.audit(chunk_size=chunk_size)
    assert result.reason is None
    assert not set(orphans(result).values()) & set(kept)
    assert result.child_rows == len(WORDS)


@pytest.mark.parametrize("chunk_size", [1, 2, 50_000])
def test_the_parents_equality_decides(configured: Pair, chunk_size: int) -> None:
    """MariaDB's default collation matches 'ALICE' with 'alice'; PostgreSQL and SQLite do not."""
    world = linked(configured, TEXT_TYPES, declared=sa.String)
    world.register(["alice", "Bob", "carol "])
    children = ["alice", "ALICE", "Alice", "Bob", "bob", "dave", "Dave", "carol", "carol "]
    world.post([(n, child) for n, child in enumerate(children)])
    found = set(orphans(world.audit(chunk_size=chunk_size)).values())
    if configured.second.kind == "mariadb":
        assert found == {"dave", "Dave"}
    else:
        assert found == {"ALICE", "Alice", "bob", "dave", "Dave", "carol"}


def test_every_spelling_of_a_child_key_is_checked(configured: Pair) -> None:
    """A child's collation may call two texts one key; a parent that has one of them leaves the other an orphan."""
    types = {"sqlite": "TEXT COLLATE NOCASE", "postgresql": "TEXT", "mariadb": "VARCHAR(60)"}
    world = linked(configured, types, TEXT_TYPES, declared=sa.String)
    world.register(["k1", "k2"])
    world.post([(1, "k1"), (2, "K1"), (3, "k2"), (4, "K2"), (5, "k2 ")])
    found = orphans(world.audit(chunk_size=1))
    expected = {} if configured.second.kind == "mariadb" else {2: "K1", 4: "K2", 5: "k2 "}
    assert found == expected


def test_a_case_insensitive_parent_in_sqlite(configured: Pair) -> None:
    """A column COLLATE NOCASE matches other case, as SQLite itself would."""
    types = {**TEXT_TYPES, "sqlite": "TEXT COLLATE NOCASE"}
    world = linked(configured, TEXT_TYPES, types, declared=sa.String)
    world.register(["alice"])
    world.post([(1, "ALICE"), (2, "bob")])
    found = orphans(world.audit())
    assert found == ({1: "ALICE", 2: "bob"} if configured.second.kind == "postgresql" else {2: "bob"})


def test_padding_of_char_is_no_difference(configured: Pair) -> None:
    """CHAR(8) on either side compares without the blanks that fill it up."""
    padded = {"sqlite": "CHAR(8)", "postgresql": "CHAR(8)", "mariadb": "CHAR(8)"}
    for child_type, parent_type in ((padded, TEXT_TYPES), (TEXT_TYPES, padded)):
        world = linked(configured, child_type, parent_type, declared=sa.String)
        world.register(["ab", "cd"])
        world.post([(1, "ab"), (2, "cd"), (3, "ef"), (4, "a")])
        assert orphans(world.audit(chunk_size=2)) == {3: "ef", 4: "a"}
        configured.first.execute("DROP TABLE posts")
        configured.second.execute("DROP TABLE users")


@pytest.mark.parametrize("pair", [("mariadb", "postgresql")], indirect=True, ids="-".join)
def test_citext_parents_ignore_case(configured: Pair) -> None:
    """PostgreSQL's citext compares by itself; bound as plain text it would not."""
    if not configured.second.scalar("SELECT count(*) FROM pg_available_extensions WHERE name = 'citext'"):
        pytest.skip("this PostgreSQL has no citext")
    configured.second.execute("CREATE EXTENSION citext")
    world = linked(configured, TEXT_TYPES, "CITEXT", declared=sa.String)
    world.register(["alice"])
    world.post([(1, "ALICE"), (2, "bob")])
    assert orphans(world.audit()) == {2: "bob"}


@pytest.mark.parametrize("pair", [("postgresql", "mariadb")], indirect=True, ids="-".join)
def test_letters_that_the_parent_cannot_store_are_orphans(configured: Pair) -> None:
    """A latin1 column has no 漢; the key is an orphan, not an error of the server."""
    world = linked(configured, TEXT_TYPES, "VARCHAR(20) CHARACTER SET latin1", declared=sa.String)
    world.register(["é", "x"])
    world.post([(1, "é"), (2, "漢"), (3, "x"), (4, "y")])
    result = world.audit()
    assert result.reason is None
    assert orphans(result) == {2: "漢", 4: "y"}


def test_a_database_that_orders_text_otherwise_loses_no_key(configured: Pair) -> None:
    """Pages follow the child's own order: thousands of mixed words in small chunks add up."""
    letters = "aAbBéÉßsS _-0"
    words = sorted({x + y + z for x in letters for y in letters for z in letters})
    world = linked(configured, TEXT_TYPES, declared=sa.String)
    world.post(list(enumerate(words)))
    steps: list[AuditProgress] = []
    result = world.audit(chunk_size=100, progress=steps.append)
    assert result.state is AuditState.FINDINGS
    assert result.reason is None
    assert (result.keys_checked, result.orphan_rows) == (len(words), len(words))
    # Under a collation that ignores case a page of 100 keys holds several times as many texts.
    assert sum(step.phase is AuditPhase.SCANNING for step in steps) >= 5


NARROW_CHILDREN = pytest.mark.parametrize(
    "pair", [("postgresql", "mariadb"), ("sqlite", "mariadb")], indirect=True, ids="-".join
)
BINARY = {**TEXT_TYPES, "sqlite": "TEXT UNIQUE"}
"""Only the index of a key tells which collation a column of SQLite has."""


@NARROW_CHILDREN
def test_parents_in_another_spelling_are_told(configured: Pair) -> None:
    """Case, accents and trailing spaces: no orphans to the parent's collation, and the child tells them apart."""
    world = linked(configured, BINARY, TEXT_TYPES, declared=sa.String)
    world.register(["alice", "resume", "carol"])
    world.post([(1, "ALICE"), (2, "résumé"), (3, "carol "), (4, "carol"), (5, "dave")])
    result = world.audit(chunk_size=2)
    assert (result.reason, orphans(result)) == (None, {5: "dave"})
    (note,) = result.notes
    assert note.startswith("3 keys have a parent in another spelling only, such as ")
    assert "secondary.users.id takes for equal what default.posts.user_id tells apart" in note
    plan = plan_audit(world.reference)
    answer = audit_chunk(world.reference, plan, plan.chunks[0])
    assert answer.alike == len(answer.such_as) == 3
    assert ChunkResult.of(answer.as_document()) == answer


@NARROW_CHILDREN
def test_many_parents_in_another_spelling_stop_the_audit(configured: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one key in a hundred: the two collations differ, and what is meant has to be said."""
    monkeypatch.setattr(fetch, "_FEW", 3)
    world = linked(configured, BINARY, TEXT_TYPES, declared=sa.String)
    world.register(f"k{n}" for n in range(500))
    world.post([(n, f"K{n}" if n < 4 else f"k{n}") for n in range(500)])
    few = world.audit()
    assert (few.state, len(few.notes)) == (AuditState.OK, 1)
    world.child.execute("UPDATE posts SET user_id = 'K9' WHERE id = 9")
    world.child.execute("UPDATE posts SET user_id = 'K8' WHERE id = 8")
    result = world.audit()
    assert result.state is AuditState.INCOMPLETE
    for told in ("6 of 500 keys of default.posts.user_id", "the collation of secondary.users.id", "Give both columns"):
        assert told in (result.reason or "")


@pytest.mark.parametrize("pair", [("mariadb", "postgresql"), ("mariadb", "sqlite")], indirect=True, ids="-".join)
def test_orphans_that_only_the_child_takes_for_their_parents_are_told(configured: Pair) -> None:
    """The parent's collation decides, which is the stricter one; the report says what may be behind it."""
    world = linked(configured, TEXT_TYPES, declared=sa.String)
    world.register(["alice"])
    world.post([(1, "alice")])
    assert world.audit().notes == ()
    world.post([(2, "ALICE")])
    result = world.audit()
    assert orphans(result) == {2: "ALICE"}
    (note,) = result.notes
    assert note.startswith("default.posts.user_id takes for equal what secondary.users.id tells apart")

"""Integer keys: every planted orphan is found, and nothing else, however the chunks fall."""

from __future__ import annotations

import random

import pytest

from bench.databases import Pair
from crosstie.orm import ConnectionManager
from crosstie.orm.integrity import AuditState
from integrity.tables import linked, orphans

BIG = 2**63 - 1
KEYS = [-(2**63), -(2**40), -7, -1, 0, 1, 2, 3, 5, 8, 2**31 - 1, 2**31, 2**40, BIG]


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 50_000])
def test_planted_orphans_are_found_exactly(configured: Pair, chunk_size: int) -> None:
    """Negative, zero and huge keys, several rows of one key, and NULL, which is no orphan."""
    world = linked(configured)
    missing = {-(2**63), -1, 0, 3, 2**40, BIG}
    world.register(set(KEYS) - missing | {4, 6, -100})
    rows = [(n, key) for n, key in enumerate([*KEYS, *KEYS])]
    world.post([*rows, (100, None), (101, None)])

    result = world.audit(chunk_size=chunk_size)

    assert result.reason is None
    assert orphans(result) == {n: key for n, key in rows if key in missing}
    assert (result.keys_checked, result.child_rows) == (len(KEYS), len(rows))
    assert (result.orphan_keys, result.orphan_rows) == (len(missing), 2 * len(missing))
    assert result.state is AuditState.FINDINGS


def test_no_orphans_is_ok(configured: Pair) -> None:
    """Where each key has its parent the state is OK and nothing is listed."""
    world = linked(configured)
    world.register(range(-5, 50))
    world.post([(n, n % 40 - 5) for n in range(100)])
    result = world.audit(chunk_size=7)
    assert (result.state, result.keys_checked, result.findings) == (AuditState.OK, 40, ())


def test_empty_tables_are_ok_only_without_children(configured: Pair) -> None:
    """No child: OK. Children and no parent at all: everything is an orphan, and a note doubts the database."""
    world = linked(configured)
    assert world.audit().state is AuditState.OK
    world.post([(1, None)])
    assert world.audit().state is AuditState.OK
    world.post([(2, 7)])
    result = world.audit()
    assert orphans(result) == {2: 7}
    assert any("no rows at all" in note for note in result.notes)


WIDE = {
    "sqlite": ["BIGINT"],
    "postgresql": ["BIGINT", "NUMERIC(20, 0)"],
    "mariadb": ["BIGINT", "BIGINT UNSIGNED", "DECIMAL(20, 0)"],
}
POSSIBLE = {
    "BIGINT": range(-(2**63), 2**63),
    "BIGINT UNSIGNED": range(2**64),
    "NUMERIC(20, 0)": range(1 - 10**20, 10**20),
    "DECIMAL(20, 0)": range(1 - 10**20, 10**20),
}


def test_integers_beyond_63_bits_agree_with_brute_force(configured: Pair) -> None:
    """Unsigned, signed and decimal at either end: a key that no parent could have is an orphan, the others compare."""
    interesting = [0, 1, 7, -1, -7, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1, 2**64, -(2**63), -(2**64)]
    for of_child in WIDE[configured.first.kind]:
        for of_parent in WIDE[configured.second.kind]:
            world = linked(configured, of_child, of_parent)
            for seed in (f"{of_child} {of_parent} {n}" for n in range(3)):
                chance = random.Random(seed)
                possible = [key for key in interesting if key in POSSIBLE[of_child]]
                children = [chance.choice([None, *possible]) for _ in range(25)]
                parents = {key for key in chance.sample(interesting, 8) if key in POSSIBLE[of_parent]}
                world.child.execute("DELETE FROM posts")
                world.parent.execute("DELETE FROM users")
                world.register(parents)
                world.post(list(enumerate(children)))
                result = world.audit(chunk_size=chance.randint(1, 9))
                expected = {n: key for n, key in enumerate(children) if key is not None and key not in parents}
                assert (seed, result.reason, orphans(result)) == (seed, None, expected)
                assert result.keys_checked == len(set(children) - {None})
            configured.first.execute("DROP TABLE posts")
            configured.second.execute("DROP TABLE users")
            ConnectionManager.configure(configured.configuration)  # prepared statements know the types of before

"""Random tables: the audit agrees with a comparison in Python, key by key."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.databases import Pair
from integrity.tables import TEXT_TYPES, Linked, linked, orphans

INT64 = st.integers(-(2**63), 2**63 - 1)
KEYS = st.one_of(st.integers(-6, 6), INT64, st.sampled_from([2**31 - 1, 2**31, -(2**31) - 1, 2**63 - 1, -(2**63)]))


@pytest.mark.parametrize(
    "pair", [("sqlite", "sqlite"), ("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join
)
def test_the_audit_agrees_with_brute_force(world: Linked) -> None:
    """Children and parents drawn at random, NULLs, duplicates and chunks of every size among them."""

    @settings(
        max_examples=40,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(
        children=st.lists(st.one_of(st.none(), KEYS), max_size=40),
        parents=st.sets(KEYS, max_size=30),
        copied=st.integers(0, 40),
        chunk_size=st.integers(1, 50),
    )
    def compare(children: list[int | None], parents: set[int], copied: int, chunk_size: int) -> None:
        parents = parents | {key for key in children[:copied] if key is not None}
        world.child.execute("DELETE FROM posts")
        world.parent.execute("DELETE FROM users")
        world.register(parents)
        world.post(list(enumerate(children)))

        result = world.audit(chunk_size=chunk_size)

        assert result.reason is None
        assert orphans(result) == {n: key for n, key in enumerate(children) if key is not None and key not in parents}
        assert result.keys_checked == len(set(children) - {None})

    compare()


IGNORING = {
    "sqlite": "INSERT OR IGNORE INTO users VALUES (%s)",
    "postgresql": "INSERT INTO users VALUES (%s) ON CONFLICT DO NOTHING",
    "mariadb": "INSERT IGNORE INTO users VALUES (%s)",
}


@pytest.mark.parametrize(
    "pair", [("sqlite", "sqlite"), ("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join
)
def test_for_text_the_audit_agrees_with_the_parents_own_equality(configured: Pair) -> None:
    """Each row is asked about by itself, of the parent's server; the audit must say the same of all."""
    world = linked(configured, TEXT_TYPES, declared=sa.String)
    words = st.text("aAbBéÉßs😀 '%_\\", max_size=4)

    @settings(
        max_examples=30,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(
        children=st.lists(st.one_of(st.none(), words), max_size=25),
        parents=st.lists(words, max_size=15),
        chunk_size=st.integers(1, 30),
    )
    def compare(children: list[str | None], parents: list[str], chunk_size: int) -> None:
        world.child.execute("DELETE FROM posts")
        world.parent.execute("DELETE FROM users")
        world.parent.execute_many(IGNORING[world.parent.kind], [(word,) for word in parents])
        world.post(list(enumerate(children)))
        with world.parent.connect() as connection:
            cursor = connection.cursor()
            place = "?" if world.parent.kind == "sqlite" else "%s"
            expected = {}
            for number, word in enumerate(children):
                cursor.execute(f"SELECT count(*) FROM users WHERE id = {place}", (word,))
                if word is not None and cursor.fetchone()[0] == 0:
                    expected[number] = word

        result = world.audit(chunk_size=chunk_size)

        assert result.reason is None
        assert orphans(result) == expected

    compare()

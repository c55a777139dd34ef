"""Random tables: the audit agrees with a comparison in Python, key by key."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from integrity.tables import Linked, orphans

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

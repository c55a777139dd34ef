"""Integer keys: every planted orphan is found, and nothing else, however the chunks fall."""

from __future__ import annotations

import pytest

from bench.databases import Pair
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

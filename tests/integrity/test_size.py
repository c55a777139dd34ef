"""Hundreds of thousands of keys: read in chunks, and never held all at once."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from crosstie.orm.integrity import AuditState, Strategy
from crosstie.orm.integrity.integers import IntegerParents
from integrity.tables import Linked

KEYS = 200_000
SERIES = "INSERT INTO {table} SELECT {columns} FROM generate_series(1, 200000) n WHERE {condition}"
SEQUENCE = "INSERT INTO {table} SELECT {columns} FROM (SELECT seq AS n FROM seq_1_to_200000) s WHERE {condition}"


@pytest.mark.parametrize("pair", [("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join)
def test_two_hundred_thousand_keys_within_memory(world: Linked) -> None:
    """500 planted orphans among them are counted; Python holds a few chunks, not the table."""
    series = {"postgresql": SERIES, "mariadb": SEQUENCE}
    world.child.execute(series[world.child.kind].format(table="posts", columns="n, n * 10", condition="1 = 1"))
    world.parent.execute(series[world.parent.kind].format(table="users", columns="n * 10", condition="n % 400 <> 0"))

    tracemalloc.start()
    result = world.audit(chunk_size=10_000)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert (result.state, result.reason) == (AuditState.FINDINGS, None)
    assert (result.keys_checked, result.child_rows, result.orphan_keys) == (KEYS, KEYS, 500)
    assert peak_bytes < 24 * 2**20
    assert result.seconds < 60


@pytest.mark.parametrize("pair", [("mariadb", "postgresql")], indirect=True, ids="-".join)
def test_few_children_among_many_parents_are_looked_up(world: Linked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children far apart in a dense parent: the scan asks for their keys and does not read every parent between."""
    world.parent.execute(SERIES.format(table="users", columns="n", condition="n % 1000 <> 500"))
    world.post([(n, n * 500) for n in range(1, 400)])
    read = IntegerParents.page
    pages: list[int] = []

    def counted(self: IntegerParents, *args: int) -> Any:
        page = read(self, *args)
        pages.append(len(page[0]))
        return page

    monkeypatch.setattr(IntegerParents, "page", counted)
    result = world.audit(chunk_size=500, strategy=Strategy.PACKED)
    assert (result.keys_checked, result.orphan_keys) == (399, 200)
    assert pages == [1_000]

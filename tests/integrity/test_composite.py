"""Keys of several columns, declared as text: each part by its own type, a row with a NULL part refers to nothing."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from bench.databases import Pair
from crosstie.orm import ConnectionManager
from crosstie.orm.integrity import AuditScope, AuditState, UnknownReference, audit_reference, key_text
from crosstie.workers.audit import run_audit
from crosstie.workers.audit_references import known_reference, reflected_reference, select_references
from crosstie.workers.audit_triggers import create_noting
from crosstie.workers.errors import ChangesNotNoted
from crosstie.workers.repair import repair_reference
from crosstie.workers.repair.errors import RepairRefused

REFERENCE = "default.parcels.(shop, code) -> secondary.items.(shop, code)"
Command = Callable[..., tuple[int, str, str]]
SECOND = {
    "text": {"sqlite": "VARCHAR(20)", "postgresql": "VARCHAR(20)", "mariadb": "VARCHAR(20)"},
    "uuid": {"sqlite": "CHAR(36)", "postgresql": "UUID", "mariadb": "BINARY(16)"},
}


def create(pair: Pair, second: str) -> None:
    """Lines of items, by a shop's number and a code."""
    child, parent = pair.first, pair.second
    child.execute(f"CREATE TABLE parcels (id INTEGER PRIMARY KEY, shop BIGINT, code {SECOND[second][child.kind]})")
    child.execute("CREATE INDEX parcels_item ON parcels (shop, code)")
    parent.execute(
        f"CREATE TABLE items (shop INTEGER NOT NULL, code {SECOND[second][parent.kind]} NOT NULL,"
        " PRIMARY KEY (shop, code))"
    )


def spelt(kind: str, value: Any) -> Any:
    """A part as a database of this kind stores it."""
    if not isinstance(value, uuid.UUID):
        return value
    return value.bytes if kind == "mariadb" else str(value)


@pytest.mark.parametrize("second", ["text", "uuid"])
def test_keys_of_two_columns_agree_with_brute_force(configured: Pair, no_models: None, second: str) -> None:
    """Parts drawn at random, NULL among them; pages of every size, in the child's own order."""
    create(configured, second)
    child, parent = configured.first, configured.second
    codes = ["a", "b", "é", "a b", "%", ""] if second == "text" else [uuid.UUID(int=n * 2**90 + 7) for n in range(6)]
    reference = reflected_reference(REFERENCE)
    for seed in range(6):
        chance = random.Random(f"{second} {seed}")
        rows = [(chance.choice([None, -1, 1, 2, 2**40]), chance.choice([None, *codes])) for _ in range(50)]
        items = {(shop, chance.choice(codes)) for shop in (-1, 1, 2) for _ in range(4)}
        child.execute("DELETE FROM parcels")
        parent.execute("DELETE FROM items")
        parent.execute_many(
            "INSERT INTO items (shop, code) VALUES (%s, %s)", [(n, spelt(parent.kind, code)) for n, code in items]
        )
        child.execute_many(
            "INSERT INTO parcels (id, shop, code) VALUES (%s, %s, %s)",
            [(n, shop, spelt(child.kind, code)) for n, (shop, code) in enumerate(rows)],
        )
        referring: dict[int, Any] = {n: row for n, row in enumerate(rows) if None not in row}
        result = audit_reference(reference, chunk_size=chance.randint(1, 12))
        # Two columns of text that no model calls UUIDs are text.
        found = {one.child_key["id"]: key_text(one.parent_key) for one in result.findings}
        expected = {n: key_text(row) for n, row in referring.items() if row not in items}
        assert (seed, result.reason, found) == (seed, None, expected)
        assert (result.keys_checked, result.child_rows) == (len(set(referring.values())), len(referring))


@pytest.mark.parametrize("pair", [("postgresql", "mariadb"), ("sqlite", "postgresql")], indirect=True, ids="-".join)
def test_a_hot_key_is_counted(configured: Pair, no_models: None) -> None:
    """More rows than are looked at one by one; the first thousand are listed."""
    create(configured, "text")
    configured.first.execute_many("INSERT INTO parcels VALUES (%s, 1, 'x')", [(n,) for n in range(5_001)])
    result = audit_reference(reflected_reference(REFERENCE))
    assert (result.orphan_keys, result.orphan_rows, len(result.findings)) == (1, 5_001, 1_000)


def test_each_part_is_compared_by_the_parents_own_equality(configured: Pair, no_models: None) -> None:
    """And the query of a finding shows its rows."""
    create(configured, "text")
    configured.second.execute("INSERT INTO items VALUES (1, 'alice')")
    configured.first.execute(
        "INSERT INTO parcels VALUES (1, 1, 'ALICE'), (2, 1, 'bob'), (3, 2, 'alice'), (4, 1, 'alice')"
    )
    result = audit_reference(reflected_reference(REFERENCE))
    found = {one.child_key["id"] for one in result.findings}
    assert found == ({2, 3} if configured.second.kind == "mariadb" else {1, 2, 3})
    query = next(one.query for one in result.findings if one.child_key["id"] == 3)
    assert [row[0] for row in configured.first.rows(query)] == [3]


@pytest.mark.parametrize("pair", [("postgresql", "mariadb"), ("mariadb", "sqlite")], indirect=True, ids="-".join)
def test_they_are_audited_in_runs_and_in_parts(
    configured: Pair, no_models: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the name in the settings, however it is spaced; what was orphaned is looked at again by the next part."""
    create(configured, "text")
    monkeypatch.setenv(
        "CROSSTIE_AUDIT__REFERENCES", json.dumps(["default.parcels.( shop,code )->secondary.items.(shop,code)"])
    )
    ConnectionManager.configure(configured.configuration)
    assert [one.name for one in select_references(["parcels.(shop, code)"])] == [REFERENCE]
    reference = known_reference(REFERENCE)
    assert reference is not None
    configured.first.execute("INSERT INTO parcels VALUES (1, 1, 'x'), (2, 7, 'y')")
    configured.second.execute("INSERT INTO items VALUES (1, 'x')")
    for scope in (AuditScope.FULL, AuditScope.PART):
        (result,) = run_audit([reference], scope=scope).results
        assert (result.reason, [one.parent_key for one in result.findings]) == (None, [(7, "y")])
    assert configured.first.rows("SELECT DISTINCT parent_key FROM crosstie_finding") == [("(7, y)",)]
    with pytest.raises(ChangesNotNoted, match="several columns"):
        create_noting(reference)
    with pytest.raises(RepairRefused, match="2 columns"):
        repair_reference(reference, "quarantine")


@pytest.mark.parametrize("pair", [("sqlite", "postgresql")], indirect=True, ids="-".join)
def test_parts_that_do_not_fit_are_refused(configured: Pair, no_models: None, audit: Command) -> None:
    """Another number of columns, an unknown one, one of another kind."""
    create(configured, "text")
    with pytest.raises(UnknownReference, match="as many columns"):
        reflected_reference("default.parcels.(shop, code) -> secondary.items.shop")
    with pytest.raises(UnknownReference, match=r"several as \.\(a, b\)"):
        reflected_reference("default.parcels.(shop, ) -> secondary.items.(shop, code)")
    result = audit_reference(reflected_reference("default.parcels.(code, shop) -> secondary.items.(shop, code)"))
    assert result.state is AuditState.INCOMPLETE
    assert "default.parcels.code" in (result.reason or "")
    status, out, _ = audit("--from-sql", REFERENCE, "--json")
    assert (status, json.loads(out)["references"][0]["reference"]) == (0, REFERENCE)

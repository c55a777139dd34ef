"""UUID keys, in each storage that the databases have for them."""

from __future__ import annotations

import uuid

import pytest
import sqlalchemy as sa

from bench.databases import Pair
from crosstie.orm.integrity import AuditState
from integrity.tables import UUID_TYPES, linked, orphans


def some_uuids() -> list[uuid.UUID]:
    """Versions 1, 4 and 7 mixed: MariaDB does not order them by their bytes."""
    fixed = [uuid.UUID(f"{n * 7919:012x}7abc8{n:015x}") for n in range(60)]
    named = [uuid.UUID(bytes=uuid.uuid5(uuid.NAMESPACE_DNS, str(n)).bytes, version=4) for n in range(60)]
    timed = [uuid.UUID(f"{n * 104729:08x}-1234-1abc-8000-0123456789ab") for n in range(60)]
    return fixed + named + timed


def stored(kind: str, value: uuid.UUID) -> str:
    """How `UUID_TYPES` keeps it in this kind of database."""
    return value.hex if kind == "sqlite" else str(value)


@pytest.mark.parametrize("chunk_size", [7, 50_000])
def test_planted_orphans_are_found_exactly(configured: Pair, chunk_size: int) -> None:
    """Native types and text without dashes; pages in MariaDB's own order of UUIDs lose none."""
    world = linked(configured, UUID_TYPES, declared=sa.Uuid)
    keys = some_uuids()
    missing = set(keys[::9])
    world.register(stored(world.parent.kind, key) for key in keys if key not in missing)
    world.post([(n, stored(world.child.kind, key)) for n, key in enumerate(keys)])
    result = world.audit(chunk_size=chunk_size)
    assert result.reason is None
    assert orphans(result) == {n: key for n, key in enumerate(keys) if key in missing}
    assert result.keys_checked == len(keys)


def test_text_with_dashes_finds_native_uuids_and_back(configured: Pair) -> None:
    """CHAR(36), in any case of letters, against whatever the other database has."""
    dashed = "CHAR(36)"
    keys = some_uuids()[:20]
    for child_type, parent_type in ((dashed, UUID_TYPES), (UUID_TYPES, dashed)):
        world = linked(configured, child_type, parent_type, declared=sa.Uuid)
        parents = [str(key) if parent_type is dashed else stored(world.parent.kind, key) for key in keys]
        children = [str(key) if child_type is dashed else stored(world.child.kind, key) for key in keys]
        world.register(parent.upper() for parent in parents[1:])
        world.post(list(enumerate(children)))
        result = world.audit(chunk_size=6)
        assert result.reason is None
        assert orphans(result) == {0: keys[0]}
        configured.first.execute("DROP TABLE posts")
        configured.second.execute("DROP TABLE users")


def test_text_that_is_no_uuid_makes_the_audit_incomplete(configured: Pair) -> None:
    """What cannot be read as a key is neither OK nor an orphan."""
    world = linked(configured, "VARCHAR(36)", UUID_TYPES, declared=sa.Uuid)
    world.post([(1, "not-a-uuid")])
    result = world.audit()
    assert result.state is AuditState.INCOMPLETE
    assert "not-a-uuid" in (result.reason or "")


@pytest.mark.parametrize("pair", [("postgresql", "mariadb"), ("sqlite", "postgresql")], indirect=True, ids="-".join)
def test_one_uuid_spelt_in_several_ways_is_one_key(configured: Pair) -> None:
    """Its spellings lie in different chunks; each of its rows is counted once."""
    world = linked(configured, "VARCHAR(36)", UUID_TYPES, declared=sa.Uuid)
    key = uuid.UUID("abcdef00-1234-4abc-8def-0123456789ab")
    world.post([(1, str(key)), (2, str(key).upper()), (3, key.hex), (4, None)])
    result = world.audit(chunk_size=1)
    assert result.reason is None
    assert orphans(result) == {1: key, 2: key, 3: key}
    assert (result.orphan_keys, result.orphan_rows) == (1, 3)

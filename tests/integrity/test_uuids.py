"""UUID keys, in each storage that the databases have for them."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from bench.databases import Pair
from bench.servers import in_ci
from crosstie.orm import ConnectionManager
from crosstie.orm.integrity import AuditState, Strategy, plan_audit, uuid_set
from crosstie.orm.integrity import uuids as packed_uuids
from crosstie.orm.integrity.byte_order import byte_order
from integrity.tables import UUID_TYPES, Linked, linked, orphans


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


Spelling = Callable[[uuid.UUID], Any]


def plainly(key: uuid.UUID) -> str:
    """32 digits."""
    return key.hex


def loudly(key: uuid.UUID) -> str:
    """With dashes, in upper case."""
    return str(key).upper()


def anyhow(key: uuid.UUID) -> str:
    """One of four spellings; which of them, the key tells."""
    text = str(key) if key.int % 2 else key.hex
    return text.upper() if key.int % 3 else text


def as_bytes(key: uuid.UUID) -> bytes:
    """Sixteen of them, in the usual order."""
    return key.bytes


STORAGES: dict[str, list[tuple[str, Spelling]]] = {
    "sqlite": [("CHAR(32)", plainly), ("BLOB", as_bytes), ("TEXT", anyhow)],
    "postgresql": [("UUID", str), ("BYTEA", as_bytes), ("CHAR(36)", loudly), ("TEXT", anyhow)],
    "mariadb": [
        ("UUID", str),
        ("BINARY(16)", as_bytes),
        ("CHAR(36)", loudly),
        ("VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin", anyhow),
    ],
}


def test_every_storage_agrees_with_brute_force_in_every_other(
    configured: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each storage of the child with each of the parent; keys of every version, pages and sets of every size."""
    monkeypatch.setattr(packed_uuids, "_KEYS_OF_A_SET", 10)
    monkeypatch.setattr(packed_uuids, "_GATHERED", 15)
    monkeypatch.setattr(packed_uuids, "_PARENTS_AT_ONCE", 7)
    monkeypatch.setattr(uuid_set, "_CROWDED", 3)
    for of_child in STORAGES[configured.first.kind]:
        for of_parent in STORAGES[configured.second.kind]:
            world = linked(configured, of_child[0], of_parent[0], declared=sa.Uuid)
            compare_at_random(world, of_child[1], of_parent[1])
            configured.first.execute("DROP TABLE posts")
            configured.second.execute("DROP TABLE users")
            ConnectionManager.configure(configured.configuration)  # prepared statements know the types of before


def compare_at_random(world: Linked, child_spelling: Spelling, parent_spelling: Spelling) -> None:
    """Two tables of keys drawn at random, each audited as sets and by asking the parent."""
    keys = [*some_uuids()[::4], *(uuid.UUID(int=number) for number in (0, 1, 2**64, 2**128 - 1))]
    for seed in (
        f"{world.child.kind} {child_spelling.__name__} {world.parent.kind} {n}" for n in range(1 if in_ci() else 2)
    ):
        chance = random.Random(seed)
        children = [chance.choice([None, *keys]) for _ in range(40)]
        parents, page_size = chance.sample(keys, 20), chance.randint(1, 20)
        world.child.execute("DELETE FROM posts")
        world.parent.execute("DELETE FROM users")
        world.register(map(parent_spelling, parents))
        world.post([(n, None if key is None else child_spelling(key)) for n, key in enumerate(children)])
        expected = {n: key for n, key in enumerate(children) if key is not None and key not in parents}
        for strategy in (Strategy.PACKED, Strategy.FETCH):
            result = world.audit(chunk_size=page_size, strategy=strategy)
            assert (seed, strategy, result.reason, orphans(result)) == (seed, strategy, None, expected)
            assert result.child_rows == len(children) - children.count(None)
            assert result.keys_checked == len(set(children) - {None})


@pytest.mark.parametrize("pair", [("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join)
def test_parents_are_read_once_where_no_order_is_shared(configured: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pages there are, and however many chunks are asked for; unless memory holds no more keys."""
    world, key = numbered_uuids(configured)
    passes = count_passes(monkeypatch)
    assert len(plan_audit(world.reference, page_size=5, chunks=4).chunks) == 1
    assert orphans(world.audit(chunk_size=5)) == {0: key}
    assert len(passes) == 1

    monkeypatch.setattr(packed_uuids, "_GATHERED", 10)
    assert len(plan_audit(world.reference, page_size=5, chunks=8).chunks) == 4
    assert orphans(world.audit(chunk_size=5)) == {0: key}
    assert 2 <= len(passes) - 1 <= 4


@pytest.mark.parametrize("pair", [("postgresql", "postgresql")], indirect=True, ids="-".join)
def test_where_both_sort_by_bytes_keys_have_a_range_of_parents(
    configured: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So chunks are as many as wanted, and ranges do not overlap."""
    world, key = numbered_uuids(configured)
    passes = count_passes(monkeypatch)
    monkeypatch.setattr(packed_uuids, "_KEYS_OF_A_SET", 10)
    assert len(plan_audit(world.reference, page_size=5, chunks=4).chunks) == 4
    assert orphans(world.audit(chunk_size=5)) == {0: key}
    ends = [end for one in passes for end in one]
    assert ends == sorted(ends)
    assert len(passes) >= 2


def numbered_uuids(configured: Pair) -> tuple[Linked, uuid.UUID]:
    """Forty keys that look random, and the only one without a parent."""
    world = linked(configured, UUID_TYPES, declared=sa.Uuid)
    keys = [uuid.UUID(int=n * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128, version=4) for n in range(1, 41)]
    world.register(map(str, keys[1:]))
    world.post([(n, str(key)) for n, key in enumerate(keys)])
    world.child.execute("ANALYZE posts" if world.child.kind == "postgresql" else "ANALYZE TABLE posts")
    return world, keys[0]


def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, bytes]]:
    """Fills with the least and the greatest of the parents that are read, for each time."""
    passes: list[tuple[bytes, bytes]] = []
    between = packed_uuids._Parents.between

    def counted(self: packed_uuids._Parents, least: bytes, most: bytes) -> Iterator[uuid_set.Halves]:
        passes.append((least, most))
        return between(self, least, most)

    monkeypatch.setattr(packed_uuids._Parents, "between", counted)
    return passes


@pytest.mark.parametrize("pair", [("postgresql", "mariadb"), ("sqlite", "postgresql")], indirect=True, ids="-".join)
def test_a_spelling_that_nothing_would_find_again_is_incomplete(configured: Pair) -> None:
    """In both cases of letters at once, or with dashes elsewhere: neither passed over nor called an orphan."""
    world = linked(configured, "TEXT", UUID_TYPES, declared=sa.Uuid)
    for wrong in ("ABCDEF00-1234-4abc-8def-0123456789ab", "abcdef00123-44abc8def0123456-7-8-9ab", "z" * 32):
        world.child.execute("DELETE FROM posts")
        world.post([(1, str(some_uuids()[0])), (2, wrong)])
        result = world.audit()
        assert result.state is AuditState.INCOMPLETE
        assert wrong in (result.reason or "")


@pytest.mark.parametrize("pair", [("mariadb", "postgresql"), ("postgresql", "sqlite")], indirect=True, ids="-".join)
def test_a_parent_is_found_however_it_is_spelt(configured: Pair) -> None:
    """Among sets a parent is its bytes; and text that is no UUID is nobody's parent."""
    world = linked(configured, UUID_TYPES, "VARCHAR(60)", declared=sa.Uuid)
    keys = some_uuids()[:2]
    world.register([str(keys[0]).title(), "nobody", "zz" * 16])
    world.post([(n, stored(world.child.kind, key)) for n, key in enumerate(keys)])
    result = world.audit()
    assert (result.reason, orphans(result)) == (None, {1: keys[1]})


def test_bytes_in_another_order_are_refused(configured: Pair) -> None:
    """Read in the usual order they would be other UUIDs, and all of them orphans."""
    bytes_in = {"sqlite": "BLOB", "postgresql": "BYTEA", "mariadb": "BINARY(16)"}
    world = linked(configured, bytes_in, UUID_TYPES, declared=sa.Uuid)
    keys = [uuid.UUID(bytes=uuid.uuid5(uuid.NAMESPACE_DNS, str(n)).bytes, version=4) for n in range(30)]
    world.register(stored(world.parent.kind, key) for key in keys)
    world.post([(n, key.bytes_le) for n, key in enumerate(keys)])
    result = world.audit()
    assert result.state is AuditState.INCOMPLETE
    for told in ("default.posts.user_id has the order of .NET", "secondary.users.id has the usual order"):
        assert told in (result.reason or "")


def test_the_order_of_bytes_is_told_by_their_versions() -> None:
    """Pure: swapped times, parts turned round; what is no UUID of any version has the usual order."""
    timed = [uuid.UUID(f"{n * 104729 % 2**32:08x}-1234-1abc-8000-0123456789ab") for n in range(40)]
    assert byte_order([key.bytes for key in timed]) == "the usual order"
    swapped = [key.bytes[6:8] + key.bytes[4:6] + key.bytes[:4] + key.bytes[8:] for key in timed]
    assert "UUID_TO_BIN" in byte_order(swapped)
    assert ".NET" in byte_order([key.bytes_le for key in timed])
    assert byte_order([key.bytes_le for key in timed[:5]]) == "the usual order"
    assert byte_order([random.Random(n).randbytes(16) for n in range(100)]) == "the usual order"
    assert byte_order([uuid.UUID(int=n).bytes for n in range(100)]) == "the usual order"

"""An audit that has not seen everything never says OK: each way of seeing less is broken on purpose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from crosstie.orm.errors import DatabaseUnavailable
from crosstie.orm.integrity import AuditPhase, AuditProgress, AuditResult, AuditState, Key, ScanIncomplete
from crosstie.orm.integrity.child import ChildColumn
from crosstie.orm.integrity.parent import ParentColumn
from crosstie.orm.integrity.scan import Chunk, KeyScan, choose_scan
from crosstie.orm.integrity.tiling import Tile, require_count, require_tiling
from integrity.tables import Linked, orphans

ONE = pytest.mark.parametrize("pair", [("sqlite", "postgresql")], indirect=True, ids="-".join)
ALL_CHILDREN = pytest.mark.parametrize(
    "pair",
    [("sqlite", "postgresql"), ("postgresql", "mariadb"), ("mariadb", "sqlite")],
    indirect=True,
    ids="-".join,
)


class Broken:
    """A scan whose n-th chunk goes through `damage` first."""

    def __init__(self, scan: KeyScan, nth: int, damage: Callable[[Chunk], Chunk | None]) -> None:
        self.scan = scan
        self.nth = nth
        self.damage = damage
        self.read = 0

    def chunk(self, child: ChildColumn, after: Any) -> Chunk | None:
        """Read, and damage."""
        chunk = self.scan.chunk(child, after)
        self.read += 1
        return self.damage(chunk) if chunk is not None and self.read == self.nth else chunk

    def missing(self, chunk: Chunk) -> Sequence[Key]:
        """As the scan does."""
        return self.scan.missing(chunk)


def audit_broken(world: Linked, nth: int, damage: Callable[[Chunk], Chunk | None]) -> AuditResult:
    """Audit twenty children, five to a chunk, whose parents are all there."""
    world.register(range(20))
    world.post([(n, n) for n in range(20)])

    def broken(parent: ParentColumn, last: Any, chunk_size: int) -> KeyScan:
        return Broken(choose_scan(parent, last, chunk_size), nth, damage)

    assert world.audit(chunk_size=5).state is AuditState.OK
    return world.audit(chunk_size=5, scan=broken)


@ONE
def test_a_chunk_with_keys_lost_is_incomplete(world: Linked) -> None:
    """The chunk says four keys where the database counts five."""

    def lose_one(chunk: Chunk) -> Chunk:
        return Chunk(Tile(chunk.tile.lo, chunk.tile.hi, chunk.tile.keys - 1), chunk.keys[:-1])

    result = audit_broken(world, 2, lose_one)
    assert result.state is AuditState.INCOMPLETE
    assert "4 were read, but there are 5" in (result.reason or "")


@ONE
def test_a_chunk_never_run_is_incomplete(world: Linked) -> None:
    """The scan leaps over a range of keys."""

    def leap(chunk: Chunk) -> Chunk:
        return Chunk(Tile(8, 9, 1), chunk.keys[-1:])

    result = audit_broken(world, 2, leap)
    assert result.state is AuditState.INCOMPLETE
    assert "begins after key 8" in (result.reason or "")


@ONE
def test_a_scan_that_ends_early_is_incomplete(world: Linked) -> None:
    """A swallowed error looks like the end of the table, and the table is known to go on."""
    result = audit_broken(world, 3, lambda _: None)
    assert result.state is AuditState.INCOMPLETE
    assert "0 were read, but there are 10" in (result.reason or "")


@ONE
def test_a_scan_out_of_order_is_incomplete(world: Linked, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page whose keys do not ascend may have left others out."""
    page = ChildColumn.page
    monkeypatch.setattr(ChildColumn, "page", lambda self, *args: page(self, *args)[::-1])
    world.post([(1, 1), (2, 2)])
    result = world.audit()
    assert result.state is AuditState.INCOMPLETE
    assert "order" in (result.reason or "")


@ONE
def test_an_error_in_a_chunk_is_incomplete_and_keeps_what_was_found(
    world: Linked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent's database fails at the third chunk; orphans of the first two are still told."""
    world.register([1])
    world.post([(n, n) for n in range(1, 7)])
    page, asked = ParentColumn.page, []

    def failing(self: ParentColumn, *args: Any) -> list[Any]:
        asked.append(args)
        if len(asked) == 3:
            raise DatabaseUnavailable("it broke")
        return page(self, *args)

    monkeypatch.setattr(ParentColumn, "page", failing)
    result = world.audit(chunk_size=2)
    assert (result.state, result.reason) == (AuditState.INCOMPLETE, "it broke")
    assert orphans(result) == {2: 2, 3: 3, 4: 4}
    assert result.keys_checked == 4


@ALL_CHILDREN
def test_a_table_dropped_in_the_middle_is_incomplete(world: Linked) -> None:
    """The second chunk finds no parent table; a real error of a real server."""
    world.register(range(20))
    world.post([(n, n) for n in range(20)])

    def drop(step: AuditProgress) -> None:
        if step.phase is AuditPhase.SCANNING and step.keys_done == 5:
            world.parent.execute("DROP TABLE users")

    result = world.audit(chunk_size=5, progress=drop)
    assert result.state is AuditState.INCOMPLETE
    assert "users" in (result.reason or "")


@ALL_CHILDREN
def test_writes_during_the_scan_do_not_make_it_incomplete(world: Linked) -> None:
    """Keys come and go between the chunks: the tiles still cover the table, and that can be proven."""
    world.register(range(1_000))
    world.post([(n, n * 10) for n in range(20)])
    written: list[int] = []

    def write(step: AuditProgress) -> None:
        if step.phase is AuditPhase.SCANNING:
            at = len(written)
            written.append(at)
            world.child.execute(f"DELETE FROM posts WHERE id = {19 - at}")
            world.child.execute(f"INSERT INTO posts VALUES ({100 + 2 * at}, {at})")
            world.child.execute(f"INSERT INTO posts VALUES ({101 + 2 * at}, {150 + at})")

    result = world.audit(chunk_size=5, progress=write)
    assert (result.state, result.reason) == (AuditState.OK, None)
    assert len(written) > 3


@ALL_CHILDREN
def test_keys_beyond_the_greatest_at_the_start_are_left_to_the_next_audit(world: Linked) -> None:
    """Else a table that only grows would keep the audit running for ever."""
    world.register(range(5))
    world.post([(n, n) for n in range(5)])

    def append(step: AuditProgress) -> None:
        if step.phase is AuditPhase.SCANNING:
            key = 1_000 + step.keys_done
            world.child.execute(f"INSERT INTO posts VALUES ({key}, {key})")

    assert world.audit(chunk_size=1, progress=append).state is AuditState.OK
    assert world.audit().state is AuditState.FINDINGS


@ONE
def test_an_order_that_contradicts_the_comparison_is_incomplete(world: Linked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles that do not hold every key of one snapshot prove that pages left some out."""
    world.register(range(20))
    world.post([(n, n) for n in range(20)])
    count = ChildColumn.count_keys

    def short(self: ChildColumn, after: Any, upto: Any) -> int:
        counted = count(self, after, upto)
        return counted + 1 if after is None and upto == 19 else counted

    monkeypatch.setattr(ChildColumn, "count_keys", short)
    result = world.audit(chunk_size=5)
    assert result.state is AuditState.INCOMPLETE
    assert "cover 20 distinct keys of 21" in (result.reason or "")


def test_tiles_must_meet() -> None:
    """The first begins at the beginning, each where the last one ended, the final one at the end."""
    require_tiling([Tile(None, 5, 3), Tile(5, 9, 0)], 9)
    require_tiling([], None)
    for tiles in ([Tile(1, 9, 3)], [Tile(None, 5, 3), Tile(6, 9, 1)], [Tile(None, 5, 3)], []):
        with pytest.raises(ScanIncomplete):
            require_tiling(tiles, 9)
    with pytest.raises(ScanIncomplete):
        require_count(Tile(None, 9, 3), 4)

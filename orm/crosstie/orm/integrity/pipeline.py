"""The two reads of a page overlap: while the parent is asked about one, the child reads the next.

One thread for each end, because a driver's call blocks until its server has answered.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from crosstie.orm.integrity.confirmation import Moment
from crosstie.orm.integrity.errors import ScanIncomplete
from crosstie.orm.integrity.findings import Key
from crosstie.orm.integrity.plan import KeyRange
from crosstie.orm.integrity.scan import KeyScan, Page
from crosstie.orm.integrity.tiling import Tile

__all__ = ["Compared", "compared_pages"]

A = TypeVar("A")
T = TypeVar("T")


class Compared(NamedTuple):
    """A tile whose keys were compared: the candidates among them, and the moment before the child was read."""

    tile: Tile
    candidates: Sequence[Key]
    since: Moment


def compared_pages(scan: KeyScan, chunk: KeyRange, now: Callable[[], Moment]) -> Generator[Compared]:
    """Scan a chunk page by page, in order. Raises what the scan does; a statement under way is waited for."""

    def read(after: object) -> tuple[Moment, Page]:
        since = now()
        page = scan.read(after)
        if page.tile.lo != after:
            raise ScanIncomplete(f"a page begins after key {page.tile.lo!r}, but keys were read only up to {after!r}")
        return since, page

    def ask(page: Page) -> Sequence[Key]:
        return scan.missing(page) if page.tile.keys else ()

    with (
        ThreadPoolExecutor(1, thread_name_prefix="crosstie-audit-child") as reader,
        ThreadPoolExecutor(1, thread_name_prefix="crosstie-audit-parent") as asker,
    ):
        reading = None if chunk.is_empty else _submit(reader, read, chunk.lo)
        while reading is not None:
            since, page = reading.result()
            asking = _submit(asker, ask, page)
            reached = page.tile.hi
            reading = None if reached == chunk.hi else _submit(reader, read, reached)
            yield Compared(page.tile, asking.result(), since)


def _submit(pool: ThreadPoolExecutor, work: Callable[[A], T], argument: A) -> Future[T]:
    """With the caller's context: it tells which tenant's or shard's database a name means."""
    return pool.submit(contextvars.copy_context().run, work, argument)

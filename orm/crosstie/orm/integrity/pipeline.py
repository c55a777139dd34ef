"""The two reads of a page overlap: while the parent is asked about one, the child reads the next.

Neither waits while the caller judges what is missing from the page before: the next one is being asked about by then.
Threads, because a driver's call blocks until its server has answered: one for the child, and one for each question that
a scan has at a time.
"""

from __future__ import annotations

import contextvars
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from crosstie.orm.integrity.confirmation import Moment
from crosstie.orm.integrity.errors import ScanIncomplete
from crosstie.orm.integrity.findings import Key
from crosstie.orm.integrity.plan import KeyRange
from crosstie.orm.integrity.scan import KeyScan, Page
from crosstie.orm.integrity.tiling import Tile

__all__ = ["Ahead", "Compared", "compared_pages", "read_ahead"]

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

    questions: int = getattr(scan, "questions", 1)
    with (
        ThreadPoolExecutor(1, thread_name_prefix="crosstie-audit-child") as reader,
        ThreadPoolExecutor(questions, thread_name_prefix="crosstie-audit-parent") as asker,
    ):
        reading = None if chunk.is_empty else _submit(reader, read, chunk.lo)
        asking: deque[tuple[Tile, Moment, Future[Sequence[Key]]]] = deque()
        while reading is not None or asking:
            if reading is not None:
                since, page = reading.result()
                asking.append((page.tile, since, _submit(asker, ask, page)))
                reached = page.tile.hi
                reading = None if reached == chunk.hi else _submit(reader, read, reached)
            if len(asking) > questions or reading is None:
                tile, since, asked = asking.popleft()
                yield Compared(tile, asked.result(), since)


def _submit(pool: ThreadPoolExecutor, work: Callable[..., T], *arguments: Any) -> Future[T]:
    """With the caller's context: it tells which tenant's or shard's database a name means."""
    return pool.submit(contextvars.copy_context().run, work, *arguments)


class Ahead(Iterator[T]):
    """What `read_ahead` gives: items in their order, read by a thread before they are wanted."""

    def __init__(self, items: Iterator[T], ahead: int, reader: ThreadPoolExecutor) -> None:
        self._items = items
        self._reader = reader
        self._reading: deque[Future[T | None]] = deque()
        for _ in range(ahead):
            self._read()

    def __next__(self) -> T:
        item = self._reading[0].result()
        if item is None:
            raise StopIteration
        self._reading.popleft()
        self._read()
        return item

    @property
    def is_ready(self) -> bool:
        """Whether an item, or the error in its place, can be had without waiting; False at the end."""
        first = self._reading[0]
        return first.done() and (first.exception() is not None or first.result() is not None)

    def _read(self) -> None:
        self._reading.append(_submit(self._reader, next, self._items, None))


@contextmanager
def read_ahead(items: Iterator[T], ahead: int = 1) -> Generator[Ahead[T]]:
    """The same items, of which a thread reads so many ahead while the caller works on one; it begins at once.

    A read that is under way when the block is left is waited for.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="crosstie-audit-ahead") as reader:
        try:
            yield Ahead(items, ahead, reader)
        finally:
            reader.shutdown(cancel_futures=True)

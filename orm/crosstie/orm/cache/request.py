"""The cache of one request: what was looked up in a block of one thread or asynchronous task, and nothing beyond it.

A request sees one state of a parent from the first look on, except for what its own thread has written since: after a
write, nothing that was read from that database before it counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, NamedTuple

from crosstie.orm.routing import router

__all__ = ["RequestCache", "Shelf", "current_request", "request_cache"]


class Shelf(NamedTuple):
    """Where the rows of one model lie that are found by one of its columns."""

    database: str
    table: str
    column: str
    form: str
    """What the rows are read by, and how long they are kept: others cannot read them, or may not."""


class RequestCache:
    """Rows as text, each with the time before which it was asked for."""

    def __init__(self) -> None:
        self._rows: dict[tuple[Shelf, str], tuple[float, str]] = {}

    def look(self, shelf: Shelf, keys: Iterable[str]) -> dict[str, str]:
        """The rows of these keys that are here and count."""
        written_at_s = router.written_at_s(shelf.database)
        found: dict[str, str] = {}
        for key in keys:
            entry = self._rows.get((shelf, key))
            if entry is not None and (written_at_s is None or entry[0] > written_at_s):
                found[key] = entry[1]
        return found

    def keep(self, shelf: Shelf, rows: Mapping[str, str], asked_at_s: float) -> None:
        """Take in rows that were asked for after this time, by the router's clock."""
        for key, row in rows.items():
            self._rows[shelf, key] = (asked_at_s, row)


_current: Final[ContextVar[RequestCache | None]] = ContextVar("crosstie.request_cache", default=None)


def current_request() -> RequestCache | None:
    """The cache of the block that this thread or task is in."""
    return _current.get()


@contextmanager
def request_cache() -> Iterator[None]:
    """Keep the parents of cached relations in this process until the end of the block; one inside another joins it.

    It holds for this thread or asynchronous task, and for tasks that are started inside; a thread started inside has
    none.
    """
    if _current.get() is not None:
        yield
        return
    token = _current.set(RequestCache())
    try:
        yield
    finally:
        _current.reset(token)

"""Looking parents up: in the request, in Redis, and what is left in the database, in one query."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from crosstie.orm.cache import outage
from crosstie.orm.cache.codec import codec_of
from crosstie.orm.cache.policy import Cached, key_text
from crosstie.orm.cache.redis_rows import Looked
from crosstie.orm.cache.request import RequestCache, Shelf, current_request
from crosstie.orm.cache.tally import tally
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.faults import fault_point
from crosstie.orm.local_transaction import current
from crosstie.orm.origin import mark_origin
from crosstie.orm.routing import router
from crosstie.orm.transaction import active_unit

if TYPE_CHECKING:
    from crosstie.orm.link import Link

__all__ = ["looked_up"]

Read = Callable[[Sequence[Any], bool], list[Any]]
"""Asks the database for the parents of these keys; the primary, if so told."""


def looked_up(link: Link, policy: Cached, keys: Sequence[Any], read: Read) -> list[Any]:
    """The parents of these keys, in no order; those that are missing are left out.

    Inside a transaction of the parents' database that alone answers: it sees its own writes, and what it sees is
    nobody else's. A saga may find parents in the cache and puts none in, since its reads open such a transaction.
    """
    name = link.target.connection
    request, breaker = current_request(), outage.breaker()
    if breaker is not None and ConnectionManager.get(name).settings.read_only:
        breaker = None  # nobody writes there under this name, so nobody would tell
    if current(name) is not None or (request is None and breaker is None):
        return read(keys, False)
    look = _Look(link, policy, name, request, breaker, may_fill=active_unit() is None)
    found, missing = look.find(keys)
    if missing:
        fault_point("cache.looked")
        read_now = read(missing, bool(look.leases))
        fault_point("cache.read")
        look.fill(read_now)
        found += read_now
    return found


class _Look:
    """One look for the parents of one relation."""

    def __init__(
        self,
        link: Link,
        policy: Cached,
        database: str,
        request: RequestCache | None,
        breaker: outage.Breaker | None,
        *,
        may_fill: bool,
    ) -> None:
        self._link, self._policy, self._request, self._breaker = link, policy, request, breaker
        self._may_fill = may_fill
        self._database = database
        self._codec = codec_of(link.target)
        form = f"{self._codec.fingerprint}:{policy.ttl_s:g}"
        self._shelf = Shelf(database, link.target.table.name, link.far.column.name, form)
        self._asked_at_s = router.monotonic()
        self._looked: Looked | None = None

    @property
    def leases(self) -> Mapping[str, bytes]:
        """The keys whose rows Redis will take from this look: they must come from the primary."""
        return {} if self._looked is None else self._looked.leases

    def find(self, keys: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The parents that are in the cache, and the keys of the others."""
        wanted = {key_text(key): key for key in keys}
        near: Mapping[str, str] = {} if self._request is None else self._request.look(self._shelf, wanted)
        found = self._records(near)
        requested = len(found)
        far = [text for text in wanted if text not in found]
        if far and self._breaker is not None:
            self._looked = self._breaker.ask(lambda rows: rows.look(self._shelf, far, lease=self._may_fill))
        if self._looked is not None:
            fetched = self._records(self._looked.rows)
            if self._request is not None:
                texts = {text: self._looked.rows[text].decode() for text in fetched}
                self._request.keep(self._shelf, texts, self._asked_at_s)
            found |= fetched
        missing = [key for text, key in wanted.items() if text not in found]
        tally.add(hits=len(found), request_hits=requested, misses=len(missing))
        records = list(found.values())
        if self._link.target.is_placed:
            mark_origin(records, self._database)
        return records, missing

    def fill(self, records: Sequence[Any]) -> None:
        """Put rows that were just read into the cache."""
        if not self._may_fill:
            return
        # By the row's own key: a collation may have found it by another spelling, which no change of it would name.
        by_key = {self._key_of(record): record for record in records}
        kept = [key for key in by_key if self._request is not None or key in self.leases]
        rows = {key: row for key in kept if (row := self._codec.write(by_key[key])) is not None}
        if self._request is not None:
            self._request.keep(self._shelf, rows, self._asked_at_s)
        leased = {key: row for key, row in rows.items() if key in self.leases}
        looked = self._looked
        if leased and looked is not None and self._breaker is not None:
            ttl_s = self._policy.ttl_s
            filled = self._breaker.ask(lambda redis: redis.fill(self._shelf, leased, looked, ttl_s=ttl_s))
            if filled is not None:
                tally.add(fills=filled, refused=len(leased) - filled)

    def _records(self, rows: Mapping[str, str | bytes]) -> dict[str, Any]:
        found = {}
        for text, row in rows.items():
            record = self._codec.read(row)
            if record is None or self._key_of(record) != text:
                tally.add(errors=1)
            else:
                found[text] = record
        return found

    def _key_of(self, record: Any) -> str:
        return key_text(record.__dict__[self._link.far.name])

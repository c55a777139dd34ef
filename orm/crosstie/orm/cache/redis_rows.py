"""Rows in Redis, under leases: a row that changed while it was being read is never put in.

Who does not find a row takes its *lease* before it asks the database, and Redis takes the row only from who still has
the lease. A change deletes both, after it is committed. So a reader that has seen the row of before has lost its lease
by the time that it brings it (the scheme of Facebook's memcache: R. Nishtala et al., NSDI 2013, section 3.2.1).

All rows of a table carry the table's *generation*, a random text; deleting that makes every one of them void. What
Redis loses, by eviction or a restart, is looked up anew.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote

from crosstie.orm.cache.request import Shelf
from crosstie.orm.configuration import CacheSettings
from crosstie.orm.errors import CacheUnavailable, ConfigurationError

if TYPE_CHECKING:
    import redis

__all__ = ["Looked", "RedisRows", "TableKeys"]

TableKeys = Mapping[str, Sequence[str]] | None
"""Keys of one table's rows by column; None for all rows that the table has."""

LEASE_MS: Final = 10_000
GENERATION_MS: Final = 24 * 3600 * 1000
PORTION: Final = 500
"""Rows in one script: others wait for a script to end."""

_LOOK: Final = """
local generation = redis.call('GET', KEYS[1])
if not generation then
  generation = ARGV[2]
  redis.call('SET', KEYS[1], generation, 'PX', ARGV[4])
end
local function has(text)
  return text and string.sub(text, 1, #generation) == generation
end
local answer = {generation}
for i = 2, #KEYS, 2 do
  local row = redis.call('HGET', KEYS[i], ARGV[1])
  if has(row) then
    answer[#answer + 1] = string.sub(row, #generation + 1)
  elseif ARGV[3] == '0' or has(redis.call('GET', KEYS[i + 1])) then
    answer[#answer + 1] = 0
  else
    redis.call('SET', KEYS[i + 1], generation .. ARGV[2], 'PX', ARGV[3])
    answer[#answer + 1] = 1
  end
end
return answer
"""
_FILL: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[3] then
  return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
local ttl, filled = tonumber(ARGV[4]), 0
for i = 2, #KEYS, 2 do
  if redis.call('GET', KEYS[i + 1]) == ARGV[3] .. ARGV[2] then
    redis.call('DEL', KEYS[i + 1])
    redis.call('HSET', KEYS[i], ARGV[1], ARGV[3] .. ARGV[5 + i / 2])
    local left = redis.call('PTTL', KEYS[i])
    if left < 0 or left > ttl then
      redis.call('PEXPIRE', KEYS[i], ttl)
    end
    filled = filled + 1
  end
end
return filled
"""


class Looked(NamedTuple):
    """What Redis had, by key, and the keys whose leases the caller got, each portion under its generation."""

    rows: dict[str, bytes]
    leases: dict[str, bytes]
    """The generation of each key that may be filled."""
    token: str


class _Mine(threading.local):
    client: redis.Redis | None = None
    pid: int = 0


class RedisRows:
    """The rows of one deployment in one Redis. Every method raises CacheUnavailable."""

    def __init__(self, settings: CacheSettings) -> None:
        assert settings.redis_url is not None
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise ConfigurationError(
                "cache.redis_url is configured, and the package redis is not installed: pip install crosstie[redis]."
            ) from error
        self._prefix = settings.prefix
        self._pool: redis.ConnectionPool = redis.ConnectionPool.from_url(
            settings.redis_url.get_secret_value(),
            socket_timeout=settings.timeout_s,
            socket_connect_timeout=settings.timeout_s,
            # Once more, for a connection that was closed while it was idle; who waits in vain does not wait again.
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        )
        self._make_client = partial(redis.Redis, connection_pool=self._pool, single_connection_client=True)
        self._mine = _Mine()
        self._failures = (redis.RedisError, OSError)
        scripts = redis.Redis(connection_pool=self._pool)
        self._look = scripts.register_script(_LOOK)
        self._fill = scripts.register_script(_FILL)

    def close(self) -> None:
        """Close the connections."""
        self._pool.disconnect()

    def _client(self) -> redis.Redis:
        """This thread's, with a connection of its own: to take one from the pool costs more than the answer."""
        pid = os.getpid()
        if self._mine.client is None or self._mine.pid != pid:
            self._mine.client, self._mine.pid = self._make_client(), pid
        return self._mine.client

    def look(self, shelf: Shelf, keys: Sequence[str], *, lease: bool) -> Looked:
        """The rows of these keys; with `lease`, leases for those that are not here and that nobody else is fetching."""
        looked = Looked({}, {}, secrets.token_hex(8))
        arguments = [shelf.form, looked.token, LEASE_MS if lease else 0, GENERATION_MS]
        for start in range(0, len(keys), PORTION):
            some = keys[start : start + PORTION]
            generation, *answers = self._run(self._look, self._names(shelf, some), arguments, len(some) + 1)
            for key, answer in zip(some, answers, strict=True):
                if isinstance(answer, bytes):
                    looked.rows[key] = answer
                elif answer == 1:
                    looked.leases[key] = generation
        return looked

    def fill(self, shelf: Shelf, rows: Mapping[str, str], looked: Looked, *, ttl_s: float) -> int:
        """Put in those of the rows whose leases still hold; returns how many did."""
        filled = 0
        by_generation: dict[bytes, list[str]] = {}
        for key in rows:
            by_generation.setdefault(looked.leases[key], []).append(key)
        for generation, keys in by_generation.items():
            for start in range(0, len(keys), PORTION):
                some = keys[start : start + PORTION]
                arguments = [shelf.form, looked.token, generation, max(1, int(ttl_s * 1000)), GENERATION_MS]
                filled += self._run(self._fill, self._names(shelf, some), [*arguments, *(rows[k] for k in some)])
        return filled

    def forget(self, database: str, changed: Mapping[str, TableKeys]) -> None:
        """Forget rows of these tables, whatever form they have, and shut out who is fetching them."""
        names: list[str] = []
        for table, by_column in changed.items():
            if by_column is None:
                names.append(self._generation(database, table))
                continue
            for column, keys in by_column.items():
                names += self._names(Shelf(database, table, column, ""), keys)[1:]
        try:
            for start in range(0, len(names), 2 * PORTION):
                self._client().unlink(*names[start : start + 2 * PORTION])
        except self._failures as error:
            raise self._unavailable(error) from error

    def _run(self, script: Any, names: Sequence[str], arguments: Sequence[Any], expected: int | None = None) -> Any:
        """What a script answers: a list of so many items, or a number."""
        try:
            answer: Any = script(keys=names, args=arguments, client=self._client())
        except self._failures as error:
            raise self._unavailable(error) from error
        fits = isinstance(answer, int) if expected is None else isinstance(answer, list) and len(answer) == expected
        if not fits:
            raise CacheUnavailable("Redis answered a script of the cache with something else than the script returns.")
        return answer

    def _unavailable(self, error: BaseException) -> CacheUnavailable:
        where = self._pool.connection_kwargs
        place = where.get("path") or f"{where.get('host')}:{where.get('port')}"
        return CacheUnavailable(f"Redis at {place}: {type(error).__name__}: {error}")

    def _generation(self, database: str, table: str) -> str:
        return ":".join([self._prefix, "table", quote(database, safe=""), quote(table, safe="")])

    def _names(self, shelf: Shelf, keys: Sequence[str]) -> list[str]:
        """The generation's, then each row's and its lease's."""
        place = ":".join(quote(part, safe="") for part in shelf[:3])
        names = [self._generation(shelf.database, shelf.table)]
        for key in keys:
            names += (f"{self._prefix}:row:{place}:{key}", f"{self._prefix}:lease:{place}:{key}")
        return names

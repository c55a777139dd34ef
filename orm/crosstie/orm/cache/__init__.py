"""Parents that were looked up, kept for a while: in this process for one request, and in Redis for all processes."""

from crosstie.orm.cache.changes import forget
from crosstie.orm.cache.policy import Cached
from crosstie.orm.cache.request import request_cache
from crosstie.orm.cache.tally import CacheCounters, counters

__all__ = ["CacheCounters", "Cached", "counters", "forget", "request_cache"]

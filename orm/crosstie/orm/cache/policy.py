"""What a relation says about the cache: whether its parents are kept, and for how long at most."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from crosstie.orm.errors import ModelDefinitionError

if TYPE_CHECKING:
    from crosstie.orm.link import Link

__all__ = ["Cached", "key_text", "policy_of", "require_cacheable"]

LONGEST_S: Final = 365 * 24 * 3600
_KEYS: Final = (int, str, UUID)


@dataclass(frozen=True)
class Cached:
    """Parents are kept for `ttl_s` seconds at most: the bound for changes that nobody tells the cache of.

    Raises ModelDefinitionError for a time that is none.
    """

    ttl_s: float = 300.0

    def __post_init__(self) -> None:
        given: object = self.ttl_s
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given <= LONGEST_S:
            raise ModelDefinitionError(
                f"Cached: expected ttl_s to be a number of seconds, a year at most, and found {self.ttl_s!r}."
            )


def policy_of(given: Cached | bool) -> Cached | None:
    """What `BelongsTo(cache=…)` means; None for no cache. Raises ModelDefinitionError."""
    if isinstance(given, Cached):
        return given
    if not isinstance(given, bool):
        raise ModelDefinitionError(f"cache: expected True, False or Cached(ttl_s=...), and found {given!r}.")
    return Cached() if given else None


def require_cacheable(where: str, link: Link) -> None:
    """Raise ModelDefinitionError where a key may be written in two ways, as decimals and times can.

    Who writes the parent and who looks it up must come to the same name in the cache.
    """
    if link.far.family not in _KEYS:
        raise ModelDefinitionError(
            f"{where} is declared with cache, and {link.far.column!s} is neither an integer, text nor a UUID: expected "
            "one of these for the key by which a cached parent is found."
        )


def key_text(value: Any) -> str:
    """A key as it stands in the cache's names, from either side of a relation."""
    return str(value.value if isinstance(value, enum.Enum) else value)

"""An audit in parts: its plan, the chunks that any process may run, and what each of them answers.

Plain values that go through JSON: a plan and its results may be kept in a table, and chunks run wherever there is time.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from crosstie.orm.integrity.errors import UnreadablePlan
from crosstie.orm.integrity.findings import Finding, Key
from crosstie.orm.integrity.storage import Raw

__all__ = ["AuditPlan", "ChunkResult", "KeyRange", "Strategy", "value_document", "value_of"]


class Strategy(StrEnum):
    """How the keys of both ends are read and compared."""

    FETCH = "fetch"
    """Pages of the child's distinct keys, as rows; the parent is asked about them."""
    PACKED = "packed"
    """Pages of the child's distinct keys and the parent's keys of the same range, each as one value."""
    WORDS = "words"
    """Ranges of keys of both ends as words of bits, for dense keys over slow links."""
    GAPS = "gaps"
    """The parent's keys of a range as one value, where they are dense; the child is asked about those that it lacks."""
    PROBE = "probe"
    """Pages of the child's distinct keys; the parent, which has many more, is asked about them."""
    SKIP = "skip"
    """Few distinct keys in very many rows: each is looked up in the child's index behind the one before."""
    BITMAP = "bitmap"
    """The child, without an index on its key, is read once into a compressed set."""


@dataclass(frozen=True)
class KeyRange:
    """The keys in (lo, hi] by the child's own order; `lo` None: from the first one on. Nothing where both are equal."""

    lo: Raw | None
    hi: Raw | None

    @property
    def is_empty(self) -> bool:
        """Whether no key can lie in it."""
        return bool(self.lo == self.hi)

    def as_document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"lo": value_document(self.lo), "hi": value_document(self.hi)}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> KeyRange:
        """What `as_document` gave. Raises UnreadablePlan."""
        return cls(value_of(document["lo"]), value_of(document["hi"]))


@dataclass(frozen=True)
class AuditPlan:
    """How one reference is to be audited: `chunks` tile its keys up to `last`, the greatest when it was planned.

    `keys` and `rows` are estimates, for progress; `reasons` say why this strategy, `notes` what a report should
    mention. A reference without any child has no chunks. A plan of a part begins behind `after` and ends at its
    `last`; `ends` tells whether no key comes behind that.
    """

    reference: str
    strategy: Strategy
    page_size: int
    """Distinct keys read at a time."""
    last: Raw | None
    chunks: tuple[KeyRange, ...]
    keys: int
    rows: int
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    after: Raw | None = None
    ends: bool = True

    def as_document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **asdict(self),
            "strategy": self.strategy.value,
            "last": value_document(self.last),
            "after": value_document(self.after),
            "chunks": [chunk.as_document() for chunk in self.chunks],
            "reasons": list(self.reasons),
            "notes": list(self.notes),
        }

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> AuditPlan:
        """What `as_document` gave. Raises UnreadablePlan."""
        return cls(
            **{
                **document,
                "strategy": Strategy(document["strategy"]),
                "last": value_of(document["last"]),
                "after": value_of(document["after"]),
                "chunks": tuple(KeyRange.of(chunk) for chunk in document["chunks"]),
                "reasons": tuple(document["reasons"]),
                "notes": tuple(document["notes"]),
            }
        )


@dataclass(frozen=True, kw_only=True)
class ChunkResult:
    """What running a chunk has answered; it may have ended early.

    `covered` begins where the chunk does. Where it ends before the chunk's end, the rest is a chunk to be run: the time
    was up, or an error stopped it, which `reason` tells. What was found until then holds. `keys` are distinct; `rows`
    is None where the strategy does not count them. `page_ends` tell where its pages end, for keys in an order that only
    their database knows. `held` are keys that could not be judged yet (a saga has them, or their grace runs); the end
    of the audit looks at them again.
    """

    covered: KeyRange
    keys: int = 0
    rows: int | None = 0
    page_ends: tuple[Raw, ...] = ()
    orphan_keys: int = 0
    orphan_rows: int = 0
    findings: tuple[Finding, ...] = ()
    deferred_keys: int = 0
    deferred_rows: int = 0
    held: tuple[Key, ...] = ()
    alike: int = 0
    """Keys whose parent has another spelling, which the child tells apart; `such_as` are some of them."""
    such_as: tuple[Key, ...] = ()
    reason: str | None = None
    retryable: bool = False
    """Whether running the rest may succeed, where there is a reason."""

    def as_document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **asdict(self),
            "covered": self.covered.as_document(),
            "findings": [
                {
                    "child_key": {name: value_document(value) for name, value in one.child_key.items()},
                    "parent_key": value_document(one.parent_key),
                    "query": one.query,
                }
                for one in self.findings
            ],
            "held": [value_document(key) for key in self.held],
            "such_as": [value_document(key) for key in self.such_as],
            "page_ends": [value_document(end) for end in self.page_ends],
        }

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> ChunkResult:
        """What `as_document` gave. Raises UnreadablePlan."""
        return cls(
            **{
                **document,
                "covered": KeyRange.of(document["covered"]),
                "findings": tuple(
                    Finding(
                        {name: value_of(value) for name, value in one["child_key"].items()},
                        value_of(one["parent_key"]),
                        one["query"],
                    )
                    for one in document["findings"]
                ),
                "held": tuple(value_of(key) for key in document["held"]),
                "such_as": tuple(value_of(key) for key in document["such_as"]),
                "page_ends": tuple(value_of(end) for end in document["page_ends"]),
            }
        )


def value_document(value: Any) -> Any:
    """A key, as Python compares it or as a server sends it, for JSON; what JSON lacks is text under its type's name."""
    if value is None or isinstance(value, (int, str)):
        return value
    if isinstance(value, uuid.UUID):
        return {"uuid": str(value)}
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, tuple):
        return [value_document(part) for part in value]
    return {"text": str(value)}


def value_of(document: Any) -> Any:
    """What `value_document` gave; a value of a type that no key has comes back as its text. Raises UnreadablePlan."""
    match document:
        case None | int() | str():
            return document
        case list():
            return tuple(value_of(part) for part in document)
        case {"uuid": str(text)}:
            return uuid.UUID(text)
        case {"bytes": str(text)}:
            return bytes.fromhex(text)
        case {"text": str(text)}:
            return text
    raise UnreadablePlan(f"expected a key of an audit as it was written, found {document!r}. Plan the audit anew.")

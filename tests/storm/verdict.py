"""What became of the events of a storm, told from what was written and what was applied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Verdict", "judge"]

Step = tuple[str, int]
"""A stream, and a number in it."""


@dataclass(frozen=True)
class Verdict:
    """`lost`: written, not applied. `invented`: applied, not written. `doubled`: applied more than once.

    `overtaken`: applied for the first time after a later one of its stream.
    """

    lost: frozenset[Step]
    invented: frozenset[Step]
    doubled: frozenset[Step]
    overtaken: frozenset[Step]

    @property
    def is_right(self) -> bool:
        """Whether every event was applied once and in order."""
        return not (self.lost or self.invented or self.doubled or self.overtaken)


def judge(written: Iterable[Step], applied: Iterable[Step]) -> Verdict:
    """Compare the events that were committed, in any order, with those that took effect, in that order."""
    expected = frozenset(written)
    times: Counter[Step] = Counter()
    furthest: dict[str, int] = {}
    overtaken: set[Step] = set()
    for stream, number in applied:
        times[stream, number] += 1
        if number < furthest.get(stream, number) and times[stream, number] == 1:
            overtaken.add((stream, number))
        furthest[stream] = max(number, furthest.get(stream, number))
    return Verdict(
        lost=expected - times.keys(),
        invented=frozenset(times.keys() - expected),
        doubled=frozenset(step for step, count in times.items() if count > 1),
        overtaken=frozenset(overtaken),
    )

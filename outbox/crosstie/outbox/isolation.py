"""Finding the event that cannot be applied, and applying those before it.

A subscriber that raises gives its event's position away. Where the target refuses the commit, the batch is halved until
a part of it goes through, or one event alone is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from crosstie.outbox.batch import OutboxRow
from crosstie.outbox.errors import BatchRefused, DeliveryFailed, OutboxError, TargetFailed

__all__ = ["Isolated", "isolate"]


@dataclass(frozen=True)
class Isolated:
    """What became of some rows.

    `applied`: the first rows, durable by now. `bad`: the row after them, which failed with `failure`. `refused`: more
    rows than `applied` were refused together. `failure` without `bad`: the lane shall stop there.
    """

    applied: Sequence[OutboxRow] = ()
    bad: OutboxRow | None = None
    failure: OutboxError | None = None
    refused: bool = False


def isolate(
    rows: Sequence[OutboxRow],
    apply: Callable[[Sequence[OutboxRow]], None],
    stops: Callable[[OutboxRow, DeliveryFailed], bool],
) -> Isolated:
    """Apply as many of the first rows as go through in one transaction.

    `stops` says of a failure whether the lane shall wait for it to pass. Raises what `apply` raises but for
    DeliveryFailed, BatchRefused, and a TargetFailed that has taken some of the rows.
    """
    bad: OutboxRow | None = None
    failure: OutboxError | None = None
    refused = False
    while rows:
        try:
            apply(rows)
        except DeliveryFailed as failed:
            found = rows[failed.position]
            bad, failure = (None, failed) if stops(found, failed) else (found, failed)
            # One that passes by itself is not worth the same work twice; the next attempt does it all.
            rows = () if failed.passing and bad is None else rows[: failed.position]
        except BatchRefused as error:
            refused = True
            if len(rows) == 1:
                return Isolated((), rows[0], error, refused)
            bad, failure, rows = None, None, rows[: len(rows) // 2]
        except TargetFailed as failed:
            if not failed.taken:
                raise
            return Isolated(rows[: failed.taken], None, failed, refused)
        else:
            break
    return Isolated(rows, bad, failure, refused)

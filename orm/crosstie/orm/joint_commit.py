"""Transactions of several databases that commit at once: every COMMIT is on its way before an answer is awaited.

In one thread, so that nothing is shared and an interrupt arrives where the caller is. A driver that cannot send
without waiting, as SQLite's, commits while the others' servers are at work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from crosstie.orm.faults import fault_point
from crosstie.orm.local_transaction import LocalTransaction

__all__ = ["commit_together"]


def commit_together(transactions: Sequence[LocalTransaction]) -> dict[LocalTransaction, Exception]:
    """Commit these; returns what `commit` would have raised, of those that did not commit or whose outcome is unknown.

    All are tried, whatever happens to one. An interrupt leaves the outcome of those unknown whose answer was not read.
    """
    failed: dict[LocalTransaction, Exception] = {}
    if len(transactions) == 1:
        _try(transactions[0].commit, transactions[0], failed)
        return failed
    sent: list[tuple[LocalTransaction, Callable[[], None]]] = []
    waiting: list[LocalTransaction] = []
    try:
        for tx in transactions:
            try:
                tx.make_ready()
                arrive = tx.depart()
            except Exception as error:  # noqa: BLE001 - handed on, once the others have ended
                failed[tx] = error
                if tx.is_open:
                    tx.rollback()
                continue
            if arrive is None:
                waiting.append(tx)
            else:
                sent.append((tx, arrive))
        fault_point("joint.commits-sent")
        for tx in waiting:
            _try(tx.commit, tx, failed)
        while sent:
            tx, arrive = sent.pop(0)
            _try(arrive, tx, failed)
    except BaseException:
        for tx, _ in sent:
            tx.abandon()
        raise
    return failed


def _try(commit: Callable[[], None], tx: LocalTransaction, failed: dict[LocalTransaction, Exception]) -> None:
    try:
        commit()
    except Exception as error:  # noqa: BLE001 - handed on, once the others have ended
        failed[tx] = error

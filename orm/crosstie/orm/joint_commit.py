"""Transactions of several databases that commit at once: every COMMIT is on its way before an answer is awaited.

In one thread, so that nothing is shared and an interrupt arrives where the caller is. A driver that cannot send
without waiting, as SQLite's, commits while the others' servers are at work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from crosstie.orm.faults import fault_point
from crosstie.orm.local_transaction import LocalTransaction

__all__ = ["Request", "commit_together", "raise_all", "request_together"]


class Request(NamedTuple):
    """What a transaction asks of its server.

    `depart` sends it and does not wait; what it returns reads the answer, or else the transaction is abandoned. Where
    it returns None nothing was sent, and `wait` does both. What these raise, the transaction has dealt with.
    """

    tx: LocalTransaction
    depart: Callable[[], Callable[[], None] | None]
    wait: Callable[[], None]


def commit_together(transactions: Sequence[LocalTransaction]) -> dict[LocalTransaction, Exception]:
    """Commit these; returns what `commit` would have raised, of those that did not commit or whose outcome is unknown.

    All are tried, whatever happens to one. An interrupt leaves the outcome of those unknown whose answer was not read.
    """
    if len(transactions) == 1:
        failed: dict[LocalTransaction, Exception] = {}
        _try(transactions[0].commit, transactions[0], failed)
        return failed
    requests = [Request(tx, partial(_depart, tx), tx.commit) for tx in transactions]
    return request_together(requests, lambda: fault_point("joint.commits-sent"))


def request_together(requests: Sequence[Request], sent: Callable[[], None]) -> dict[LocalTransaction, Exception]:
    """Send all of these, call `sent`, and read the answers; returns what was raised, by transaction.

    All are tried, whatever happens to one. An interrupt abandons the transactions whose answer was not read.
    """
    failed: dict[LocalTransaction, Exception] = {}
    answers: list[tuple[LocalTransaction, Callable[[], None]]] = []
    waiting: list[Request] = []
    unread: list[LocalTransaction] = []
    try:
        for request in requests:
            unread.append(request.tx)
            try:
                arrive = request.depart()
            except Exception as error:  # noqa: BLE001 - handed on, once the others have ended
                failed[request.tx] = error
            else:
                if arrive is not None:
                    answers.append((request.tx, arrive))
                    continue
                waiting.append(request)
            unread.pop()
        sent()
        for request in waiting:
            _try(request.wait, request.tx, failed)
        for tx, arrive in answers:
            _try(arrive, tx, failed)
            unread.remove(tx)
    except BaseException:
        for tx in unread:
            if tx.is_open:
                tx.abandon()
        raise
    return failed


def raise_all(failed: Mapping[LocalTransaction, Exception], what: str) -> None:
    """Raise what these raised: the one exception, or an ExceptionGroup that says how many did `what`."""
    errors = list(failed.values())
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup(f"{len(errors)} {what}", errors)


def _depart(tx: LocalTransaction) -> Callable[[], None] | None:
    try:
        tx.make_ready()
        return tx.depart()
    except Exception:
        if tx.is_open:
            tx.rollback()
        raise


def _try(act: Callable[[], None], tx: LocalTransaction, failed: dict[LocalTransaction, Exception]) -> None:
    try:
        act()
    except Exception as error:  # noqa: BLE001 - handed on, once the others have ended
        failed[tx] = error

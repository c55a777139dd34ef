"""Who compensates effects: the process whose saga failed, once, and from then on any worker that sweeps their home.

Compensations of a saga run in the reverse order of its effects, each at least once; one that fails keeps the earlier
ones waiting.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from secrets import SystemRandom
from typing import Final

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import CrosstieError, DatabaseUnavailable
from crosstie.orm.faults import fault_point
from crosstie.orm.transaction import detached_transaction
from crosstie.outbox.lane import backoff_s
from crosstie.sagas import effect
from crosstie.sagas.compensation import find_compensation, registered_names
from crosstie.sagas.effect import Effect
from crosstie.sagas.record import SagaHeader
from crosstie.sagas.recovery import Decision, decide

__all__ = ["EffectReport", "abort_effects", "compensate", "compensate_one", "sweep_effects"]

logger = logging.getLogger(__name__)

_random: Final = SystemRandom()
_told: set[tuple[str, str]] = set()
"""Compensations that this process does not know, by database: each is logged once."""


@dataclass(frozen=True)
class EffectReport:
    """What was done about the effects of one home; all but `aborted`, in sagas, count effects."""

    aborted: int = 0
    """Sagas that had expired and were aborted for their effects."""
    compensated: int = 0
    failed: int = 0
    """Compensations that will be tried again."""
    quarantined: int = 0
    """Compensations that have failed too often and wait for an operator."""

    def __add__(self, other: EffectReport) -> EffectReport:
        return EffectReport(
            self.aborted + other.aborted,
            self.compensated + other.compensated,
            self.failed + other.failed,
            self.quarantined + other.quarantined,
        )


def sweep_effects(home_name: str, *, limit: int = 100, limit_s: float = 5.0) -> EffectReport:
    """Abort the sagas of this home whose effects have expired, and compensate what is due.

    At most `limit` of either, and no other compensation is begun once `limit_s` seconds have passed. Raises
    DatabaseUnavailable, NoSuchTable where `crosstie init` has not run.
    """
    home = ConnectionManager.get(home_name)
    ends_at = time.monotonic() + limit_s
    report = EffectReport()
    for found in effect.expired(home, limit):
        report += _abort_expired(found)
    names = effect.names_due(home)
    known = names & registered_names()
    _tell_of(home_name, names - known)
    for found in effect.due(home, known, limit=limit) if known else ():
        if time.monotonic() >= ends_at:
            break
        report += _compensate_from(home, found)
    return report


def compensate(home_name: str, saga_id: str) -> EffectReport:
    """Try once each compensation of this saga that is due, until one fails. Raises DatabaseUnavailable."""
    home = ConnectionManager.get(home_name)
    turn = effect.due(home, registered_names(), saga_id=saga_id)
    return _compensate_from(home, turn[0]) if turn else EffectReport()


def abort_effects(header: SagaHeader, found_in: str | None) -> Decision:
    """Have the effects of a saga fall due unless home says that it committed; `found_in` and errors as for `decide`."""
    decision = decide(header, found_in)
    with detached_transaction(header.home) as tx:
        # Its own decision has done this. A saga that another had aborted may have made calls since, and an intent
        # whose commit was in doubt may have come after any decision: its call was never made.
        if effect.fall_due(tx.connection, header.saga_id):
            tx.mark_written()
    return decision


def _abort_expired(found: Effect) -> EffectReport:
    header = SagaHeader(found.saga_id, found.saga_name, found.home, (found.home,))
    try:
        decision = abort_effects(header, found.home)
    except DatabaseUnavailable:
        raise
    except CrosstieError as error:  # its original is about to decide: the next sweep sees how
        logger.info("saga %s (%r) waits: %s", found.saga_id, found.saga_name, error)
        return EffectReport()
    logger.info("saga %s (%r) has expired with effects: %s", found.saga_id, found.saga_name, decision.value)
    return EffectReport(aborted=int(decision is Decision.ABORTED))


def _compensate_from(home: Database, found: Effect) -> EffectReport:
    """Compensate this effect, and the earlier ones of its saga as long as that succeeds."""
    report = outcome = compensate_one(home, found)
    while outcome.compensated:
        turn = effect.due(home, registered_names(), saga_id=found.saga_id)
        outcome = compensate_one(home, turn[0]) if turn else EffectReport()
        report += outcome
    return report


def compensate_one(home: Database, found: Effect) -> EffectReport:
    """Try this compensation once, whether or not it is its turn. Raises DatabaseUnavailable."""
    settings = ConnectionManager.settings().saga
    known = find_compensation(found.compensation)
    if known is None:
        return EffectReport()
    if found.attempts >= settings.compensation_attempts:
        return _quarantined(home, found, "its last attempt never ended: does the compensation end its process?")
    claimed = effect.claim(home, found, lease_s=settings.compensation_lease_s)
    if claimed is None:
        return EffectReport()
    fault_point("effect.claimed")
    try:
        known(claimed.arguments, claimed.idempotency_key)
    except Exception as error:  # noqa: BLE001 - the user's code; stored, logged and tried again
        return _failed(home, claimed, f"{type(error).__name__}: {error}", settings.compensation_attempts)
    fault_point("effect.compensated")
    mine = effect.complete(home, claimed)
    fault_point("effect.completed")
    if not mine:
        logger.warning("effect %s: another worker took it while this one compensated", claimed.idempotency_key)
        return EffectReport()
    logger.info("effect %s: compensated by %r", claimed.idempotency_key, claimed.compensation)
    return EffectReport(compensated=1)


def _failed(home: Database, claimed: Effect, error: str, most: int) -> EffectReport:
    if claimed.attempts >= most:
        return _quarantined(home, claimed, error)
    delay_s = backoff_s(claimed.attempts - 1, jitter=_random.random())
    mine = effect.postpone(home, claimed, delay_s=delay_s, error=error)
    logger.warning(
        "effect %s: compensation %r failed at attempt %d of %d: %s",
        claimed.idempotency_key, claimed.compensation, claimed.attempts, most, error,
    )  # fmt: skip
    return EffectReport(failed=int(mine))


def _quarantined(home: Database, claimed: Effect, error: str) -> EffectReport:
    mine = effect.quarantine(home, claimed, error=error)
    logger.error(
        "effect %s: compensation %r is quarantined after %d attempts: %s",
        claimed.idempotency_key, claimed.compensation, claimed.attempts, error,
    )  # fmt: skip
    return EffectReport(quarantined=int(mine))


def _tell_of(home_name: str, unknown: set[str]) -> None:
    for name in sorted(unknown):
        if (home_name, name) not in _told:
            _told.add((home_name, name))
            logger.warning(
                "database %r: effects wait for compensation %r, which no imported module registers: name the module in "
                "`imports`",
                home_name, name,
            )  # fmt: skip

"""Effects outside databases, as home has them: one row for each, written before the effect can come about.

open → settled      by home's commit, for the effects that the saga keeps
open → due          by home's commit for the others, and by the decision `aborted` for all
due → compensated, quarantined; quarantined → due, skipped

What home decides over its saga and what it says of the effects is one transaction. So an effect that is still `open`
after the decision was none of the saga's, and falls due; and a saga whose effect is no longer `open` cannot commit.
A compensation is claimed by raising the row's epoch, and all that its claimer writes says `WHERE epoch = mine`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import sqlalchemy as sa

from crosstie.orm.clock import now_ms
from crosstie.orm.database import Database
from crosstie.orm.transaction import detached_transaction
from crosstie.outbox.tables import effect as effects
from crosstie.sagas.errors import EffectLost

__all__ = ["UNFINISHED", "Effect"]

UNFINISHED: Final = ("open", "due", "quarantined")
"""The states in which somebody has still to act."""


@dataclass(frozen=True)
class Effect:
    """A row as it was read; `attempts` are those that were begun."""

    saga_id: str
    step: int
    home: str
    saga_name: str
    compensation: str
    arguments: str = field(repr=False)
    state: str = "open"
    epoch: int = 0
    attempts: int = 0

    @classmethod
    def from_row(cls, row: Any) -> Effect:
        """From a row of `select(crosstie_effect)`."""
        return cls(
            row.saga_id,
            row.step,
            row.home,
            row.saga_name,
            row.compensation,
            row.arguments,
            row.state,
            row.epoch,
            row.attempts,
        )

    @property
    def idempotency_key(self) -> str:
        """The same for the call and for every attempt to compensate it."""
        return f"{self.saga_id}:{self.step}"


# -- the saga that has the effect -------------------------------------------------------------------------------


def intend(effect: Effect, *, expiry_s: float) -> None:
    """Commit that the effect may come about from now on. Raises DatabaseUnavailable, LockTimeout, CommitInDoubt."""
    with detached_transaction(effect.home) as tx:
        tx.mark_written()
        _insert(tx.connection, effect, expiry_s=expiry_s)


def _insert(connection: sa.Connection, effect: Effect, *, expiry_s: float = 0.0) -> None:
    connection.execute(
        sa.insert(effects).values(
            saga_id=effect.saga_id,
            step=effect.step,
            home=effect.home,
            saga_name=effect.saga_name,
            compensation=effect.compensation,
            arguments=effect.arguments,
            state=effect.state,
            expires_at_ms=now_ms() + int(expiry_s * 1000),
        )
    )


def settle(connection: sa.Connection, saga_id: str, kept: Collection[int], *, begun: int) -> None:
    """Say in home's transaction, with its decision, which of the `begun` effects the saga keeps; the others fall due.

    Raises EffectLost where one of them is no longer open: then the saga must not commit.
    """
    if kept:
        found = connection.execute(_moved(sa.and_(_open(saga_id), effects.c.step.in_(kept)), "settled")).rowcount
        if found != len(kept):
            raise EffectLost(
                f"saga {saga_id}: expected {len(kept)} open effect(s) in home and found {found}: a worker has aborted "
                "the saga after its expiry, and compensates. Raise saga.expiry_s, or expiry_s of this saga, above the "
                "time that its calls take."
            )
    if len(kept) < begun:
        fall_due(connection, saga_id)


def fall_due(connection: sa.Connection, saga_id: str) -> int:
    """Have what is open of a decided saga compensated; returns how many effects that are."""
    return fall_due_all(connection, [saga_id])


def fall_due_all(connection: sa.Connection, saga_ids: Collection[str]) -> int:
    """The same for several sagas that are decided."""
    which = sa.and_(effects.c.saga_id.in_(saga_ids), effects.c.state == "open")
    return connection.execute(_moved(which, "due")).rowcount


def compensate_again(ended: Sequence[Effect]) -> None:
    """Have effects compensated again that a worker has compensated, or begun to, while their calls still ran.

    For the process that made the calls, once none of them runs any more and before it aborts its saga: a compensation
    that came before the effect took nothing back. Raises DatabaseUnavailable.
    """
    home, saga_id = ended[0].home, ended[0].saga_id
    with detached_transaction(home) as tx:
        query = sa.select(effects.c.step, effects.c.state).where(effects.c.saga_id == saga_id)
        states = {row.step: row.state for row in tx.connection.execute(query.with_for_update())}
        for one in ended:
            state = states.get(one.step, "forgotten")
            if state in {"due", "compensated"}:
                tx.mark_written()
                again = _moved(sa.and_(effects.c.saga_id == saga_id, effects.c.step == one.step), "due")
                tx.connection.execute(again.values(epoch=effects.c.epoch + 1, lease_until_ms=0, next_at_ms=0))
            elif state == "forgotten":
                tx.mark_written()
                _insert(tx.connection, replace(one, state="due"))


def _open(saga_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(effects.c.saga_id == saga_id, effects.c.state == "open")


def _moved(which: sa.ColumnElement[bool], state: str, **values: Any) -> sa.Update:
    return sa.update(effects).where(which).values(state=state, updated_at_ms=now_ms(), **values)


# -- whoever compensates ----------------------------------------------------------------------------------------


def expired(home: Database, limit: int) -> list[Effect]:
    """An open effect of each saga of this home whose effects have all expired. Raises DatabaseUnavailable."""
    latest = (
        sa.select(effects.c.saga_id, sa.func.max(effects.c.step).label("step"))
        .where(effects.c.state == "open", effects.c.home == home.name)
        .group_by(effects.c.saga_id)
        .having(sa.func.max(effects.c.expires_at_ms) < now_ms())
        .limit(limit)
        .subquery()
    )
    same = sa.and_(effects.c.saga_id == latest.c.saga_id, effects.c.step == latest.c.step)
    return _read(home, sa.select(effects).join(latest, same))


def names_due(home: Database) -> set[str]:
    """The names of the compensations that wait here. Raises DatabaseUnavailable."""
    query = sa.select(effects.c.compensation).distinct().where(effects.c.state == "due", effects.c.home == home.name)
    return {row.compensation for row in home.rows(query)}


def due(home: Database, names: Iterable[str], *, saga_id: str | None = None, limit: int = 1) -> list[Effect]:
    """Effects whose turn it is: the last of its saga that is not compensated, which nobody is at and no backoff holds.

    Only compensations of these names. Raises DatabaseUnavailable.
    """
    query = (
        sa.select(effects)
        .where(effects.c.state == "due", effects.c.home == home.name, effects.c.compensation.in_(sorted(names)))
        .where(_claimable(), in_turn())
        .order_by(effects.c.next_at_ms)
        .limit(limit)
    )
    return _read(home, query if saga_id is None else query.where(effects.c.saga_id == saga_id))


def in_turn() -> sa.ColumnElement[bool]:
    """That no later effect of the same saga has still to be compensated."""
    later = effects.alias()
    behind = sa.select(later.c.step).where(
        later.c.saga_id == effects.c.saga_id, later.c.step > effects.c.step, later.c.state.in_(["due", "quarantined"])
    )
    return ~behind.exists()


def read(home: Database, saga_id: str, step: int) -> Effect | None:
    """One effect as it is now. Raises DatabaseUnavailable."""
    found = _read(home, sa.select(effects).where(effects.c.saga_id == saga_id, effects.c.step == step))
    return found[0] if found else None


def _read(home: Database, query: sa.Select[Any]) -> list[Effect]:
    with home.mapped_errors(), home.autocommit.connect() as connection:
        return [Effect.from_row(row) for row in connection.execute(query)]


def claim(home: Database, found: Effect, *, lease_s: float) -> Effect | None:
    """Begin an attempt; None where somebody else has. Raises DatabaseUnavailable."""
    claimed = replace(found, epoch=found.epoch + 1, attempts=found.attempts + 1)
    values = {"epoch": claimed.epoch, "attempts": claimed.attempts, "lease_until_ms": now_ms() + int(lease_s * 1000)}
    return claimed if _change(home, sa.and_(_mine(found), _claimable()), "due", **values) else None


def complete(home: Database, claimed: Effect) -> bool:
    """The compensation has done its work; False where another has claimed it since."""
    return _change(home, _mine(claimed), "compensated", error=None)


def postpone(home: Database, claimed: Effect, *, delay_s: float, error: str) -> bool:
    """The attempt has failed, and another is due after `delay_s`; False where another has claimed it since."""
    at = now_ms() + int(delay_s * 1000)
    return _change(home, _mine(claimed), "due", lease_until_ms=0, next_at_ms=at, error=error)


def quarantine(home: Database, claimed: Effect, *, error: str) -> bool:
    """Nobody tries any more until an operator says so; False where another has claimed it since."""
    return _change(home, _mine(claimed), "quarantined", error=error)


def release(home: Database, found: Effect) -> Effect | None:
    """Give a quarantined effect all its attempts back; None where it is no longer as it was found."""
    released = replace(found, epoch=found.epoch + 1, attempts=0, state="due")
    values = {"epoch": released.epoch, "attempts": 0, "lease_until_ms": 0, "next_at_ms": 0}
    return released if _change(home, _mine(found, "quarantined"), "due", **values) else None


def skip(home: Database, found: Effect) -> bool:
    """Leave a quarantined effect as it is, for good; False where it is no longer as it was found."""
    return _change(home, _mine(found, "quarantined"), "skipped", epoch=found.epoch + 1)


def _claimable() -> sa.ColumnElement[bool]:
    return sa.and_(effects.c.lease_until_ms <= now_ms(), effects.c.next_at_ms <= now_ms())


def _mine(found: Effect, state: str = "due") -> sa.ColumnElement[bool]:
    same = sa.and_(effects.c.saga_id == found.saga_id, effects.c.step == found.step)
    return sa.and_(same, effects.c.state == state, effects.c.epoch == found.epoch)


def _change(home: Database, which: sa.ColumnElement[bool], state: str, **values: Any) -> bool:
    with home.mapped_errors(), home.autocommit.connect() as connection:
        return connection.execute(_moved(which, state, **values)).rowcount == 1

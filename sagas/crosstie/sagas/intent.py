"""The effects of one saga block: each is written into home before it can come about, and the block's end decides."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CommitInDoubt, CrosstieError
from crosstie.orm.faults import fault_point
from crosstie.sagas import effect
from crosstie.sagas.compensation import dump_arguments, registered
from crosstie.sagas.compensator import abort_effects, compensate
from crosstie.sagas.effect import Effect
from crosstie.sagas.errors import EffectInvalid, SagaInDoubt
from crosstie.sagas.record import SagaHeader
from crosstie.sagas.recovery import Decision

if TYPE_CHECKING:
    from crosstie.sagas.strategy import Terms

__all__ = ["Effects", "home_of_effects"]

logger = logging.getLogger(__name__)


def home_of_effects(terms: Terms, written: Sequence[str], opened: Collection[str]) -> str:
    """The home of a block that has effects from now on: the one declared, else the first one written.

    Raises EffectInvalid where there is none yet, and where an intent could not be committed beside the block's own
    transaction.
    """
    home = terms.home or next(iter(written), None)
    if home is None:
        raise EffectInvalid(
            f"saga {terms.name!r}: expected a home, in which the compensation is written before the call; none is "
            "declared, and nothing was written yet. Say saga(…, home=…)."
        )
    if home in opened and ConnectionManager.get(home).capabilities.one_writer:
        raise EffectInvalid(
            f"saga {terms.name!r}: home {home!r} is SQLite, which has one writer at a time, and that is this block by "
            "now: its compensation cannot be committed. Make the calls before the block reads or writes there, with "
            "saga(…, home=…), or name another home."
        )
    return home


class Effects:
    """What a block has called and may have to take back; `kept` are the steps that stay if it commits."""

    def __init__(self, terms: Terms) -> None:
        self.saga_id = terms.saga_id
        self.name = terms.name
        self.home: str | None = None
        """Fixed by the first effect."""
        self.begun = 0
        self.kept: list[int] = []
        self._intended: list[Effect] = []
        self._expiry_s = terms.expiry_s

    def begin(
        self, home: str, wanted: str | Callable[..., object], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Effect:
        """Commit in home that the compensation may be needed. Raises EffectInvalid, DatabaseUnavailable.

        Once it has been tried the step counts, whatever became of it: its row may be there after an error, too.
        """
        compensation = registered(wanted)
        compensation.require_arguments(args, kwargs)
        arguments = dump_arguments(args, kwargs)
        self.home = home
        self.begun += 1
        found = Effect(self.saga_id, self.begun, home, self.name, compensation.name, arguments)
        effect.intend(found, expiry_s=self._expiry_s)
        self._intended.append(found)
        fault_point("effect.intended")
        return found

    def settle(self, connection: sa.Connection) -> None:
        """Have home's commit decide over the effects too. Raises EffectLost."""
        if self.begun:
            effect.settle(connection, self.saga_id, self.kept, begun=self.begun)

    def end(self, error: BaseException | None) -> None:
        """The block has ended, by `error` if any: compensate what its end does not keep, once; the rest is for workers.

        An interrupt or an outcome in doubt is for the workers alone, as a crash is.
        """
        if error is None:
            if len(self.kept) < self.begun:
                self._compensate()
        elif self.begun and isinstance(error, Exception) and not isinstance(error, (SagaInDoubt, CommitInDoubt)):
            self._abort(error)

    def _abort(self, error: Exception) -> None:
        home = str(self.home)
        try:
            if self._intended:
                effect.compensate_again(self._intended)
            decision = abort_effects(SagaHeader(self.saga_id, self.name, home, (home,)), None)
        except CrosstieError as failure:
            logger.warning("saga %s (%r): its effects wait for a worker: %s", self.saga_id, self.name, failure)
            left = True
        else:
            left = decision is Decision.ABORTED and self._compensate() < self.begun
        if left:
            error.add_note(
                f"saga {self.name!r} ({self.saga_id}) has effects outside databases that are not compensated yet; "
                f"workers go on, and `crosstie sagas show {self.saga_id}` tells how far they are."
            )

    def _compensate(self) -> int:
        """How many could be compensated now."""
        try:
            return compensate(str(self.home), self.saga_id).compensated
        except CrosstieError as failure:
            logger.warning("saga %s (%r): its effects wait for a worker: %s", self.saga_id, self.name, failure)
            return 0

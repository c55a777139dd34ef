"""What differs between the ways in which a block's databases end as one outcome.

A block opens transactions, runs everything that may fail before a commit, and hands them over; its strategy says how a
transaction begins, what is taken down of its writes, which database is home, and in which order they commit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import sqlalchemy as sa

from crosstie.orm.database import Database
from crosstie.orm.errors import CrosstieError
from crosstie.orm.local_transaction import LocalTransaction
from crosstie.orm.recorder import WriteRecorder
from crosstie.sagas import doorbell, record
from crosstie.sagas.errors import SagaAborted, in_doubt_of_home
from crosstie.sagas.record import Mode, SagaHeader
from crosstie.sagas.recovery import Decision, decide

if TYPE_CHECKING:
    from crosstie.sagas.intent import Effects

__all__ = ["Ending", "Isolation", "Strategy", "Terms", "aborted", "ask_home"]

Isolation = Literal["locked"]


@dataclass(frozen=True)
class Terms:
    """What the caller of `saga` has said, and the id that the block got."""

    saga_id: str
    name: str
    home: str | None
    """The database that was declared home, if any."""
    expiry_s: float
    isolation: Isolation | None = None
    """`locked`: the rows that it writes are locked until it is settled."""


@dataclass(frozen=True)
class Ending:
    """A block of several participants, or with effects, at its end: what may fail before a commit has been tried."""

    header: SagaHeader
    transactions: Mapping[str, LocalTransaction]
    """By database, those that were only read among them; all are open."""
    roll_back: Callable[[], None]
    """Rolls back every transaction that is still open."""
    effects: Effects

    @property
    def home(self) -> LocalTransaction:
        """The transaction whose commit decides."""
        return self.transactions[self.header.home]

    @property
    def branches(self) -> list[LocalTransaction]:
        """The transactions whose commit does not decide."""
        return [self.transactions[name] for name in self.header.branches]

    def run_hooks(self) -> None:
        """Run what hooks have left in transactions whose own had been run: the logs are to tell all of the branches."""
        transactions = [self.transactions[name] for name in self.header.participants]
        while any(tx.ledger("before_commit") for tx in transactions):
            for tx in transactions:
                tx.run_before_commit()

    def decide(self, state: str = "committed", *, log: str = "[]", expiry_s: float = 0.0) -> None:
        """Have home's commit say that the saga commits and keeps its effects. Raises DuplicateKey, EffectLost.

        As `owed`, its record has the `log` of what the branches are owed, and workers see to that after `expiry_s`.
        """
        self.home.conclude_with(record.insertion(self.header, self.header.home, state, undo_log=log, expiry_s=expiry_s))
        if self.effects.begun:
            self.home.run_final()  # who ends a saga from outside takes its record before its effects, too
            with self.home.mapped_errors(), self.home.internal():
                self.effects.settle(self.home.bare)

    def take(self, ledger: str) -> list[Callable[[], None]]:
        """The hooks in this ledger of all participants, which their own ends will not run any more."""
        hooks: list[Callable[[], None]] = []
        for name in self.header.participants:
            entries = self.transactions[name].ledger(ledger)
            hooks += entries
            entries.clear()
        return hooks


class Strategy(ABC):
    """One way to end a block; an instance serves one block."""

    mode: ClassVar[Mode] = Mode.BACKWARD

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        """Those of the outermost saga; an inner one may have named home."""
        self.owed: tuple[str, ...] = ()
        """After the commit, the databases whose writes are decided and not there yet: a worker sees to them."""

    def open(
        self, database: Database, before_begin: Callable[[sa.Connection], object] | None = None
    ) -> LocalTransaction:
        """Begin the block's transaction on a database. Raises DatabaseUnavailable, and what `before_begin` does."""
        return LocalTransaction(database, before_begin=before_begin)

    @abstractmethod
    def recorder(self, database: str, written: Sequence[str]) -> WriteRecorder:
        """What watches the writes to this database, whose first is about to run; `written` are those written before."""

    def before_end(  # noqa: B027 - most strategies have nothing to add
        self, written: Sequence[str], transaction: Callable[[str], LocalTransaction]
    ) -> None:
        """The block's statements are through, and `written` are the databases they wrote; others may be added now."""

    @abstractmethod
    def choose_home(self, participants: Sequence[LocalTransaction]) -> str:
        """The home of these participants, two or more in the order of their first write. Raises SagaNotUndoable."""

    @abstractmethod
    def prepare_branch(self, tx: LocalTransaction) -> None:
        """Ready a branch for its end, before the hooks that run ahead of a commit."""

    @abstractmethod
    def prepare_decider(self, tx: LocalTransaction) -> None:
        """Ready home, or the only participant, for its end, after the hooks that run ahead of a commit."""

    @abstractmethod
    def commit(self, ending: Ending) -> None:
        """Commit everything as one outcome. Raises SagaAborted, SagaInDoubt."""


def aborted(terms: Terms, error: BaseException, pending: tuple[str, ...] = ()) -> SagaAborted:
    """The exception for a saga that `error` has ended; `pending` are the databases in which a worker has to undo."""
    rest = f"The undo in {', '.join(pending)} is left to a worker." if pending else "Nothing of it remains."
    errors = error.exceptions if isinstance(error, ExceptionGroup) else (error,)
    cause = "; and ".join(f"{type(one).__name__}: {one}".rstrip(".") for one in errors)
    return SagaAborted(
        f"saga {terms.name!r} ({terms.saga_id}) was aborted by {cause}. {rest}", saga_id=terms.saga_id, pending=pending
    )


def ask_home(
    ending: Ending, error: Exception, found_in: str | None, *, still_open: Callable[[], bool] | None = None
) -> Decision:
    """What home has decided, or decides now, after `error` has left home's own COMMIT unanswered.

    Takes `found_in` and `still_open` as `decide` does. Raises SagaInDoubt where the decision cannot be learnt; then
    everything that is still open is rolled back, and a worker is told.
    """
    header = ending.header
    unresolved: CrosstieError | None = None
    try:
        decided = decide(header, found_in, still_open=still_open)
    except CrosstieError as failure:
        unresolved = failure
    else:
        if decided is not Decision.FORGOTTEN:
            return decided
    ending.roll_back()
    doorbell.ring(header)
    raise in_doubt_of_home(header, unresolved) from error

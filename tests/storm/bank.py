"""A bank with accounts in three databases, and the clients that move money between them until killed.

A transfer takes part in two databases or in all three, and leaves an entry in each of them and an event in one. Some
are given up half-way, some lock the rows that they change, some go forward from home's commit, and beside them writers
move money without any saga.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from functools import partial

import sqlalchemy as sa

from crosstie.orm import ActiveRecord, ConnectionManager, CrosstieError, transaction
from crosstie.orm.field import IntegerPKMixin, UUIDMixin
from crosstie.outbox import Event
from crosstie.sagas import SagaError, SagaInDoubt, saga
from crosstie.workers import doorbell
from storm.mill import grind
from storm.stream import GivenUp, pause

__all__ = ["ACCOUNTS", "HEARS", "MODELS", "OPENING", "Heard", "Transferred", "clients"]

ACCOUNTS = 12
LOCKED = 4
"""The last ones of each database are changed by sagas that lock them, and by nobody else."""
OPENING = 1000
DATABASES = ("default", "secondary", "tertiary")
HEARS = "default"
"""Where the events of all three databases are heard."""


class _Account(IntegerPKMixin, ActiveRecord):
    id: int | None = None
    balance: int = OPENING
    moves: int = 0


class _Entry(UUIDMixin, ActiveRecord):
    transfer: str


class AccountOfDefault(_Account):
    __table_name__ = "bank_accounts"
    __connection__ = "default"


class AccountOfSecondary(_Account):
    __table_name__ = "bank_accounts"
    __connection__ = "secondary"


class AccountOfTertiary(_Account):
    __table_name__ = "bank_accounts"
    __connection__ = "tertiary"


class EntryOfDefault(_Entry):
    __table_name__ = "bank_entries"
    __connection__ = "default"


class EntryOfSecondary(_Entry):
    __table_name__ = "bank_entries"
    __connection__ = "secondary"


class EntryOfTertiary(_Entry):
    __table_name__ = "bank_entries"
    __connection__ = "tertiary"


class Heard(IntegerPKMixin, ActiveRecord):
    """An event of a transfer that a subscriber was given; ids tell in which order."""

    __table_name__ = "bank_heard"
    __connection__ = HEARS

    id: int | None = None
    transfer: str
    saga: str


ACCOUNT: dict[str, type[_Account]] = {
    "default": AccountOfDefault,
    "secondary": AccountOfSecondary,
    "tertiary": AccountOfTertiary,
}
ENTRY: dict[str, type[_Entry]] = {
    "default": EntryOfDefault,
    "secondary": EntryOfSecondary,
    "tertiary": EntryOfTertiary,
}
MODELS: list[type[ActiveRecord]] = [*ACCOUNT.values(), *ENTRY.values(), Heard]


class Transferred(Event):
    """Published by a transfer, in one of its databases."""

    __event_type__ = "bank.transferred"
    __key__ = "transfer"

    transfer: str
    saga: str


class Client:
    """Does one random thing after another, and tells of each transfer what the saga told."""

    def __init__(self, number: int, seed: int) -> None:
        self._name = f"c{number}"
        self._choose = random.Random(seed)
        self._done = 0

    def step(self) -> None:
        """One transfer, or one transaction of somebody who knows no sagas."""
        self._done += 1
        if self._choose.random() < 0.2:
            self.move_within(self._choose.choice(DATABASES))
            return
        name = f"{self._name}-{self._done}"
        databases = self._choose.sample(DATABASES, self._choose.choice([2, 2, 3]))
        try:
            self.transfer(name, databases)
        except GivenUp:
            told = "aborted"
        except SagaInDoubt:
            told = "doubtful"
        except CrosstieError as error:
            if type(error) is SagaError:  # no database has raised it: sagas were used in a wrong way
                raise AssertionError(str(error)) from error
            told = "aborted"
            sys.stdout.write(f"error {type(error).__name__}\n")
        else:
            told = "committed"
        sys.stdout.write(f"{told} {name} {'+'.join(sorted(databases))}\n")
        sys.stdout.flush()

    def transfer(self, name: str, databases: Sequence[str]) -> None:
        """Take from one database what the others get."""
        amounts = [self._choose.randint(-50, 50) for _ in databases[1:]]
        amounts.insert(0, -sum(amounts))
        kind = self._choose.choices(["backward", "forward", "locked"], weights=[5, 3, 2])[0]
        given_up_at = self._choose.choice([*databases, *[""] * 9])
        with saga(
            "transfer",
            home=self._choose.choice(databases),
            isolation="locked" if kind == "locked" else None,
            recover="forward" if kind == "forward" else "backward",
            expiry_s=self._choose.choice([0.3, 3.0]),
        ) as unit:
            for database, amount in zip(databases, amounts, strict=True):
                self._book(database, amount, locked=kind == "locked")
                ENTRY[database](transfer=name).save()
                if database == given_up_at:
                    raise GivenUp
            Transferred(transfer=name, saga=unit.saga_id).publish(self._choose.choice(databases))

    def _book(self, database: str, amount: int, *, locked: bool) -> None:
        if not locked:
            ACCOUNT[database].find(self._choose.randint(1, ACCOUNTS - LOCKED)).increment(balance=amount, moves=1)
            return
        # What was read is written back: right only if nobody else changes the row until the saga has ended.
        number = self._choose.randint(ACCOUNTS - LOCKED + 1, ACCOUNTS)
        account = ACCOUNT[database].find_all().where(id=number).for_update().first()
        assert account is not None
        account.update(balance=account.balance + amount, moves=account.moves + 1)

    def move_within(self, database: str) -> None:
        """Between two accounts of one database."""
        one, other = sorted(self._choose.sample(range(1, ACCOUNTS - LOCKED + 1), 2))
        amount = self._choose.randint(-50, 50)
        with transaction(database):
            ACCOUNT[database].find(one).increment(balance=-amount)
            ACCOUNT[database].find(other).increment(balance=amount)


def _work(number: int, seed: int, *, per_second: float) -> int:
    if number % 4:
        doorbell.deliver_locally(lambda _: None)
    client = Client(number, seed)
    while True:
        try:
            client.step()
        except (CrosstieError, sa.exc.SQLAlchemyError) as error:
            sys.stdout.write(f"error {type(error).__name__}\n")
            sys.stdout.flush()
        pause(1 / per_second)


def clients(count: int, seed: int, per_second: float) -> None:
    """Keep so many clients."""
    ConnectionManager.configure()
    grind(partial(_work, per_second=per_second), count, seed)

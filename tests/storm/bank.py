"""Run as a child process by the bank storm: transfers between accounts of two databases until it is told to stop.

Arguments: name of the process, seed, number of transfers. It prints what it was told of each transfer, one line each:
`committed ID`, `aborted ID` or `doubtful ID`; it may be killed at any moment.
"""

from __future__ import annotations

import random
import sys

from crosstie.orm import ActiveRecord, ConnectionManager, CrosstieError
from crosstie.orm.field import IntegerPKMixin
from crosstie.sagas import SagaInDoubt, saga

ACCOUNTS = 20
OPENING = 1000


class Left(IntegerPKMixin, ActiveRecord):
    """An account in `default`."""

    __table_name__ = "bank_accounts"
    __connection__ = "default"

    id: int | None = None
    balance: int = OPENING
    touched: int = 0


class Right(IntegerPKMixin, ActiveRecord):
    """An account in `secondary`."""

    __table_name__ = "bank_accounts"
    __connection__ = "secondary"

    id: int | None = None
    balance: int = OPENING
    touched: int = 0


class LeftEntry(IntegerPKMixin, ActiveRecord):
    """A transfer as `default` has it."""

    __table_name__ = "bank_entries"
    __connection__ = "default"

    id: int | None = None
    transfer: str


class RightEntry(IntegerPKMixin, ActiveRecord):
    """A transfer as `secondary` has it."""

    __table_name__ = "bank_entries"
    __connection__ = "secondary"

    id: int | None = None
    transfer: str


MODELS: list[type[ActiveRecord]] = [Left, Right, LeftEntry, RightEntry]


def transfer(name: str, amount: int, left: int, right: int, *, home: str) -> None:
    """Move money from one database to the other, with an entry in both."""
    with saga("transfer", home=home, expiry_s=0.5):
        Left.find(left).increment(balance=-amount)
        Right.find(right).increment(balance=amount)
        LeftEntry(transfer=name).save()
        RightEntry(transfer=name).save()


def main(process: str, seed: int, count: int) -> None:
    """Transfer, and tell of each transfer what the saga told."""
    ConnectionManager.configure()
    choose = random.Random(seed)
    for number in range(count):
        name = f"{process}-{number}"
        try:
            transfer(
                name,
                choose.randint(-50, 50),
                choose.randint(1, ACCOUNTS),
                choose.randint(1, ACCOUNTS),
                home=choose.choice(["default", "secondary"]),
            )
            told = "committed"
        except SagaInDoubt:
            told = "doubtful"
        except CrosstieError:
            told = "aborted"
        sys.stdout.write(f"{told} {name}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

"""A payment service outside all databases: a file whose lines say what was charged and refunded, and for which key."""

from __future__ import annotations

import os
from pathlib import Path

from crosstie.sagas import compensation

VARIABLE = "TEST_TILL"


class Refused(Exception):
    """The service does not do what it was asked for."""


def _note(what: str, amount: int, key: str) -> None:
    with Path(os.environ[VARIABLE]).open("a") as lines:
        lines.write(f"{what} {amount} {key}\n")


def charge(amount: int, *, idempotency_key: str) -> str:
    """Take money; the receipt is returned."""
    _note("charge", amount, idempotency_key)
    return f"receipt for {amount}"


def charge_and_fail(amount: int, *, idempotency_key: str) -> None:
    """Take money, and let the caller believe that it failed."""
    _note("charge", amount, idempotency_key)
    raise Refused("timed out")


@compensation("till.refund")
def refund(amount: int, *, idempotency_key: str) -> None:
    """Give money back, unless a file says that the service is down."""
    if Path(os.environ[VARIABLE] + ".down").exists():
        _note("refused", amount, idempotency_key)
        raise Refused("out of order")
    _note("refund", amount, idempotency_key)


def lines(what: str = "") -> list[str]:
    """The lines that begin with a word, without the saga in their keys."""
    path = Path(os.environ[VARIABLE])
    found = path.read_text().splitlines() if path.exists() else []
    shown = [f"{word} {amount} :{key.rpartition(':')[2]}" for word, amount, key in map(str.split, found)]
    return [line for line in shown if line.startswith(what)]


def go_down(down: bool = True) -> None:
    """Have refunds refused from now on, or no longer."""
    path = Path(os.environ[VARIABLE] + ".down")
    path.touch() if down else path.unlink()

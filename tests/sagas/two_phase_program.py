"""Run as a child process by the crash tests of two-phase sagas, with a fault point armed in the environment.

The argument `trio` makes it a saga over three databases.
"""

from __future__ import annotations

import sys
from decimal import Decimal
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import sqlalchemy as sa

from crosstie.orm import ConnectionManager
from crosstie.sagas import SagaBlock, saga
from sagas.shop import Invoice, Order, Stock


def order(expiry_s: float = 0.001) -> str:
    """A model's writes on both sides, and raw SQL in the branch, which could not be undone; the saga's id."""
    with saga("order", commit="two_phase", expiry_s=expiry_s) as s:
        Order(sku="new", amount=Decimal("9.99")).save()
        Stock(sku="new").save()
        s.connection("secondary").execute(sa.text("UPDATE stock SET reserved = reserved + 7 WHERE sku = 'keep'"))
    return s.saga_id


def order_and_invoice(expiry_s: float = 0.001) -> SagaBlock:
    """The same with a second branch, in `tertiary`; home is `default`."""
    with saga("order", commit="two_phase", home="default", expiry_s=expiry_s) as s:
        Order(sku="new", amount=Decimal("9.99")).save()
        Stock(sku="new").save()
        Invoice(sku="new").save()
    return s


if __name__ == "__main__":
    ConnectionManager.configure()
    if sys.argv[1:] == ["trio"]:
        order_and_invoice()
    else:
        order()

"""Run as a child process by the crash tests: one saga, or one sweep, with a fault point armed in the environment.

Arguments: `saga TAG DATABASE…`, `locked TAG DATABASE…` or `sweep - DATABASE…`; the tag is the prefix of the skus that
the saga works on.
"""

from __future__ import annotations

import sys
from decimal import Decimal
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parent.parent))

from crosstie.orm import ConnectionManager
from crosstie.sagas import saga, sweep_sagas
from sagas.shop import Invoice, Order, Stock


def write_everywhere(tag: str, names: list[str], isolation: Literal["locked"] | None) -> None:
    """Insert, update, delete and increment in every database: all the kinds of undo."""
    with saga("order", expiry_s=0.001, isolation=isolation):
        Order(sku=f"{tag}new", amount=Decimal("9.99")).save()
        order = Order.find_by(sku=f"{tag}change")
        assert order is not None
        order.amount = Decimal("2.25")
        order.save()
        for model in (Stock, Invoice):
            if model.__connection__ not in names:
                continue
            model(sku=f"{tag}new").save()
            changed = model.find_by(sku=f"{tag}change")
            deleted = model.find_by(sku=f"{tag}delete")
            assert changed is not None
            assert deleted is not None
            changed.sku = f"{tag}changed"
            changed.save()
            deleted.delete()
        counted = Stock.find_by(sku=f"{tag}count")
        assert counted is not None
        counted.increment(reserved=3)


if __name__ == "__main__":
    ConnectionManager.configure()
    if sys.argv[1] in {"saga", "locked"}:
        write_everywhere(sys.argv[2].strip("-"), sys.argv[3:], "locked" if sys.argv[1] == "locked" else None)
    else:
        for name in sys.argv[3:]:
            sweep_sagas(name)
    sys.stdout.write("finished\n")

"""Run as a child process by the crash tests: one saga with a call, or one sweep, with a fault point armed.

Argument: `saga` or `sweep`.
"""

from __future__ import annotations

import sys
from decimal import Decimal
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from crosstie.orm import ConnectionManager
from crosstie.sagas import saga, sweep_effects, sweep_sagas
from sagas.shop import Order, Stock
from sagas.till import charge, refund

if __name__ == "__main__":
    ConnectionManager.configure()
    if sys.argv[1] == "saga":
        with saga("order", home="default", expiry_s=0.001) as s:
            s.call(charge, 5, compensate=refund)
            Order(sku="new", amount=Decimal(1)).save()
            Stock(sku="new").save()
    else:
        sweep_effects("default")
        for name in ConnectionManager.names():
            sweep_sagas(name)
    sys.stdout.write("finished\n")

"""Run as a child process by the crash tests of forward recovery, with a fault point armed in the environment.

Arguments: `saga DATABASE…` or `sweep DATABASE…`.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from crosstie.orm import ConnectionManager
from crosstie.sagas import saga, sweep_sagas
from sagas.bank import transfer

if __name__ == "__main__":
    ConnectionManager.configure()
    if sys.argv[1] == "saga":
        with saga("transfer", recover="forward", expiry_s=0.001):
            transfer(sys.argv[2:])
    else:
        for name in sys.argv[2:]:
            sweep_sagas(name)
    sys.stdout.write("finished\n")

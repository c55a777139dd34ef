"""A process that sweeps until there is nothing left to sweep. As a program."""

from __future__ import annotations

from crosstie.orm import ConnectionManager
from crosstie.sagas import sweep_sagas
from rivals.blocks import unfinished

if __name__ == "__main__":
    ConnectionManager.configure()
    while unfinished():
        for name in ConnectionManager.names():
            sweep_sagas(name)

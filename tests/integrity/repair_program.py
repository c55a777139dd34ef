"""Run as a child process by the crash tests: a repair, or the undo of all repairs, with a fault point armed.

Arguments: a policy, or `undo`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from crosstie.orm import ConnectionManager
from crosstie.orm.registry import registry
from crosstie.workers.repair import Cap, repair_reference, undo_repair
from crosstie.workers.repair.quarantine import repairs_in
from integrity.blog import USERS, Blog, define_blog


def undo_all() -> None:
    """Undo what the quarantines hold."""
    for name in ConnectionManager.names():
        for one in repairs_in(name):
            undo_repair(one.repair_id)


def repair(blog: Blog, policy: str) -> None:
    """Repair what there is."""

    def make(key: Any) -> Any:
        return blog.user(id=key, name="(gone)")

    repair_reference(USERS, policy, apply=True, cap=Cap(percent=100), recreate=make)


if __name__ == "__main__":
    ConnectionManager.configure()
    if sys.argv[1] == "undo":
        undo_all()
    else:
        with registry.isolated():
            repair(define_blog(), sys.argv[1])
    sys.stdout.write("finished\n")

"""Functions that make a missing parent anew, registered for the references whose policy `recreate` needs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from crosstie.orm.integrity import AuditedReference
from crosstie.orm.model import ActiveRecord
from crosstie.workers.repair.errors import RepairRefused

__all__ = ["ParentMaker", "maker_for", "recreates"]

ParentMaker = Callable[[Any], ActiveRecord]
"""Takes the missing key and returns the parent with it, saved or not, in a transaction of its database."""
F = TypeVar("F", bound=ParentMaker)
_makers: Final[dict[str, ParentMaker]] = {}


def recreates(*references: str) -> Callable[[F], F]:
    """Register a function that makes the missing parents of these references.

    A name may be cut down to its child, as for `crosstie audit`: "posts.user_id".
    """

    def register(maker: F) -> F:
        _makers.update(dict.fromkeys(references, maker))
        return maker

    return register


def maker_for(reference: AuditedReference) -> ParentMaker:
    """The function registered for this reference. Raises RepairRefused where there is none."""
    child = str(reference.child)
    for name, maker in _makers.items():
        if name in {reference.name, child} or child.endswith(f".{name}"):
            return maker
    raise RepairRefused(
        f"{reference.name}: the policy 'recreate' expected a function that makes a parent, and none is registered: "
        f"decorate one with @recreates({child.partition('.')[2]!r}), and import its module."
    )

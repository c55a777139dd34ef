"""Copies by the names that people give them."""

from __future__ import annotations

from collections.abc import Iterable

from crosstie.orm.configuration import nearest
from crosstie.orm.copies import CopyGroup, copy_groups
from crosstie.outbox.errors import UnknownCopy

__all__ = ["select_copies"]


def select_copies(names: Iterable[str] | None = None) -> list[CopyGroup]:
    """The groups in which these copies are, each once; without names, all that are declared.

    A name is `Post.username`, `posts.username`, `secondary.posts.username`, or the whole reference that the copies
    follow. Raises UnknownCopy with the nearest name.
    """
    if names is None:
        return list(copy_groups())
    found: dict[str, CopyGroup] = {}
    for name in names:
        matches = [group for group in copy_groups() if name in _names(group)]
        if not matches:
            known = [one for group in copy_groups() for one in _names(group)]
            hint = nearest(name, known) if known else " No imported model declares any: name its module with --import."
            raise UnknownCopy(f"no denormalised column is called {name!r}.{hint}")
        if len(matches) > 1:
            raise UnknownCopy(
                f"{name!r} may be {' or '.join(repr(one.name) for one in matches)}: write the whole name, quoted."
            )
        found.setdefault(matches[0].name, matches[0])
    return list(found.values())


def _names(group: CopyGroup) -> list[str]:
    child = group.child
    names = [group.name]
    for copy in group.copies:
        names.append(f"{child.model.__name__}.{copy.field.name}")
        names.append(f"{child.table.name}.{copy.field.column.name}")
        names.append(f"{child.connection}.{child.table.name}.{copy.field.column.name}")
    return names

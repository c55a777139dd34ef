"""The words that say what becomes of the rows that refer to a deleted one."""

from __future__ import annotations

from typing import Final, Literal, get_args

from crosstie.orm.configuration import nearest
from crosstie.orm.errors import ModelDefinitionError

__all__ = ["OnDelete", "require_on_delete"]

OnDelete = Literal["none", "restrict", "cascade", "set_null"]
_WORDS: Final[tuple[OnDelete, ...]] = get_args(OnDelete)


def require_on_delete(given: OnDelete) -> OnDelete:
    """The word, if it is one. Raises ModelDefinitionError."""
    if given not in _WORDS:
        raise ModelDefinitionError(
            f"on_delete: expected one of {', '.join(map(repr, _WORDS))}, and found {given!r}."
            f"{nearest(str(given), list(_WORDS))}"
        )
    return given

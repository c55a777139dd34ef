"""What a query can do with its model's relations: load and count with its rows, ask whether any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, Self, TypeVar

from crosstie.orm import counting, eager, strictness
from crosstie.orm.errors import InvalidQuery
from crosstie.orm.modifier import Modifier
from crosstie.orm.semijoin import has_related
from crosstie.orm.strictness import Strictness

if TYPE_CHECKING:
    from crosstie.orm.condition import Condition
    from crosstie.orm.mapping import TableMapping
    from crosstie.orm.model import ActiveRecord
    from crosstie.orm.selection import Selection

__all__ = ["Plan", "RelationQuery"]

M = TypeVar("M", bound="ActiveRecord")


class Plan(NamedTuple):
    """What is to be done with the records of a query once they are loaded."""

    wanted: tuple[eager.Wanted, ...] = ()
    counted: tuple[counting.Counted, ...] = ()
    strict: Strictness | None = None

    def require_loaded(self, selection: Selection) -> None:
        """Raise InvalidQuery where `select` leaves out a key that a relation to be loaded or counted starts from."""
        if selection.loaded is None:
            return
        for path, _ in (*self.wanted, *self.counted):
            relation = selection.mapping.relation(path.partition(".")[0])
            near = relation.link(selection.mapping.model).near
            if near not in selection.loaded:
                raise InvalidQuery(
                    f"{relation!r} is to be loaded, and select() leaves out {near.name!r}, the field that it starts "
                    f"from: add select({near.name!r})."
                )

    def complete(self, model: type[ActiveRecord], records: Sequence[ActiveRecord]) -> None:
        """Load and count what was asked for."""
        if not records:
            return
        strictness.watch(records, self.strict)
        if self.wanted:
            eager.load_paths(model, records, self.wanted, self.strict)
        if self.counted:
            counting.load_counts(model, records, self.counted)


class RelationQuery(Generic[M]):
    """The part of `Query` that knows relations."""

    __slots__ = ()

    _model: type[M]
    _plan: Plan
    _selection: Selection

    if TYPE_CHECKING:

        @property
        def mapping(self) -> TableMapping: ...  # noqa: D102 - Query's, as the others
        def meeting(self, condition: Condition) -> Self: ...  # noqa: D102
        def distinct(self) -> Self: ...  # noqa: D102
        def resolved(self) -> Self: ...  # noqa: D102
        def _planned(self, plan: Plan) -> Self: ...

    def with_(self, *paths: str | Mapping[str, Modifier], **modifiers: Modifier) -> Self:
        """Load these relations with the rows, each in one query: `with_("posts", "posts.comments")`.

        A function narrows or orders what one relation loads, and that one alone:
        `with_(posts=lambda posts: posts.where(published=True))`; for a path, in a mapping:
        `with_({"posts.comments": lambda comments: comments.order_by("-id")})`.
        """
        wanted: list[eager.Wanted] = []
        for path in paths:
            wanted += [(path, None)] if isinstance(path, str) else path.items()
        wanted += modifiers.items()
        for path, modifier in wanted:
            eager.require_path(self._model, path, modifier)
        return self._planned(self._plan._replace(wanted=(*self._plan.wanted, *wanted)))

    def with_count(self, *names: str, **modifiers: Modifier) -> Self:
        """Count what these relations lead to with the rows, each in one query; `record.posts.count()` then knows.

        A function narrows what is counted: `with_count(posts=lambda posts: posts.where(published=True))`.
        """
        counted: list[counting.Counted] = [*((name, None) for name in names), *modifiers.items()]
        for name, modifier in counted:
            counting.require_many(self._model, name, modifier)
        return self._planned(self._plan._replace(counted=(*self._plan.counted, *counted)))

    def where_has(self, path: str, modifier: Modifier | None = None) -> Self:
        """Rows for which a relation (or a path of them) leads to a row; to one that the modifier lets pass.

        Across databases the other one is asked for its keys first, whenever this query is sent.
        """
        return self.meeting(self._related(path, modifier, "where_has", absent=False))

    def where_missing(self, path: str, modifier: Modifier | None = None) -> Self:
        """Rows for which a relation (or a path) leads to no row, or to none that the modifier lets pass."""
        return self.meeting(self._related(path, modifier, "where_missing", absent=True))

    def strict(self, mode: Strictness | None = "raise") -> Self:
        """Records whose relations are not loaded lazily, nor those of records loaded with them.

        A lazy load raises StrictLoadingViolation, or with "warn" warns (LazyLoadWarning); "off" permits it, whatever
        the model's `__strict_loading__` says, and None leaves it to the model.
        """
        if mode is not None:
            strictness.require_strictness(mode, "strict()")
        return self._planned(self._plan._replace(strict=mode))

    def _related(self, path: str, modifier: Modifier | None, method: str, *, absent: bool) -> Condition:
        name, _, rest = path.partition(".")
        relation = self.mapping.relation(name)
        given: list[Modifier] = [] if modifier is None else [modifier]
        if rest:
            given = [lambda rows: rows.where_has(rest, modifier)]
        return has_related(self._model, relation, given, f"{method}({path!r})", absent=absent)

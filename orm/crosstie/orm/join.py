"""Tables joined to a query's own by the relations that lead there, all of them in one database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import sqlalchemy as sa

from crosstie.orm.errors import CrossDatabaseQuery, InvalidQuery
from crosstie.orm.link import Link
from crosstie.orm.mapping import TableMapping

__all__ = ["Join", "joined", "source_of"]


class Join(NamedTuple):
    """The tables that one relation leads over, the last of them its target's."""

    path: str
    hops: tuple[Link, ...]
    outer: bool
    """Whether rows stay for which there is nothing to join."""

    @property
    def repeats(self) -> bool:
        """Whether a row may be joined to several, and so come several times."""
        return not all(hop.key_is_here for hop in self.hops)

    def added_to(self, source: sa.FromClause) -> sa.FromClause:
        """The source with these tables beside it; rows that SoftDeleteMixin hides are not among theirs."""
        for hop in self.hops:
            on: sa.ColumnElement[bool] = hop.near.column == hop.far.column
            hidden = hop.target.soft_delete
            if hidden is not None:
                on = sa.and_(on, hidden.column.is_(None))
            source = source.join(hop.target.table, on, isouter=self.outer)
        return source


def joined(mapping: TableMapping, known: Sequence[Join], path: str, *, outer: bool) -> tuple[Join, ...]:
    """The joins known and those of another path, such as `post.user`, whose beginning may be joined already.

    Raises InvalidQuery where a table would be joined twice, CrossDatabaseQuery where one is in another database.
    """
    found = {join.path: join for join in known}
    here, walked, name = mapping, "", path
    for name in path.split("."):
        link = here.relation(name).link(here.model)
        walked = f"{walked}.{name}" if walked else name
        if walked not in found:
            join = Join(walked, link.chain, outer)
            _require_here(mapping, join)
            _require_once(mapping, list(found.values()), join)
            found[walked] = join
        here = link.target
    if found[walked].outer is not outer:
        raise InvalidQuery(f"{walked!r} is joined twice, by join() and by left_join(): leave out one of them.")
    return tuple(found.values())


def source_of(mapping: TableMapping, joins: Sequence[Join]) -> sa.FromClause:
    """What the query selects from: its own table, and those joined to it."""
    source: sa.FromClause = mapping.table
    for join in joins:
        source = join.added_to(source)
    return source


def _require_here(mapping: TableMapping, join: Join) -> None:
    for hop in join.hops:
        if hop.target.place != mapping.place:
            raise CrossDatabaseQuery(
                f"{mapping.model.__qualname__} is in database {mapping.place!r} and {join.path!r} leads to "
                f"{hop.target.model.__qualname__} in database {hop.target.place!r}: no statement joins them. Narrow by "
                f"where_has({join.path!r}, lambda rows: ...), and load with_({join.path!r})."
            )


def _require_once(mapping: TableMapping, known: Sequence[Join], join: Join) -> None:
    names = {mapping.table.name, *(hop.target.table.name for other in known for hop in other.hops)}
    for hop in join.hops:
        name = hop.target.table.name
        if name in names:
            raise InvalidQuery(
                f"joining {join.path!r} would read the table {name!r} twice, and nothing could tell its columns apart: "
                f"narrow by where_has({join.path!r}, lambda rows: ...)."
            )
        names.add(name)

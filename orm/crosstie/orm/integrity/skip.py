"""The scan of few keys in very many rows: again and again the index is asked for the smallest key above the last."""

from __future__ import annotations

import sqlalchemy as sa

from crosstie.orm.integrity.integers import ChildPage
from crosstie.orm.integrity.packed import ProbeScan
from crosstie.orm.integrity.packing import distances
from crosstie.orm.integrity.storage import IntegerStorage, Raw

__all__ = ["SkipScan", "skips"]


def skips(kind: str) -> bool:
    """Whether recursion helps a database of this kind: MariaDB and MySQL skip by themselves, and limit recursion."""
    return kind in {"postgresql", "sqlite"}


class SkipScan(ProbeScan):
    """Keys without their rows, one step down the index for each; the last step has found nothing more."""

    def page(self, after: Raw | None) -> ChildPage | None:
        """As one recursive statement, so that it sees one state of the table."""
        ends = self.ends
        column = ends.child.typed
        table = ends.child.end.table
        bound = [column <= ends.last, *ends.child.end.conditions]
        above = [*bound] if after is None else [*bound, column > after]
        steps = (
            sa.select(sa.func.min(column).label("key")).select_from(table).where(*above).cte("steps", recursive=True)
        )
        following = sa.select(sa.func.min(column)).select_from(table).where(*bound, column > steps.c.key)
        steps = steps.union_all(sa.select(following.correlate(steps).scalar_subquery()).where(steps.c.key.is_not(None)))
        found = ends.child.database.rows(sa.select(steps.c.key).where(steps.c.key.is_not(None)).limit(self.page_size))
        keys = [row[0] for row in found]
        IntegerStorage().keys(keys)
        return ChildPage(keys[0], distances(keys, keys[0]), keys[-1], None) if keys else None

"""Keys that an audit is to look at: noted in the transaction that changes them, read and taken away by audits.

A note is read after it was committed, and taken away by its id once its key has been looked at. No mark says how far
the notes were read: ids are handed out before their transactions commit, and what commits late would lie below it.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import sqlalchemy as sa

from crosstie.orm.condition import member
from crosstie.orm.database import Database
from crosstie.orm.multi_insert import insert_all
from crosstie.orm.prepared import Prepared
from crosstie.outbox.tables import audit_key

__all__ = ["Notes", "add_notes", "reference_digest"]

_IDS_PER_PAGE: Final = 50_000
_IDS_PER_STATEMENT: Final = 10_000
_KEYS_KEPT: Final = 100_000
"""Of no more notes than these are the keys read together with the ids: some 10 MB."""

_NOTED: Final = Prepared(
    sa.select(audit_key.c.id, audit_key.c.key)
    .where(audit_key.c.reference == sa.bindparam("reference"), audit_key.c.id > sa.bindparam("last"))
    .order_by(audit_key.c.id)
    .limit(sa.literal_column(str(_IDS_PER_PAGE)))
)
_LISTED: Final = sa.text(
    f"DELETE noted FROM JSON_TABLE(:ids, '$[*]' COLUMNS (id BIGINT PATH '$')) AS listed"
    f" STRAIGHT_JOIN {audit_key.name} AS noted FORCE INDEX (PRIMARY) ON noted.id = listed.id"
)
"""In InnoDB: looks each id up, and locks no row besides."""


def reference_digest(reference: str) -> str:
    """What notes call a reference by."""
    return hashlib.sha256(reference.encode()).hexdigest()[:16]


class Notes:
    """The notes of one reference that one database held when this was made. Raises DatabaseUnavailable, NoSuchTable."""

    def __init__(self, database: Database, reference: str) -> None:
        self.database = database
        self.whole_table = False
        """Whether one of them tells that all rows of a table are gone."""
        self._ids = array("q")
        self._keys: list[str] | None = []
        """None where they are too many to be kept."""
        self._reference = reference_digest(reference)
        last = -1
        while True:
            page = database.prepared(_NOTED, {"reference": self._reference, "last": last}).rows
            keys = [key for _, key in page if key is not None]
            self._ids.extend([row_id for row_id, _ in page])
            self.whole_table = self.whole_table or len(keys) < len(page)
            self._keys = None if self._keys is None or len(self._ids) > _KEYS_KEPT else self._keys + keys
            if len(page) < _IDS_PER_PAGE:
                break
            last = page[-1][0]

    def __len__(self) -> int:
        return len(self._ids)

    def keys(self) -> Iterator[str]:
        """Their keys, some of them several times, and perhaps a few that were noted since.

        Raises DatabaseUnavailable.
        """
        if self._keys is not None:
            yield from self._keys
            return
        columns = audit_key.c
        noted = sa.select(columns.key).where(columns.reference == self._reference, columns.key.is_not(None))
        for ids in self._pages():
            yield from (row[0] for row in self.database.rows(noted.where(columns.id.between(ids[0], ids[-1]))))

    def take_away(self, connection: sa.Connection | None = None) -> None:
        """Delete them: on this connection, whose caller commits, or bit by bit. Raises DatabaseUnavailable."""
        if connection is not None:
            self._delete(connection)
            return
        with self.database.mapped_errors(), self.database.autocommit.connect() as own:
            self._delete(own)

    def _delete(self, connection: sa.Connection) -> None:
        # By id: a range would lock and wait for those that others are just writing. So would an IN list in InnoDB,
        # which locks each row that it looks at, and reads a small table as a whole.
        for ids in self._pages():
            if self.database.kind in {"mariadb", "mysql"}:
                connection.execute(_LISTED, {"ids": json.dumps(list(ids))})
            else:
                connection.execute(sa.delete(audit_key).where(member(audit_key.c.id, ids, self.database)))

    def _pages(self) -> Iterator[Sequence[int]]:
        for start in range(0, len(self._ids), _IDS_PER_STATEMENT):
            yield self._ids[start : start + _IDS_PER_STATEMENT].tolist()


def add_notes(connection: sa.Connection, reference: str, keys: Iterable[str]) -> None:
    """Have these keys looked at by the next audit; the caller commits."""
    digest = reference_digest(reference)
    insert_all(connection, audit_key, [{"reference": digest, "key": key} for key in keys])

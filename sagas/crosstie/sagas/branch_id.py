"""The names under which servers keep the prepared branches of two-phase sagas.

Such a name is all that a crash may leave of a saga, so it says what a worker needs to decide over it: the saga, its
home, which participant this is, and from when on a worker may end it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote

from crosstie.orm.database import Database
from crosstie.outbox.batch import BLOCK_STEP
from crosstie.sagas.errors import TwoPhaseUnavailable

__all__ = ["BranchId"]

_MARK: Final = "crosstie"
_POSTGRESQL_BYTES: Final = 199
_XA_BYTES: Final = 64
"""Of each of the two parts of an XA id."""


@dataclass(frozen=True)
class BranchId:
    """One prepared branch. `expires_at_ms` is by the clock of the process that began it."""

    saga_id: str
    home: str
    branch: str
    expires_at_ms: int

    def gid(self) -> str:
        """PostgreSQL's name: `crosstie:<home>:<saga>:<step>:<branch>:<expiry>`. Raises TwoPhaseUnavailable."""
        gid = f"{_MARK}:{quote(self.home)}:{self.saga_id}:{BLOCK_STEP}:{quote(self.branch)}:{self.expires_at_ms:x}"
        return self._within(_POSTGRESQL_BYTES, gid)

    def xid(self, database: Database) -> str:
        """The XA id as SQL: `crosstie:<saga>:<step>:<expiry>`, `<home>:<branch>`, and a number of the database.

        A server lists the ids of all of its databases together; the number keeps installations apart that call their
        connections alike. Raises TwoPhaseUnavailable.
        """
        gtrid = f"{_MARK}:{self.saga_id}:{BLOCK_STEP}:{self.expires_at_ms:x}"
        bqual = self._within(_XA_BYTES, f"{quote(self.home)}:{quote(self.branch)}")
        return f"X'{gtrid.encode().hex()}',X'{bqual.encode().hex()}',{_number_of(database)}"

    def _within(self, limit: int, text: str) -> str:
        if len(text) > limit:
            raise TwoPhaseUnavailable(
                f"expected a name of at most {limit} bytes for the prepared branch {self.branch!r} and found "
                f"{len(text)} ({text}). Nothing was committed. Give the connections {self.home!r} and {self.branch!r} "
                "shorter names."
            )
        return text

    @classmethod
    def from_gid(cls, gid: str) -> BranchId | None:
        """The branch that PostgreSQL calls so; None where that is not ours."""
        parts = gid.split(":")
        if len(parts) != 6 or parts[0] != _MARK or parts[3] != str(BLOCK_STEP):
            return None
        return cls._of(parts[2], parts[1], parts[4], parts[5])

    @classmethod
    def from_xid(cls, database: Database, number: int, gtrid: str, bqual: str) -> BranchId | None:
        """The branch of this database that its server calls so; None where that is not ours."""
        parts, names = gtrid.split(":"), bqual.split(":")
        if number != _number_of(database) or len(parts) != 4 or len(names) != 2:
            return None
        if parts[0] != _MARK or parts[2] != str(BLOCK_STEP):
            return None
        return cls._of(parts[1], names[0], names[1], parts[3])

    @classmethod
    def _of(cls, saga_id: str, home: str, branch: str, expiry: str) -> BranchId | None:
        try:
            return cls(saga_id, unquote(home), unquote(branch), int(expiry, 16))
        except ValueError:
            return None


def _number_of(database: Database) -> int:
    return zlib.crc32(database.settings.database.encode()) & 0x7FFF_FFFF

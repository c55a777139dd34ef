"""From the version that a database has to the one that is wanted, a step at a time."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from crosstie.orm.database import Database
from crosstie.orm.faults import fault_point
from crosstie.outbox.errors import SchemaChangeOffline, SchemaTooNew, UnknownSchemaVersion
from crosstie.outbox.migrations import version_1
from crosstie.outbox.migrations.history import forget, record, recorded_version
from crosstie.outbox.migrations.lock import alone
from crosstie.outbox.migrations.version import Version

__all__ = ["current_version", "downgrade", "downgrade_to", "newest_version", "upgrade", "upgrade_to"]

VERSIONS: Final[tuple[Version, ...]] = (Version(1, version_1.up, version_1.down),)


def newest_version() -> int:
    """The version of the tables that this crosstie works with."""
    return VERSIONS[-1].number


def current_version(place: Database | sa.Connection) -> int:
    """The version of crosstie's tables in a database; 0 where it has none. Raises DatabaseUnavailable."""
    if isinstance(place, Database):
        with place.mapped_errors(), place.autocommit.connect() as connection:
            return recorded_version(connection)
    return recorded_version(place)


def upgrade(database: Database, to: int | None = None) -> list[int]:
    """Bring a database up to a version, the newest if none is given; returns the versions that were applied.

    A database that is further is left as it is. Commits; after an error, or the death of the process, repeat it. Raises
    SchemaTooNew, UnknownSchemaVersion, LockTimeout, DatabaseUnavailable.
    """
    with database.mapped_errors(), database.engine.begin() as connection:
        return upgrade_to(connection, newest_version() if to is None else to)


def downgrade(database: Database, to: int) -> list[int]:
    """Take a database back to a version, 0 for none of crosstie's tables; returns the versions that were taken back.

    Raises SchemaInUse where work would be lost that nobody has finished, and what `upgrade` raises.
    """
    with database.mapped_errors(), database.engine.begin() as connection:
        return downgrade_to(connection, to)


def upgrade_to(connection: sa.Connection, version: int) -> list[int]:
    """`upgrade` in the caller's transaction, which the caller commits: `upgrade_to(op.get_bind(), 1)` in Alembic.

    On MySQL and MariaDB every step commits. Raises also SchemaChangeOffline; the driver's errors stay SQLAlchemy's.
    """
    _require_online(connection)
    with alone(connection):
        found = _checked(connection, version)
        wanted = [step for step in VERSIONS if found < step.number <= version]
        for step in wanted:
            step.up(connection)
            fault_point("migration.applied")
            record(connection, step.number)
    return [step.number for step in wanted]


def downgrade_to(connection: sa.Connection, version: int) -> list[int]:
    """`downgrade` in the caller's transaction, which the caller commits: `downgrade_to(op.get_bind(), 0)` in Alembic.

    On MySQL and MariaDB every step commits. Raises also SchemaChangeOffline; the driver's errors stay SQLAlchemy's.
    """
    _require_online(connection)
    with alone(connection):
        found = _checked(connection, version)
        wanted = [step for step in reversed(VERSIONS) if version < step.number <= found]
        for step in wanted:
            step.down(connection)
            fault_point("migration.taken-back")
            forget(connection, step.number)
    return [step.number for step in wanted]


def _require_online(connection: object) -> None:
    if not isinstance(connection, sa.Connection):
        raise SchemaChangeOffline(
            f"expected a connection to the database and found {type(connection).__name__}: the steps look at what is "
            "there, so `alembic upgrade --sql` cannot write them down. Run the migration online."
        )


def _checked(connection: sa.Connection, version: int) -> int:
    if version not in range(newest_version() + 1):
        raise UnknownSchemaVersion(
            f"expected a version of crosstie's tables from 0 to {newest_version()} and found {version!r}: "
            "install the crosstie that has it."
        )
    found = recorded_version(connection)
    if found > newest_version():
        raise SchemaTooNew(
            f"expected crosstie's tables at version {newest_version()} or an older one and found version {found}, "
            "which a newer crosstie has made: install that one here, or let it downgrade the tables first."
        )
    return found

"""crosstie's own tables, one description for every database: as the newest version of `migrations` leaves them.

Times are BIGINT milliseconds of the database's own clock. `participant`, `route` and other names come from the
configuration; they are short ASCII and compared byte by byte.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from crosstie.orm.clock import now_ms
from crosstie.orm.database import Database
from crosstie.outbox.migrations.change import newest_version, upgrade_to
from crosstie.outbox.migrations.ddl import create_missing, drop_existing
from crosstie.outbox.migrations.history import history
from crosstie.outbox.migrations.lock import alone

__all__ = [
    "METADATA",
    "audit_chunk",
    "audit_key",
    "audit_run",
    "create_tables",
    "drop_tables",
    "effect",
    "finding",
    "flush",
    "has_tables",
    "inbox",
    "lane",
    "outbox",
    "parked",
    "quarantine",
    "route",
    "run",
    "run_step",
    "saga",
    "saga_lock",
    "schema",
    "tables_for",
    "tick",
]

_MYSQL: Final[dict[str, Any]] = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}
METADATA: Final = sa.MetaData()

LongText: Final = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
Name: Final = sa.String(120)
Origin: Final = sa.String(140)
"""A database's name when a lane was made there, and a random part: no other lane, and no later one, is called so."""


def _state_check(column: str, *states: str, name: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(sa.column(column).in_([sa.literal_column(f"'{state}'") for state in states]), name=name)


saga: Final = sa.Table(
    "crosstie_saga",
    METADATA,
    # The key is a write-once register: the first committed insert wins, and all safety of the protocol rests on it.
    sa.Column("saga_id", sa.String(36), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("participant", Name, primary_key=True),
    sa.Column("role", sa.String(8), nullable=False),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("home", Name, nullable=False),
    sa.Column("participants", LongText, nullable=False),
    sa.Column("mode", sa.String(12), nullable=False, server_default="backward"),
    sa.Column("undo_log", LongText, nullable=False),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False, default=now_ms()),
    sa.Column("updated_at_ms", sa.BigInteger, nullable=False, default=now_ms()),
    sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
    sa.Column("next_at_ms", sa.BigInteger, nullable=False, default=0),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("quarantine", LongText),
    _state_check("role", "home", "branch", name="crosstie_saga_role"),
    _state_check("mode", "backward", "two_phase", "forward", name="crosstie_saga_mode"),
    sa.CheckConstraint(
        "(role = 'home' AND state IN ('owed', 'committed', 'aborted', 'finished'))"
        " OR (role = 'branch' AND state IN ('applied', 'refused', 'undone', 'done'))",
        name="crosstie_saga_state",
    ),
    sa.Index("crosstie_saga_due", "state", "expires_at_ms"),
    **_MYSQL,
)

effect: Final = sa.Table(
    "crosstie_effect",
    METADATA,
    # In the home of its saga, so that one transaction decides over both.
    sa.Column("saga_id", sa.String(36), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("home", Name, nullable=False),
    sa.Column("saga_name", sa.String(200), nullable=False),
    sa.Column("compensation", sa.String(200), nullable=False),
    sa.Column("arguments", LongText, nullable=False),
    sa.Column("state", sa.String(12), nullable=False, default="open"),
    sa.Column("epoch", sa.BigInteger, nullable=False, default=0),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False, default=now_ms()),
    sa.Column("updated_at_ms", sa.BigInteger, nullable=False, default=now_ms()),
    sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
    sa.Column("next_at_ms", sa.BigInteger, nullable=False, default=0),
    sa.Column("lease_until_ms", sa.BigInteger, nullable=False, default=0),
    sa.Column("error", LongText),
    _state_check(
        "state", "open", "settled", "due", "quarantined", "compensated", "skipped", name="crosstie_effect_state"
    ),
    sa.Index("crosstie_effect_due", "state", "next_at_ms"),
    **_MYSQL,
)


saga_lock: Final = sa.Table(
    "crosstie_saga_lock",
    METADATA,
    sa.Column("table_name", sa.String(200), primary_key=True),
    sa.Column("row_key", sa.String(400), primary_key=True),
    sa.Column("saga_id", sa.String(36), nullable=False),
    sa.Column("participant", Name, nullable=False),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False, default=now_ms()),
    sa.Index("crosstie_saga_lock_owner", "saga_id", "participant"),
    **_MYSQL,
)


def _event_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("uid", sa.String(36), nullable=False),
        sa.Column("key", sa.String(190), nullable=False),
        sa.Column("version", sa.BigInteger),
        sa.Column("operation", sa.String(12), nullable=False, default="event"),
        sa.Column("type", sa.String(200), nullable=False),
        sa.Column("schema_version", sa.Integer, nullable=False, default=1),
        sa.Column("payload", LongText, nullable=False),
        sa.Column("headers", LongText, nullable=False),
        sa.Column("saga_id", sa.String(36)),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False, default=now_ms()),
    ]


outbox: Final = sa.Table(
    "crosstie_outbox",
    METADATA,
    sa.Column("route", Name, nullable=False),
    sa.Column("lane", sa.Integer, nullable=False, autoincrement=False),
    sa.Column("id", sa.BigInteger, sa.Identity(cache=1), nullable=False, autoincrement=True),
    *_event_columns(),
    sa.PrimaryKeyConstraint("route", "lane", "id"),
    # InnoDB clusters by the key above and asks for an index that begins with the numbered column.
    # ddl_if takes a tuple of dialects, by its documentation if not by its annotation.
    sa.UniqueConstraint("id", name="crosstie_outbox_id").ddl_if(dialect=("mysql", "mariadb")),  # type: ignore[arg-type]
    **_MYSQL,
    # Every row of the outbox is deleted within seconds: by the default thresholds dead rows would pile up.
    postgresql_with={
        "autovacuum_vacuum_scale_factor": 0,
        "autovacuum_vacuum_threshold": 1000,
        "autovacuum_vacuum_cost_delay": 0,
    },
)
_SQLITE_OUTBOX: Final = sa.Table(
    # SQLite numbers rows only through INTEGER PRIMARY KEY, so the order of a lane is an index there.
    "crosstie_outbox",
    sa.MetaData(),
    sa.Column("route", Name, nullable=False),
    sa.Column("lane", sa.Integer, nullable=False),
    sa.Column("id", sa.Integer, primary_key=True),
    *_event_columns(),
    sa.Index("crosstie_outbox_lane", "route", "lane", "id"),
    sqlite_autoincrement=True,
)

lane: Final = sa.Table(
    "crosstie_lane",
    METADATA,
    sa.Column("route", Name, primary_key=True),
    sa.Column("lane", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("origin", Origin, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False, default=0),
    sa.Column("owner", sa.String(120), nullable=False, default=""),
    sa.Column("lease_until_ms", sa.BigInteger, nullable=False, default=0),
    # Given back by its last owner, which had entered the target, with everything acknowledged that it had applied.
    sa.Column("settled", sa.Integer, nullable=False, default=0),
    # No event with this id or a smaller one is in the lane, nor ever will be (horizon.py); 0 where nobody knows.
    sa.Column("emptied_to", sa.BigInteger, nullable=False, default=0),
    sa.Column("ready_at_ms", sa.BigInteger, nullable=False, default=0),
    sa.Column("failures", sa.Integer, nullable=False, default=0),
    sa.Column("last_error", LongText),
    sa.Column("paused_at_ms", sa.BigInteger),
    # Owners in a row that let their lease run out without having acknowledged anything, the event that was noted before
    # it was tried alone, and up to which one events may be to blame.
    sa.Column("deaths", sa.Integer, nullable=False, default=0),
    sa.Column("trying", sa.BigInteger),
    sa.Column("suspects_to", sa.BigInteger),
    **_MYSQL,
    postgresql_with={"fillfactor": 50},
)

parked: Final = sa.Table(
    "crosstie_parked",
    METADATA,
    sa.Column("route", Name, primary_key=True),
    sa.Column("lane", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    *_event_columns(),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("next_at_ms", sa.BigInteger, nullable=False, default=0),
    sa.Column("parked_at_ms", sa.BigInteger, nullable=False, default=now_ms()),
    sa.Column("error", LongText, nullable=False),
    # Workers that died while they applied it.
    sa.Column("deaths", sa.Integer, nullable=False, default=0),
    _state_check("state", "failing", "undeployed", "dead", "skipped", "behind", name="crosstie_parked_state"),
    sa.Index("crosstie_parked_due", "route", "lane", "state", "next_at_ms"),
    sa.Index("crosstie_parked_key", "route", "lane", "key", "id"),
    **_MYSQL,
)

route: Final = sa.Table(
    "crosstie_route",
    METADATA,
    sa.Column("route", Name, primary_key=True),
    sa.Column("event_type", sa.String(200), primary_key=True),
    sa.Column("lanes", sa.Integer, nullable=False),
    **_MYSQL,
)

inbox: Final = sa.Table(
    "crosstie_inbox",
    METADATA,
    sa.Column("origin", Origin, primary_key=True),
    sa.Column("route", Name, primary_key=True),
    sa.Column("lane", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("epoch", sa.BigInteger, nullable=False, default=0),
    sa.Column("ids", LongText, nullable=False),
    sa.Column("used_at_ms", sa.BigInteger, nullable=False, default=now_ms(), onupdate=now_ms()),
    **_MYSQL,
)

run: Final = sa.Table(
    "crosstie_run",
    METADATA,
    sa.Column("run_id", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("status", sa.String(12), nullable=False),
    sa.Column("data", LongText, nullable=False),
    sa.Column("signals", LongText, nullable=False),
    sa.Column("saga_id", sa.String(36)),
    sa.Column("deadline_ms", sa.BigInteger),
    sa.Column("error", LongText),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("updated_at_ms", sa.BigInteger, nullable=False),
    _state_check("status", "running", "compensating", "done", "compensated", name="crosstie_run_status"),
    sa.Index("crosstie_run_ended", "status", "updated_at_ms"),
    **_MYSQL,
)

run_step: Final = sa.Table(
    "crosstie_run_step",
    METADATA,
    sa.Column("run_id", sa.String(36), primary_key=True),
    sa.Column("step", sa.String(120), primary_key=True),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("waits_for", sa.String(120)),
    sa.Column("delay_ms", sa.BigInteger, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("unfinished", sa.Integer, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("owner", sa.String(120), nullable=False),
    sa.Column("lease_until_ms", sa.BigInteger, nullable=False),
    sa.Column("next_at_ms", sa.BigInteger, nullable=False),
    sa.Column("became_due_at_ms", sa.BigInteger, nullable=False),
    sa.Column("error", LongText),
    _state_check(
        "state",
        *("ready", "waiting", "done", "failed", "undo", "undone", "quarantined"),
        name="crosstie_run_step_state",
    ),
    sa.Index("crosstie_run_step_due", "state", "next_at_ms"),
    **_MYSQL,
)

tick: Final = sa.Table(
    "crosstie_tick",
    METADATA,
    sa.Column("name", sa.String(120), primary_key=True),
    sa.Column("slot", sa.BigInteger, nullable=False, default=-1),
    sa.Column("epoch", sa.BigInteger, nullable=False, default=0),
    sa.Column("owner", sa.String(120), nullable=False, default=""),
    sa.Column("lease_until_ms", sa.BigInteger, nullable=False, default=0),
    sa.Column("done_slot", sa.BigInteger, nullable=False, default=-1),
    **_MYSQL,
)

flush: Final = sa.Table(
    "crosstie_flush",
    METADATA,
    # What is written here means nothing; that it is committed does (durability.py).
    sa.Column("slot", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("turn", sa.BigInteger, nullable=False),
    **_MYSQL,
)

audit_run: Final = sa.Table(
    "crosstie_audit_run",
    METADATA,
    sa.Column("run_id", sa.String(36), primary_key=True),
    sa.Column("reference", sa.String(400), primary_key=True),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("started_at_ms", sa.BigInteger, nullable=False, default=now_ms()),
    sa.Column("finished_at_ms", sa.BigInteger),
    sa.Column("rows_checked", sa.BigInteger, nullable=False, default=0),
    sa.Column("findings", sa.BigInteger, nullable=False, default=0),
    sa.Column("detail", LongText),
    sa.Column("epoch", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("owner", sa.String(120), nullable=False, server_default=""),
    sa.Column("lease_until_ms", sa.BigInteger, nullable=False, server_default="0"),
    _state_check("state", "running", "ok", "findings", "incomplete", name="crosstie_audit_run_state"),
    **_MYSQL,
)

audit_chunk: Final = sa.Table(
    "crosstie_audit_chunk",
    METADATA,
    # A range of keys of a run: its result and the rest that is left of it are written by one transaction.
    sa.Column("run_id", sa.String(36), primary_key=True),
    sa.Column("reference", sa.String(400), primary_key=True),
    sa.Column("chunk_id", sa.String(36), primary_key=True),
    sa.Column("lo", LongText, nullable=False),
    sa.Column("hi", LongText, nullable=False),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False, default=0),
    sa.Column("owner", sa.String(120), nullable=False, default=""),
    sa.Column("lease_until_ms", sa.BigInteger, nullable=False, default=0),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("keys_checked", sa.BigInteger, nullable=False, default=0),
    sa.Column("result", LongText),
    _state_check("state", "ready", "done", name="crosstie_audit_chunk_state"),
    **_MYSQL,
)

finding: Final = sa.Table(
    "crosstie_finding",
    METADATA,
    sa.Column("run_id", sa.String(36), primary_key=True),
    sa.Column("reference", sa.String(400), primary_key=True),
    sa.Column("child_key", sa.String(190), primary_key=True),
    sa.Column("parent_key", sa.String(400), nullable=False),
    sa.Column("kind", sa.String(20), nullable=False, default="orphan"),
    sa.Column("found_at_ms", sa.BigInteger, nullable=False, default=now_ms()),
    **_MYSQL,
)

audit_key: Final = sa.Table(
    "crosstie_audit_key",
    METADATA,
    # A key that the next audit looks at: changed, which triggers note, or not in order when it was last looked at.
    # No key is unique here: writers would wait for each other.
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    # A digest of its name: a row is written for each change.
    sa.Column("reference", sa.String(16), nullable=False),
    # NULL: the rows of a whole table are gone, and nobody knows their keys.
    sa.Column("key", LongText),
    sa.Index("crosstie_audit_key_reference", "reference", "id"),
    **_MYSQL,
)

quarantine: Final = sa.Table(
    "crosstie_quarantine",
    METADATA,
    # What a repair has taken out of a row or out of its table, in the transaction that took it.
    sa.Column("repair_id", sa.String(36), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("reference", sa.String(400), nullable=False),
    sa.Column("policy", sa.String(12), nullable=False),
    sa.Column("child_key", LongText, nullable=False),
    sa.Column("parent_key", LongText, nullable=False),
    sa.Column("image", LongText),
    sa.Column("undo_log", LongText, nullable=False),
    sa.Column("notes", LongText, nullable=False),
    sa.Column("state", sa.String(12), nullable=False, default="repaired"),
    sa.Column("repaired_at_ms", sa.BigInteger, nullable=False, default=now_ms()),
    sa.Column("restored_at_ms", sa.BigInteger),
    sa.Column("error", LongText),
    _state_check("state", "repaired", "restored", name="crosstie_quarantine_state"),
    **_MYSQL,
)


schema: Final = history.to_metadata(METADATA)


def tables_for(kind: str) -> list[sa.Table]:
    """The tables as a kind of database has them, in the order of their making."""
    if kind == "sqlite":
        return [_SQLITE_OUTBOX if table is outbox else table for table in METADATA.sorted_tables]
    return METADATA.sorted_tables


def create_tables(database: Database) -> list[str]:
    """Bring crosstie's tables to the newest version, and create any that is missing; returns the names of those made.

    Safe to repeat, and for several processes at once. Raises SchemaTooNew, LockTimeout, DatabaseUnavailable.
    """
    with database.mapped_errors(), database.engine.begin() as connection, alone(connection):
        before = set(sa.inspect(connection).get_table_names())
        upgrade_to(connection, newest_version())
        tables = tables_for(database.kind)
        create_missing(connection, tables)
    return [table.name for table in tables if table.name not in before]


def drop_tables(database: Database) -> None:
    """Drop crosstie's tables and all that is in them."""
    with database.mapped_errors(), database.engine.begin() as connection:
        drop_existing(connection, reversed(tables_for(database.kind)))


def has_tables(database: Database) -> bool:
    """Whether `create_tables` has run here. Raises DatabaseUnavailable."""
    with database.mapped_errors(), database.autocommit.connect() as connection:
        return sa.inspect(connection).has_table(saga.name)

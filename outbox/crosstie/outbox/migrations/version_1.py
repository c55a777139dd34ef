"""Version 1: sagas, outbox and relay, audits. What version 0.1 of crosstie was made with.

Frozen: it describes what databases out there have, so a change of the tables is a version of its own.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from crosstie.outbox.errors import SchemaInUse
from crosstie.outbox.migrations.ddl import create_missing, drop_existing

__all__ = ["down", "up"]

_MYSQL: Final[dict[str, Any]] = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}
_METADATA: Final = sa.MetaData()

_LONG: Final = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
_NAME: Final = sa.String(120)
_ORIGIN: Final = sa.String(140)


def _state_check(column: str, *states: str, name: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(sa.column(column).in_([sa.literal_column(f"'{state}'") for state in states]), name=name)


_saga: Final = sa.Table(
    "crosstie_saga",
    _METADATA,
    sa.Column("saga_id", sa.String(36), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("participant", _NAME, primary_key=True),
    sa.Column("role", sa.String(8), nullable=False),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("home", _NAME, nullable=False),
    sa.Column("participants", _LONG, nullable=False),
    sa.Column("mode", sa.String(12), nullable=False, server_default="backward"),
    sa.Column("undo_log", _LONG, nullable=False),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("updated_at_ms", sa.BigInteger, nullable=False),
    sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
    sa.Column("next_at_ms", sa.BigInteger, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("quarantine", _LONG),
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

_effect: Final = sa.Table(
    "crosstie_effect",
    _METADATA,
    sa.Column("saga_id", sa.String(36), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("home", _NAME, nullable=False),
    sa.Column("saga_name", sa.String(200), nullable=False),
    sa.Column("compensation", sa.String(200), nullable=False),
    sa.Column("arguments", _LONG, nullable=False),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("updated_at_ms", sa.BigInteger, nullable=False),
    sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
    sa.Column("next_at_ms", sa.BigInteger, nullable=False),
    sa.Column("lease_until_ms", sa.BigInteger, nullable=False),
    sa.Column("error", _LONG),
    _state_check(
        "state", "open", "settled", "due", "quarantined", "compensated", "skipped", name="crosstie_effect_state"
    ),
    sa.Index("crosstie_effect_due", "state", "next_at_ms"),
    **_MYSQL,
)


sa.Table(
    "crosstie_saga_lock",
    _METADATA,
    sa.Column("table_name", sa.String(200), primary_key=True),
    sa.Column("row_key", sa.String(400), primary_key=True),
    sa.Column("saga_id", sa.String(36), nullable=False),
    sa.Column("participant", _NAME, nullable=False),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Index("crosstie_saga_lock_owner", "saga_id", "participant"),
    **_MYSQL,
)


def _event_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("uid", sa.String(36), nullable=False),
        sa.Column("key", sa.String(190), nullable=False),
        sa.Column("version", sa.BigInteger),
        sa.Column("operation", sa.String(12), nullable=False),
        sa.Column("type", sa.String(200), nullable=False),
        sa.Column("schema_version", sa.Integer, nullable=False),
        sa.Column("payload", _LONG, nullable=False),
        sa.Column("headers", _LONG, nullable=False),
        sa.Column("saga_id", sa.String(36)),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    ]


_outbox: Final = sa.Table(
    "crosstie_outbox",
    _METADATA,
    sa.Column("route", _NAME, nullable=False),
    sa.Column("lane", sa.Integer, nullable=False, autoincrement=False),
    sa.Column("id", sa.BigInteger, sa.Identity(cache=1), nullable=False, autoincrement=True),
    *_event_columns(),
    sa.PrimaryKeyConstraint("route", "lane", "id"),
    sa.UniqueConstraint("id", name="crosstie_outbox_id").ddl_if(dialect=("mysql", "mariadb")),  # type: ignore[arg-type]
    **_MYSQL,
    postgresql_with={
        "autovacuum_vacuum_scale_factor": 0,
        "autovacuum_vacuum_threshold": 1000,
        "autovacuum_vacuum_cost_delay": 0,
    },
)
_SQLITE_OUTBOX: Final = sa.Table(
    "crosstie_outbox",
    sa.MetaData(),
    sa.Column("route", _NAME, nullable=False),
    sa.Column("lane", sa.Integer, nullable=False),
    sa.Column("id", sa.Integer, primary_key=True),
    *_event_columns(),
    sa.Index("crosstie_outbox_lane", "route", "lane", "id"),
    sqlite_autoincrement=True,
)

sa.Table(
    "crosstie_lane",
    _METADATA,
    sa.Column("route", _NAME, primary_key=True),
    sa.Column("lane", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("origin", _ORIGIN, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("owner", sa.String(120), nullable=False),
    sa.Column("lease_until_ms", sa.BigInteger, nullable=False),
    sa.Column("settled", sa.Integer, nullable=False, default=0),
    sa.Column("emptied_to", sa.BigInteger, nullable=False, default=0),
    sa.Column("ready_at_ms", sa.BigInteger, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("last_error", _LONG),
    sa.Column("paused_at_ms", sa.BigInteger),
    sa.Column("deaths", sa.Integer, nullable=False, default=0),
    sa.Column("trying", sa.BigInteger),
    sa.Column("suspects_to", sa.BigInteger),
    **_MYSQL,
    postgresql_with={"fillfactor": 50},
)

_parked: Final = sa.Table(
    "crosstie_parked",
    _METADATA,
    sa.Column("route", _NAME, primary_key=True),
    sa.Column("lane", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    *_event_columns(),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("next_at_ms", sa.BigInteger, nullable=False),
    sa.Column("parked_at_ms", sa.BigInteger, nullable=False),
    sa.Column("error", _LONG, nullable=False),
    sa.Column("deaths", sa.Integer, nullable=False, default=0),
    _state_check("state", "failing", "undeployed", "dead", "skipped", "behind", name="crosstie_parked_state"),
    sa.Index("crosstie_parked_due", "route", "lane", "state", "next_at_ms"),
    sa.Index("crosstie_parked_key", "route", "lane", "key", "id"),
    **_MYSQL,
)

sa.Table(
    "crosstie_route",
    _METADATA,
    sa.Column("route", _NAME, primary_key=True),
    sa.Column("event_type", sa.String(200), primary_key=True),
    sa.Column("lanes", sa.Integer, nullable=False),
    **_MYSQL,
)

sa.Table(
    "crosstie_inbox",
    _METADATA,
    sa.Column("origin", _ORIGIN, primary_key=True),
    sa.Column("route", _NAME, primary_key=True),
    sa.Column("lane", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("ids", _LONG, nullable=False),
    sa.Column("used_at_ms", sa.BigInteger, nullable=False),
    **_MYSQL,
)

sa.Table(
    "crosstie_tick",
    _METADATA,
    sa.Column("name", sa.String(120), primary_key=True),
    sa.Column("slot", sa.BigInteger, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("owner", sa.String(120), nullable=False),
    sa.Column("lease_until_ms", sa.BigInteger, nullable=False),
    sa.Column("done_slot", sa.BigInteger, nullable=False),
    **_MYSQL,
)

sa.Table(
    "crosstie_flush",
    _METADATA,
    sa.Column("slot", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("turn", sa.BigInteger, nullable=False),
    **_MYSQL,
)

_run: Final = sa.Table(
    "crosstie_run",
    _METADATA,
    sa.Column("run_id", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("status", sa.String(12), nullable=False),
    sa.Column("data", _LONG, nullable=False),
    sa.Column("signals", _LONG, nullable=False),
    sa.Column("saga_id", sa.String(36)),
    sa.Column("deadline_ms", sa.BigInteger),
    sa.Column("error", _LONG),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("updated_at_ms", sa.BigInteger, nullable=False),
    _state_check("status", "running", "compensating", "done", "compensated", name="crosstie_run_status"),
    sa.Index("crosstie_run_ended", "status", "updated_at_ms"),
    **_MYSQL,
)

sa.Table(
    "crosstie_run_step",
    _METADATA,
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
    sa.Column("error", _LONG),
    _state_check(
        "state",
        *("ready", "waiting", "done", "failed", "undo", "undone", "quarantined"),
        name="crosstie_run_step_state",
    ),
    sa.Index("crosstie_run_step_due", "state", "next_at_ms"),
    **_MYSQL,
)

sa.Table(
    "crosstie_audit_run",
    _METADATA,
    sa.Column("run_id", sa.String(36), primary_key=True),
    sa.Column("reference", sa.String(400), primary_key=True),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("started_at_ms", sa.BigInteger, nullable=False),
    sa.Column("finished_at_ms", sa.BigInteger),
    sa.Column("rows_checked", sa.BigInteger, nullable=False),
    sa.Column("findings", sa.BigInteger, nullable=False),
    sa.Column("detail", _LONG),
    sa.Column("epoch", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("owner", sa.String(120), nullable=False, server_default=""),
    sa.Column("lease_until_ms", sa.BigInteger, nullable=False, server_default="0"),
    _state_check("state", "running", "ok", "findings", "incomplete", name="crosstie_audit_run_state"),
    **_MYSQL,
)

sa.Table(
    "crosstie_audit_chunk",
    _METADATA,
    sa.Column("run_id", sa.String(36), primary_key=True),
    sa.Column("reference", sa.String(400), primary_key=True),
    sa.Column("chunk_id", sa.String(36), primary_key=True),
    sa.Column("lo", _LONG, nullable=False),
    sa.Column("hi", _LONG, nullable=False),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("owner", sa.String(120), nullable=False),
    sa.Column("lease_until_ms", sa.BigInteger, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("keys_checked", sa.BigInteger, nullable=False),
    sa.Column("result", _LONG),
    _state_check("state", "ready", "done", name="crosstie_audit_chunk_state"),
    **_MYSQL,
)

sa.Table(
    "crosstie_finding",
    _METADATA,
    sa.Column("run_id", sa.String(36), primary_key=True),
    sa.Column("reference", sa.String(400), primary_key=True),
    sa.Column("child_key", sa.String(190), primary_key=True),
    sa.Column("parent_key", sa.String(400), nullable=False),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("found_at_ms", sa.BigInteger, nullable=False),
    **_MYSQL,
)

sa.Table(
    "crosstie_audit_key",
    _METADATA,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("reference", sa.String(16), nullable=False),
    sa.Column("key", _LONG),
    sa.Index("crosstie_audit_key_reference", "reference", "id"),
    **_MYSQL,
)

_quarantine: Final = sa.Table(
    "crosstie_quarantine",
    _METADATA,
    sa.Column("repair_id", sa.String(36), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("reference", sa.String(400), nullable=False),
    sa.Column("policy", sa.String(12), nullable=False),
    sa.Column("child_key", _LONG, nullable=False),
    sa.Column("parent_key", _LONG, nullable=False),
    sa.Column("image", _LONG),
    sa.Column("undo_log", _LONG, nullable=False),
    sa.Column("notes", _LONG, nullable=False),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("repaired_at_ms", sa.BigInteger, nullable=False),
    sa.Column("restored_at_ms", sa.BigInteger),
    sa.Column("error", _LONG),
    _state_check("state", "repaired", "restored", name="crosstie_quarantine_state"),
    **_MYSQL,
)


def up(connection: sa.Connection) -> None:
    """Create the tables."""
    create_missing(connection, _tables(connection))


def down(connection: sa.Connection) -> None:
    """Drop the tables. Raises SchemaInUse where events wait or sagas are unfinished: they would be lost."""
    existing = set(sa.inspect(connection).get_table_names())
    lost = {
        "events that were not delivered": sa.select(_outbox.c.uid),
        "events that are parked": sa.select(_parked.c.uid),
        "sagas that are unfinished": sa.select(_saga.c.saga_id).where(
            sa.or_(_saga.c.state.in_(["applied", "aborted", "owed"]), _saga.c.quarantine.is_not(None))
        ),
        "effects that may have to be compensated": sa.select(_effect.c.saga_id).where(
            _effect.c.state.in_(["open", "due", "quarantined"])
        ),
        "runs of sagas that have not ended": sa.select(_run.c.run_id).where(
            _run.c.status.in_(["running", "compensating"])
        ),
        "what repairs took away": sa.select(_quarantine.c.repair_id).where(_quarantine.c.state == "repaired"),
    }
    for what, query in lost.items():
        (table,) = query.get_final_froms()
        if table.description in existing and connection.execute(query.limit(1)).first() is not None:
            raise SchemaInUse(
                f"expected nothing in crosstie's tables that somebody waits for, and found {what}: let a worker finish "
                "(`crosstie status` shows what is left), then repeat. `crosstie.outbox.drop_tables` drops them all the "
                "same."
            )
    drop_existing(connection, _tables(connection))


def _tables(connection: sa.Connection) -> list[sa.Table]:
    if connection.dialect.name == "sqlite":
        return [_SQLITE_OUTBOX if table is _outbox else table for table in _METADATA.sorted_tables]
    return _METADATA.sorted_tables

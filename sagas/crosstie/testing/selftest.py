"""Whether the undo of a block restores its rows, to the last column, tried without committing anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.local_transaction import LocalTransaction, Savepoint, open_transactions
from crosstie.orm.recorder import WriteRecorder
from crosstie.orm.transaction import active_unit, set_active_unit
from crosstie.sagas.capture import BranchRecorder, uncaptured_reasons, undo_log
from crosstie.sagas.errors import SagaError, UndoConflict
from crosstie.sagas.facts import table_facts
from crosstie.sagas.home import choose_home
from crosstie.sagas.image import decode, encode, projection
from crosstie.sagas.record import new_saga_id
from crosstie.sagas.strategy import Ending, Strategy, Terms
from crosstie.sagas.undo import apply_undo
from crosstie.sagas.workspace import Workspace

__all__ = ["saga_selftest"]

_Row = tuple[str, str | None, tuple[tuple[str, Any], ...]]
"""Table, schema, and the primary key as its image has it."""


def saga_selftest(block: Callable[[], object], *, home: str | None = None) -> None:
    """Run `block` as a saga, undo it in every database that may be a branch, compare all its rows, and roll back.

    Nothing is committed. It finds what an undo cannot restore: columns that the server sets by itself (ON UPDATE
    CURRENT_TIMESTAMP), constraints that refuse the undo. `home`, else a database whose writes cannot be undone, is left
    out. Calls and compensations outside databases do take place: keep them out of `block`, or replace them.

    Raises AssertionError naming each row and column that differs; SagaNotUndoable where two databases have writes that
    nobody can undo; SagaError inside a saga or transaction; and what `block` raises.
    """
    if active_unit() is not None or open_transactions():
        raise SagaError("saga_selftest() rolls everything back, so it cannot be run inside a saga or a transaction.")
    terms = Terms(new_saga_id(), "selftest", home, ConnectionManager.settings().saga.expiry_s)
    workspace = _Tried(_EveryBranch(terms))
    set_active_unit(workspace)
    try:
        block()
        differences = workspace.differences()
    finally:
        set_active_unit(None)
        workspace.roll_back()
    if differences:
        raise AssertionError("the undo does not restore:\n" + "\n".join(f"  - {one}" for one in differences))


class _EveryBranch(Strategy):
    """Takes images everywhere, because any database may turn out to be a branch."""

    def recorder(self, database: str, written: Sequence[str]) -> WriteRecorder:
        del database, written
        return BranchRecorder(ConnectionManager.settings().saga.undo_row_limit)

    def choose_home(self, participants: Sequence[LocalTransaction]) -> str:
        stuck = {tx.database.name: list(uncaptured_reasons(tx)) for tx in participants}
        return choose_home(list(stuck), stuck, self.terms.home)

    def prepare_branch(self, tx: LocalTransaction) -> None:
        """Nothing to ready."""

    def prepare_decider(self, tx: LocalTransaction) -> None:
        """Nothing to ready."""

    def commit(self, ending: Ending) -> None:
        raise AssertionError("a self-test commits nothing")


class _Tried(Workspace):
    def differences(self) -> list[str]:
        """What differs between the rows as they are committed and as they are after the undo."""
        for name, session in self._sessions.items():
            with self._transactions[name].mapped_errors():
                session.flush()
        participants = [self._transactions[name] for name in self._names_written()]
        if not participants:
            raise AssertionError("the block wrote to no database, so there is nothing to undo")
        home = self._strategy.choose_home(participants)
        found: list[str] = []
        for tx in participants:
            tx.require_healthy()
            name = tx.database.name
            # A home by need or by declaration is never undone; one by its place alone may be a branch another time.
            if name == home and (uncaptured_reasons(tx) or self._strategy.terms.home == home):
                continue
            found += _tried(tx)
        return found


def _tried(tx: LocalTransaction) -> list[str]:
    entries = [entry for entry in undo_log(tx) if "key" in entry]
    keys = dict.fromkeys((one["table"], one.get("schema"), tuple(one["key"].items())) for one in entries)
    stamped = {(one["table"], name) for one in entries for name in one.get("stamped", ())}
    with tx.database.mapped_errors(), tx.database.autocommit.connect() as connection:
        before = {key: _read(tx, connection, key) for key in keys}
    savepoint = Savepoint(tx)
    try:
        with tx.mapped_errors(), tx.internal():
            apply_undo(tx.database, tx.connection, entries)
            after = {key: _read(tx, tx.connection, key) for key in keys}
    except UndoConflict as conflict:
        return [str(conflict)]
    finally:
        savepoint.roll_back()
    return [
        complaint
        for key in keys
        for column, complaint in _compare(tx.database.name, key, before[key], after[key])
        if (key[0], column) not in stamped
    ]


def _read(tx: LocalTransaction, connection: sa.Connection, key: _Row) -> Mapping[str, Any] | None:
    """The whole row in the server's own representation, columns that no model knows included."""
    table, schema, values = key
    facts = table_facts(tx.database, connection, table, schema)
    # An undo is an update, too: what the server writes with any is not as it was.
    columns = {name: kind for name, kind in facts.columns.items() if name not in facts.self_written}
    where = sa.and_(
        *(
            sa.column(name) == sa.bindparam(None, decode(value), type_=sa.types.NULLTYPE, unique=True)
            for name, value in values
        )
    )
    query = sa.select(*projection(tx.database, columns)).select_from(sa.table(table, schema=schema)).where(where)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else {name: encode(value) for name, value in row.items()}


def _compare(
    database: str, key: _Row, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> Iterable[tuple[str, str]]:
    """What differs: the column, empty where it is the whole row, and the complaint."""
    where = f"{database}.{key[0]} ({', '.join(f'{name}={decode(value)}' for name, value in key[2])})"
    if before is None or after is None:
        if before is not after:
            yield "", f"{where}: the row {'is left over' if before is None else 'is missing'} after the undo"
        return
    for name, value in before.items():
        if after[name] != value:
            yield name, f"{where}: column {name} was {decode(value)!r} and is {decode(after[name])!r} after the undo"

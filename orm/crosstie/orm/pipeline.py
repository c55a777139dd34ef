"""PostgreSQL's pipeline: BEGIN, a statement and COMMIT, as many of them as are wanted, leave in one packet.

psycopg's cursor sends each by itself, and its own pipeline costs more in Python than it saves on a short way; this is
the same on libpq's functions. https://www.postgresql.org/docs/current/libpq-pipeline-mode.html
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from typing import Any, Final

import psycopg
import sqlalchemy as sa
from psycopg import pq
from psycopg.adapt import PyFormat, Transformer
from psycopg.waiting import Ready, Wait

from crosstie.orm.answer import Answer

__all__ = ["commit", "execute", "is_possible"]

_Text = tuple[str, tuple[int, ...] | None]
"""Of a statement, with the types of its parameters."""
_KNOWN: Final = "crosstie.prepared_statements"
"""In the info of a connection: what is prepared on it."""
_ABLE: Final = pq.version() >= 140_000
_OFF: Final = pq.PipelineStatus.OFF
_IDLE: Final = pq.TransactionStatus.IDLE
_SYNC: Final = pq.ExecStatus.PIPELINE_SYNC
_FAILED: Final = frozenset({pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE})
_numbers: Final = itertools.count(1)


def is_possible(raw: Any) -> bool:
    """Whether libpq can, nobody has a pipeline open, and no tracer has put a connection or cursor of its own here."""
    return (
        _ABLE
        and type(raw) is psycopg.Connection
        and raw.cursor_factory is psycopg.Cursor
        and raw.pgconn.pipeline_status == _OFF
    )


def execute(connection: sa.Connection, sql: str, parameters: Sequence[Any], *, commits: bool = False) -> Answer:
    """Run a statement whose parameters are `$1` and so on, behind BEGIN where that is due; then COMMIT if it `commits`.

    The answer is the statement's, and its `tag` that of the last command. Raises psycopg's errors: the statement's own,
    which leaves a transaction failed and open, COMMIT's own, or OperationalError where the connection was lost.
    """
    raw: Any = connection.connection.dbapi_connection
    transformer = Transformer(raw)
    values = transformer.dump_sequence(parameters, [PyFormat.AUTO] * len(parameters))
    types, formats = transformer.types, transformer.formats
    known = _prepared_on(connection, raw)
    name = known.get((sql, types))
    new = name is None and raw.prepare_threshold is not None and len(known) < (raw.prepared_max or len(known) + 1)
    if new:
        name = b"crosstie_%d" % next(_numbers)

    def send(pgconn: pq.abc.PGconn) -> None:
        if not raw.autocommit and pgconn.transaction_status == _IDLE:
            pgconn.send_query_params(_begin(raw), None)
        if name is None:
            pgconn.send_query_params(sql.encode(raw.info.encoding), values, types, formats)
        else:
            if new:
                pgconn.send_prepare(name, sql.encode(raw.info.encoding), types)
            pgconn.send_query_prepared(name, values, formats)
        if commits:
            pgconn.send_query_params(b"COMMIT", None)

    try:
        results = _exchange(raw, send)
    except psycopg.errors.InvalidSqlStatementName:
        known.clear()  # somebody else has deallocated it
        raise
    if new and name is not None:
        known[sql, types] = name
    answer = results[-2 if commits else -1]
    transformer.set_pgresult(answer)
    description = [((answer.fname(column) or b"").decode(), answer.ftype(column)) for column in range(answer.nfields)]
    rows = transformer.load_rows(0, answer.ntuples, tuple)
    return Answer(rows, description, answer.command_tuples or 0, None, _tag(results))


def commit(raw: Any) -> str:
    """COMMIT, unless nothing was begun; returns the server's tag. Raises as `execute` does."""
    if raw.pgconn.transaction_status == _IDLE:
        return "COMMIT"
    return _tag(_exchange(raw, lambda pgconn: pgconn.send_query_params(b"COMMIT", None)))


def _prepared_on(connection: sa.Connection, raw: Any) -> dict[_Text, bytes]:
    """Names of what is prepared on the connection, until psycopg deallocates all: it does after a ROLLBACK."""
    known: dict[_Text, bytes] | None = connection.info.get(_KNOWN)
    if known is not None:
        return known
    ours: dict[_Text, bytes] = {}
    connection.info[_KNOWN] = ours
    theirs = raw._prepared  # it tells nobody else
    clear = theirs.clear

    def forget() -> bool:
        deallocates = bool(clear())
        if deallocates:
            ours.clear()
        return deallocates

    theirs.clear = forget
    return ours


def _exchange(raw: Any, send: Any) -> list[pq.abc.PGresult]:
    """What the server answers to what `send` sends, up to its end, if all of it went well."""
    with raw.lock:
        pgconn: pq.abc.PGconn = raw.pgconn
        try:
            pgconn.enter_pipeline_mode()
            send(pgconn)
            pgconn.pipeline_sync()
            results: list[pq.abc.PGresult] = raw.wait(_results(pgconn))
            pgconn.exit_pipeline_mode()
        except BaseException:
            raw.close()  # nobody else could make sense of what is still to come on it
            raise
    for result in results:
        if result.status in _FAILED:
            raise psycopg.errors.error_from_result(result, raw.info.encoding)
    return results


def _results(pgconn: pq.abc.PGconn) -> Generator[Wait, Ready, list[pq.abc.PGresult]]:
    while pgconn.flush():
        if (yield Wait.RW) & Ready.R:
            pgconn.consume_input()
    results: list[pq.abc.PGresult] = []
    ended = False
    while True:
        while pgconn.is_busy():
            if (yield Wait.R):
                pgconn.consume_input()
        result = pgconn.get_result()
        if result is not None:
            if result.status == _SYNC:
                return results
            results.append(result)
        elif ended:  # nothing follows the end of one statement's answer
            raise psycopg.OperationalError(f"the connection was lost: {pgconn.get_error_message()}")
        ended = result is None


def _tag(results: Sequence[pq.abc.PGresult]) -> str:
    return (results[-1].command_status or b"").decode()


def _begin(raw: Any) -> bytes:
    """What psycopg begins a transaction with, where it has been told what kind of one is wanted."""
    parts = ["BEGIN"]
    if raw.isolation_level is not None:
        parts.append("ISOLATION LEVEL " + raw.isolation_level.name.replace("_", " "))
    if raw.read_only is not None:
        parts.append("READ ONLY" if raw.read_only else "READ WRITE")
    if raw.deferrable is not None:
        parts.append("DEFERRABLE" if raw.deferrable else "NOT DEFERRABLE")
    return " ".join(parts).encode()

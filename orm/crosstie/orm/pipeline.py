"""PostgreSQL's pipeline: a statement and COMMIT leave in one packet, and are answered in one.

The driver's own pipeline costs more in Python than it saves on a short way; this is the same on libpq's functions.
https://www.postgresql.org/docs/current/libpq-pipeline-mode.html
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final

import psycopg
import sqlalchemy as sa
from psycopg import pq
from psycopg.adapt import PyFormat, Transformer
from psycopg.waiting import Ready, Wait

from crosstie.orm.prepared import Answer, Prepared

__all__ = ["run_and_commit"]

_KNOWN: Final = "crosstie.prepared_statements"
"""In the info of a connection: what is prepared on it, by its text."""
_numbers: Final = itertools.count(1)
_FAILED: Final = {pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE}


def run_and_commit(connection: sa.Connection, statement: Prepared, values: Mapping[str, Any]) -> tuple[Answer, str]:
    """Run a statement, then COMMIT unless it fails; returns what the statement was answered, and COMMIT's tag.

    Raises psycopg's errors: the statement's own, which leaves the transaction failed and open, COMMIT's own, or
    OperationalError where the connection was lost, and with it the answer.
    """
    raw: Any = connection.connection.dbapi_connection
    sql, parameters = statement.numbered(connection.dialect, values)
    transformer = Transformer(raw)
    arguments = transformer.dump_sequence(parameters, [PyFormat.TEXT] * len(parameters))
    text = sql.encode(raw.info.encoding)
    known = _prepared_on(connection)
    name = known.get(text) or b"crosstie_%d" % next(_numbers)
    with raw.lock:
        pgconn: pq.abc.PGconn = raw.pgconn
        try:
            pgconn.enter_pipeline_mode()
            if raw.prepare_threshold is None:  # it was said that nothing outlives its statement here
                pgconn.send_query_params(text, arguments)
            else:
                if text not in known:
                    pgconn.send_prepare(name, text)
                pgconn.send_query_prepared(name, arguments)
            pgconn.send_query_params(b"COMMIT", None)
            pgconn.pipeline_sync()
            results: Sequence[pq.abc.PGresult] = raw.wait(_results(pgconn))
            pgconn.exit_pipeline_mode()
        except BaseException:
            raw.close()  # nobody else could make sense of what is still to come on it
            raise
    for result in results:
        if result.status in _FAILED:
            error = psycopg.errors.error_from_result(result, raw.info.encoding)
            if isinstance(error, psycopg.errors.InvalidSqlStatementName):
                known.clear()  # somebody else has deallocated it
            raise error
    if raw.prepare_threshold is not None:
        known[text] = name
    answer, commit = results[-2:]
    transformer.set_pgresult(answer)
    rows = transformer.load_rows(0, answer.ntuples, tuple)
    return Answer(rows, (), answer.command_tuples or 0, None), (commit.command_status or b"").decode()


def _prepared_on(connection: sa.Connection) -> dict[bytes, bytes]:
    """Names of what is prepared on the connection, by text, until psycopg deallocates all: it does after a ROLLBACK."""
    known: dict[bytes, bytes] | None = connection.info.get(_KNOWN)
    if known is not None:
        return known
    ours: dict[bytes, bytes] = {}
    connection.info[_KNOWN] = ours
    raw: Any = connection.connection.dbapi_connection
    theirs = raw._prepared  # it tells nobody else
    clear = theirs.clear

    def forget() -> bool:
        deallocates = bool(clear())
        if deallocates:
            ours.clear()
        return deallocates

    theirs.clear = forget
    return ours


def _results(pgconn: pq.abc.PGconn) -> Generator[Wait, Ready, list[pq.abc.PGresult]]:
    """What the pipeline was answered, up to its end."""
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
            if result.status == pq.ExecStatus.PIPELINE_SYNC:
                return results
            results.append(result)
        elif ended:  # nothing follows the end of one statement's answer
            raise psycopg.OperationalError(f"the connection was lost: {pgconn.get_error_message()}")
        ended = result is None

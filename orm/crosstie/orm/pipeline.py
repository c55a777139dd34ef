"""PostgreSQL's pipeline: BEGIN, a statement and COMMIT, as many of them as are wanted, leave in one packet.

psycopg's cursor sends each by itself, and its own pipeline costs more in Python than it saves on a short way; this is
the same on libpq's functions. https://www.postgresql.org/docs/current/libpq-pipeline-mode.html
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, Final

import psycopg
import sqlalchemy as sa
from psycopg import pq
from psycopg.adapt import PyFormat, Transformer
from psycopg.waiting import Ready, Wait

from crosstie.orm.answer import Answer

__all__ = ["commit", "depart", "execute", "is_possible"]

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
    request = _Request(connection, sql, parameters, end="COMMIT" if commits else None)
    try:
        results = _exchange(request.raw, request.send)
    except psycopg.errors.InvalidSqlStatementName:
        request.known.clear()  # somebody else has deallocated it
        raise
    return request.answer(results)


def commit(raw: Any) -> str:
    """COMMIT, unless nothing was begun; returns the server's tag. Raises as `execute` does."""
    if raw.pgconn.transaction_status == _IDLE:
        return "COMMIT"
    return _tag(_exchange(raw, partial(_send_end, "COMMIT")))


def depart(
    connection: sa.Connection, sql: str | None, parameters: Sequence[Any], *, end: str = "COMMIT"
) -> Callable[[], Answer]:
    """Send a statement, if there is one, and what is to `end` the transaction, and do not wait.

    What is returned reads the answer, and raises, as `execute` does. Until then the connection is good for nothing
    else: whoever does not read the answer has to close it.
    """
    raw: Any = connection.connection.dbapi_connection
    request = None if sql is None else _Request(connection, sql, parameters, end=end)
    _depart(raw, partial(_send_end, end) if request is None else request.send)

    def arrive() -> Answer:
        try:
            results = _arrive(raw)
        except psycopg.errors.InvalidSqlStatementName:
            if request is not None:
                request.known.clear()
            raise
        return Answer((), (), 0, None, _tag(results)) if request is None else request.answer(results)

    return arrive


class _Request:
    """A statement as it goes to libpq, and what its answer says."""

    __slots__ = ("_end", "_formats", "_name", "_new", "_sql", "_transformer", "_types", "_values", "known", "raw")

    def __init__(self, connection: sa.Connection, sql: str, parameters: Sequence[Any], *, end: str | None) -> None:
        raw: Any = connection.connection.dbapi_connection
        transformer = Transformer(raw)
        self.raw = raw
        self.known = known = _prepared_on(connection, raw)
        self._sql = sql
        self._end = end
        self._transformer = transformer
        self._values = transformer.dump_sequence(parameters, [PyFormat.AUTO] * len(parameters))
        self._types, self._formats = transformer.types, transformer.formats
        name = known.get((sql, self._types))
        self._new = (
            name is None and raw.prepare_threshold is not None and len(known) < (raw.prepared_max or len(known) + 1)
        )
        self._name = b"crosstie_%d" % next(_numbers) if self._new else name

    def send(self, pgconn: pq.abc.PGconn) -> None:
        raw = self.raw
        if not raw.autocommit and pgconn.transaction_status == _IDLE:
            pgconn.send_query_params(_begin(raw), None)
        if self._name is None:
            pgconn.send_query_params(self._sql.encode(raw.info.encoding), self._values, self._types, self._formats)
        else:
            if self._new:
                pgconn.send_prepare(self._name, self._sql.encode(raw.info.encoding), self._types)
            pgconn.send_query_prepared(self._name, self._values, self._formats)
        if self._end is not None:
            _send_end(self._end, pgconn)

    def answer(self, results: list[pq.abc.PGresult]) -> Answer:
        if self._new and self._name is not None:
            self.known[self._sql, self._types] = self._name
        answer = results[-1 if self._end is None else -2]
        transformer = self._transformer
        transformer.set_pgresult(answer)
        description = [
            ((answer.fname(column) or b"").decode(), answer.ftype(column)) for column in range(answer.nfields)
        ]
        rows = transformer.load_rows(0, answer.ntuples, tuple)
        return Answer(rows, description, answer.command_tuples or 0, None, _tag(results))


def _send_end(statement: str, pgconn: pq.abc.PGconn) -> None:
    pgconn.send_query_params(statement.encode(), None)


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
    return _good(raw, results)


def _depart(raw: Any, send: Any) -> None:
    """The first half of `_exchange`: when it returns, everything is on its way."""
    with raw.lock:
        pgconn: pq.abc.PGconn = raw.pgconn
        try:
            pgconn.enter_pipeline_mode()
            send(pgconn)
            pgconn.pipeline_sync()
            raw.wait(_flushed(pgconn))
        except BaseException:
            raw.close()
            raise


def _arrive(raw: Any) -> list[pq.abc.PGresult]:
    """The second half."""
    with raw.lock:
        pgconn: pq.abc.PGconn = raw.pgconn
        try:
            results: list[pq.abc.PGresult] = raw.wait(_results(pgconn))
            pgconn.exit_pipeline_mode()
        except BaseException:
            raw.close()
            raise
    return _good(raw, results)


def _good(raw: Any, results: list[pq.abc.PGresult]) -> list[pq.abc.PGresult]:
    for result in results:
        if result.status in _FAILED:
            raise psycopg.errors.error_from_result(result, raw.info.encoding)
    return results


def _flushed(pgconn: pq.abc.PGconn) -> Generator[Wait, Ready, None]:
    while pgconn.flush():
        if (yield Wait.RW) & Ready.R:
            pgconn.consume_input()


def _results(pgconn: pq.abc.PGconn) -> Generator[Wait, Ready, list[pq.abc.PGresult]]:
    yield from _flushed(pgconn)
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

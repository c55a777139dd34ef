"""A statement of MySQL or MariaDB in two halves: it is sent now, and its answer read when others have been sent, too.

PyMySQL's `query` does both at once; these are the two calls that it is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pymysql.connections import Connection
from pymysql.constants import COMMAND

from crosstie.orm.answer import Answer

__all__ = ["depart", "is_possible"]


def is_possible(raw: Any) -> bool:
    """Whether this is the driver's own connection, and no tracer's around it."""
    return type(raw) is Connection


def depart(raw: Any, sql: str, parameters: Sequence[Any] | None = None) -> Callable[[], Answer]:
    """Send a statement and do not wait; what is returned reads the answer. Both raise PyMySQL's errors.

    Until then the connection is good for nothing else: whoever does not read the answer has to close it.
    """
    with raw.cursor() as cursor:
        text = cursor.mogrify(sql, parameters)
    raw._execute_command(COMMAND.COM_QUERY, text.encode(raw.encoding))

    def arrive() -> Answer:
        rowcount: int = raw._read_query_result()
        while raw._result.has_next:
            raw.next_result()
        return Answer((), (), rowcount)

    return arrive

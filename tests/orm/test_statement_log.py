from __future__ import annotations

import pickle
import threading

import pytest
import sqlalchemy as sa

from bench.databases import Pair
from crosstie.orm import ConnectionManager, errors
from crosstie.orm.mapping import UnknownColumn
from crosstie.orm.statement_log import logged_statements
from orm.blog import Post, User, create_blog


def test_the_log_has_this_threads_statements_by_database(configured: Pair) -> None:
    """In order, without BEGIN and COMMIT, without other threads' and without values; nothing after the block."""
    create_blog()
    with logged_statements() as log:
        with User.transaction():
            User(username="secret-name").save()
        Post.find_all().count()
        thread = threading.Thread(target=Post.find_all().count)
        thread.start()
        thread.join(timeout=60)
    User.find_all().count()
    assert log.by_database == {"default": 1, "secondary": 1}
    assert [statement.database for statement in log.statements] == ["default", "secondary"]
    assert log.statements[0].sql.startswith("INSERT INTO users")
    assert "secret-name" not in log.statements[0].sql


def test_statements_of_other_engines_are_not_logged(configured: Pair) -> None:
    """An engine that crosstie does not know has no connection name."""
    engine = sa.create_engine("sqlite://")
    with logged_statements() as log, engine.connect() as connection:
        connection.execute(sa.select(1))
    engine.dispose()
    assert len(log) == 0
    with logged_statements() as log:
        ConnectionManager.ping("secondary")
    assert log.by_database == {"secondary": 1}


@pytest.mark.parametrize(
    "error",
    [UnknownColumn, *(one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, Exception))],
)
def test_errors_survive_pickling(error: type[Exception]) -> None:
    """Celery sends them between processes; the message and the class arrive."""
    back = pickle.loads(pickle.dumps(error("what happened")))  # noqa: S301 - made on the line itself
    assert type(back) is error
    assert str(back) == "what happened"

"""The snippets of the page that describes cross-database relationships run as they stand, and do what it claims.

The page is not part of the project: `CROSSTIE_PAGE` names it, and without that these tests are skipped. Only the import
root of its snippets is replaced.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bench.databases import Pair
from crosstie.orm import ConnectionManager
from crosstie.orm.errors import CrossDatabaseWriteWarning
from crosstie.orm.routing import router
from crosstie.orm.statement_log import logged_statements

PAGE = os.environ.get("CROSSTIE_PAGE", "")
pytestmark = pytest.mark.skipif(not PAGE, reason="CROSSTIE_PAGE names no page")

CONFIGURE, MODELS, USE, CREATE, EAGER, TRANSACTION, REPOSITORY, REPLICA = range(8)


def snippets() -> list[str]:
    """The Python snippets of the page, in order, with our import root."""
    found = re.findall(r"^```python\n(.*?)^```", Path(PAGE).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [snippet.replace("rhosocial.activerecord", "crosstie.orm") for snippet in found]


class Program:
    """A module that runs snippets one after another, as a reader who types them in."""

    def __init__(self) -> None:
        self.module = ModuleType("page_program")

    def run(self, number: int, *, ending: str = "") -> None:
        """Run a snippet; `ending` is one more line in its last block."""
        source = snippets()[number] + (textwrap.indent(ending, "    ") + "\n" if ending else "")
        exec(compile(source, f"<snippet {number} of the page>", "exec"), vars(self.module))  # noqa: S102 - the page's

    def __getattr__(self, name: str) -> Any:
        return vars(self.module)[name]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    """A program of the page, which nobody has typed anything into yet."""
    made = Program()
    monkeypatch.setitem(sys.modules, made.module.__name__, made.module)
    return made


@pytest.fixture
def blog(program: Program, pair: Pair) -> Pair:
    """Real databases behind the page's names, its models, their tables, and the rows that its snippets look for."""
    ConnectionManager.configure(pair.configuration)
    program.run(MODELS)
    program.User.create_table()
    program.Post.create_table()
    for name in ("example_user", "another_user"):
        user = program.User(username=name, email=f"{name}@example.org").save()
        for nth in (1, 2):
            program.Post(user_id=user.id, title=f"{name} {nth}", content="...").save()
    return pair


def test_the_page_has_the_snippets_that_are_tested() -> None:
    """A page that gained or lost one needs its tests looked at."""
    assert len(snippets()) == REPLICA + 1


def test_configuring_as_on_the_page(program: Program) -> None:
    """Both connections are there, with the driver, place and credentials given; no password is shown."""
    program.run(CONFIGURE)
    assert ConnectionManager.names() == ["default", "secondary"]
    default, secondary = (ConnectionManager.get(name) for name in ConnectionManager.names())
    assert (default.kind, secondary.kind) == ("mysql", "postgresql")
    assert default.engine.url.render_as_string(False) == "mysql+pymysql://user:password@localhost:3306/primary_db"
    assert secondary.engine.url.render_as_string(False) == (
        "postgresql+psycopg://user:password@localhost:5432/secondary_db"
    )
    for shown in (repr(default), repr(default.settings), repr(ConnectionManager.settings())):
        assert "password@" not in shown
        assert "'password')" not in shown


def test_the_models_live_in_their_databases(program: Program, blog: Pair) -> None:
    """Users in one, posts in the other, and no table in the wrong one."""
    assert blog.first.scalar("SELECT count(*) FROM users") == 2
    assert blog.second.scalar("SELECT count(*) FROM posts") == 4


def test_basic_usage(program: Program, blog: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    """The user comes from one database, the posts from the other, each post's user from the first again."""
    with logged_statements() as log:
        program.run(USE)
    assert set(log.by_database) == {"default", "secondary"}
    printed = capsys.readouterr().out.splitlines()
    assert sorted(printed) == sorted(
        ["Post title: example_user 1", "Author: example_user", "Post title: example_user 2", "Author: example_user"]
    )


def test_creating_related_records(program: Program, blog: Pair) -> None:
    """The new post is in the second database and refers to the user in the first."""
    program.run(CREATE)
    user_id = blog.first.scalar("SELECT id FROM users WHERE username = 'example_user'")
    title = "Cross-database Relationship Example"
    assert blog.second.rows("SELECT user_id FROM posts WHERE title = %s", (title,)) == [(user_id,)]
    assert program.new_post.user() == program.user


def test_eager_loading_executes_exactly_two_queries(
    program: Program, blog: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    """One to each database, for the whole snippet: its loop over the posts asks nothing."""
    with logged_statements() as log:
        program.run(EAGER)
    assert log.by_database == {"default": 1, "secondary": 1}
    assert "users" in log.statements[0].sql
    assert "posts" in log.statements[1].sql
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "User: another_user, Posts: 2",
        "User: example_user, Posts: 2",
    ]


def test_a_transaction_writes_to_both_when_nothing_fails(program: Program, blog: Pair) -> None:
    """As the page has it; we warn that the second write is not part of the transaction."""
    with pytest.warns(CrossDatabaseWriteWarning, match="saga"):
        program.run(TRANSACTION)
    assert blog.first.scalar("SELECT count(*) FROM users WHERE username = 'new_username'") == 1
    assert blog.second.scalar("SELECT count(*) FROM posts WHERE title = 'Updated Title'") == 1


def test_a_transaction_only_affects_its_own_database(program: Program, blog: Pair) -> None:
    """With an exception at the end of the block, the first database rolls back and the second keeps its write."""
    with pytest.warns(CrossDatabaseWriteWarning), pytest.raises(ZeroDivisionError):
        program.run(TRANSACTION, ending="1 / 0")
    assert blog.first.scalar("SELECT count(*) FROM users WHERE username = 'new_username'") == 0
    assert blog.first.scalar("SELECT count(*) FROM users WHERE username = 'example_user'") == 1
    assert blog.second.scalar("SELECT count(*) FROM posts WHERE title = 'Updated Title'") == 1
    assert program.user.changes == {"username": ("example_user", "new_username")}


def test_the_repository_associates_posts_by_hand(program: Program, blog: Pair) -> None:
    """Posts read with `where(user_id=...)` become what the relation answers, without a query."""
    program.run(REPOSITORY)
    key = blog.first.scalar("SELECT id FROM users WHERE username = 'example_user'")
    with logged_statements() as log:
        user = program.UserRepository.get_user_with_posts(key)
        posts = user.posts()
    assert log.by_database == {"default": 1, "secondary": 1}
    assert sorted(post.title for post in posts) == ["example_user 1", "example_user 2"]
    assert posts is user._posts
    assert program.UserRepository.get_user_with_posts(10**6) is None


def test_reads_go_to_the_replica_and_writes_to_the_primary(program: Program, pair: Pair) -> None:
    """The last snippet defines the user's model again, with a connection for each."""
    ConnectionManager.configure({**pair.configuration, "default_replica": pair.first.config})
    program.run(MODELS)
    program.run(REPLICA)
    program.User.create_table()
    with logged_statements() as log:
        user = program.User().save()
    assert log.by_database == {"default": 1}
    router.forget()
    with logged_statements() as log:
        assert program.User.find(user.id) == user
    assert log.by_database == {"default_replica": 1}

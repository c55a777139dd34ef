from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mypy import api

ROOT = Path(__file__).parents[2]
PROGRAM = """
from typing import ClassVar, Optional

from crosstie.orm import ActiveRecord, any_of, not_
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.relation import BelongsTo, HasMany, HasOne, ManyToMany


class User(IntegerPKMixin, ActiveRecord):
    __table_name__ = "users"
    __connection__ = "default"

    id: Optional[int] = None
    username: str

    posts: ClassVar[HasMany["Post"]] = HasMany(foreign_key="user_id", inverse_of="user")
    profile: ClassVar[HasOne["Post"]] = HasOne(foreign_key="user_id")
    tags: ClassVar[HasMany["Tag"]] = HasMany(through="posts")
    tag: ClassVar[HasOne["Tag"]] = HasOne(through="posts", source="tags")


class Post(IntegerPKMixin, ActiveRecord):
    __table_name__ = "posts"
    __connection__ = "secondary"

    user_id: int

    user: ClassVar[BelongsTo["User"]] = BelongsTo(foreign_key="user_id", inverse_of="posts")
    tags: ClassVar[ManyToMany["Tag"]] = ManyToMany(through="Tagging")


class Tag(IntegerPKMixin, ActiveRecord):
    __table_name__ = "tags"
    __connection__ = "secondary"


class Tagging(IntegerPKMixin, ActiveRecord):
    __table_name__ = "taggings"
    __connection__ = "tertiary"

    post_id: int
    tag_id: int

    post: ClassVar[BelongsTo["Post"]] = BelongsTo(foreign_key="post_id")
    tag: ClassVar[BelongsTo["Tag"]] = BelongsTo(foreign_key="tag_id")


user = User.find(1)
post = Post.create(user_id=1)
reveal_type(user)  # User
reveal_type(User.find_by(username="x"))  # User | None
reveal_type(User.find_all())  # Query[User]
reveal_type(User.find_all().where(User.c.id > 1, username="x").order_by("-id").limit(1).with_("posts"))  # Query[User]
reveal_type(User.find_all().all())  # list[User]
reveal_type(User.find_all().first())  # User | None
reveal_type(User.find_all().one())  # User
reveal_type(User.find_all().count())  # int
reveal_type(User.find_all().last())  # User | None
reveal_type(User.find_all().where("id > :least", {"least": 1}))  # Query[User]
reveal_type(User.find_all().where(any_of(not_(id=1), User.c.id > 3)).distinct().for_update())  # Query[User]
reveal_type(User.find_all().join("posts").left_join("posts.user").select("id", "username"))  # Query[User]
reveal_type(User.find_all().join("posts").where(Post.c.id > 1).resolved().all())  # list[User]
reveal_type(User.find_all().join("posts").pluck("id", Post.c.id))  # list[tuple[Any, ...]]
reveal_type(User.find_all().pluck("id"))  # list[Any]
reveal_type(User.find_all().pluck("id", "username"))  # list[tuple[Any, ...]]
reveal_type(User.find_all().group_by("username").count())  # dict[Any, int]
reveal_type(User.find_all().group_by("id", "username").count())  # dict[tuple[Any, ...], int]
reveal_type(User.find_all().in_batches())  # Iterator[list[User]]
reveal_type(User.find_all().find_each())  # Iterator[User]
reveal_type(User.find_all().paginate())  # Page[User]
reveal_type(User.find_all().paginate().records)  # list[User]
reveal_type(User.find_all().to_sql())  # str
reveal_type([one for one in User.find_all()])  # list[User]
reveal_type(User.find_or_create_by({"username": "x"}, id=1))  # User
reveal_type(User.bulk_create([User(username="x")]))  # list[User]
reveal_type(User.bulk_update([user]))  # int
reveal_type(User(username="x").upsert(on="id", update=["username"]).touch("id"))  # User
reveal_type(user.posts())  # list[Post]
reveal_type(user.posts.query())  # Query[Post]
reveal_type(user.profile())  # Post | None
reveal_type(post.user())  # User | None
reveal_type(post.tags())  # list[Tag]
reveal_type(post.tags.query())  # Query[Tag]
reveal_type(post.tags.count())  # int
reveal_type(user.tags())  # list[Tag]
reveal_type(user.tag())  # Tag | None
reveal_type(User.find_all().with_("posts", tags=lambda tags: tags.where(id=1)).all())  # list[User]
reveal_type(User.find_all().with_({"posts.tags": lambda tags: tags.order_by("-id")}).first())  # User | None
reveal_type(User.find_all().where_has("posts", lambda posts: posts.where(id=1)).one())  # User
reveal_type(User.find_all().where_missing("posts").with_count("posts").strict())  # Query[User]
reveal_type(Post.tags)  # ManyToMany[Tag]
reveal_type(User.posts)  # HasMany[Post]
reveal_type(user.save())  # User
reveal_type(post.update(user_id=2).increment(user_id=1).refresh())  # Post
reveal_type(user.id)  # int | None
reveal_type(User.__table__.name)  # str
reveal_type(User.c.username)  # Column[Any]
User(usrname="x")  # error: [call-arg]
User.find_all().wher(id=1)  # error: [attr-defined]
User.find_all().where("id > 1")  # error: [call-overload]
User.find_all().join(User.posts)  # error: [arg-type]
User.find_all().select(User.c.id)  # error: [arg-type]
user.nothing  # error: [attr-defined]
user.posts().first()  # error: [attr-defined]
User.bulk_create([post])  # error: [list-item]
user.tag().id  # error: [union-attr]
User.find_all().strict("error")  # error: [arg-type]
User.find_all().with_(posts=1)  # error: [arg-type]
"""


def test_a_type_checker_knows_what_queries_and_relations_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mypy --strict reveals records, lists and None where they can be, and finds misspelt names.

    With the options and the cache of `make types`, which has read SQLAlchemy and pydantic already.
    """
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    monkeypatch.chdir(ROOT)
    options = ["--config-file", "pyproject.toml", "--cache-dir", ".mypy_cache", "--no-error-summary"]
    output, errors, _ = api.run([*options, str(program)])
    assert not errors
    found: dict[int, list[str]] = {}
    for line in output.splitlines():
        matched = re.fullmatch(r".*?:(\d+): (?:note: Revealed type is \"(.*)\"|error: .*\[([\w-]+)\])", line)
        if matched is not None:
            revealed = re.sub(r"\b[\w.]+\.(\w+)", r"\1", matched[2] or "").replace("builtins.", "")
            found.setdefault(int(matched[1]), []).append(revealed or f"error: [{matched[3]}]")
    expected = {
        number: [line.partition("  # ")[2]] for number, line in enumerate(PROGRAM.splitlines(), 1) if "  # " in line
    }
    assert found == expected


def test_another_type_checker_knows_the_same(tmp_path: Path) -> None:
    """Basedpyright, which many editors run, reveals the same types, and finds errors in the same lines."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--outputjson", str(program)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=tmp_path)
    found: dict[int, set[str]] = {}
    for report in json.loads(answer.stdout)["generalDiagnostics"]:
        number = report["range"]["start"]["line"] + 1
        revealed = re.fullmatch(r'Type of ".*" is "(.*)"', report["message"])
        if revealed is not None or report["severity"] == "error":
            found.setdefault(number, set()).add("error" if revealed is None else revealed[1])
    expected = {
        number: {"error" if comment.startswith("error") else comment}
        for number, line in enumerate(PROGRAM.splitlines(), 1)
        if (comment := line.partition("  # ")[2])
    }
    assert found == expected

"""`crosstie audit repair | repairs | undo`: a dry run by default, a question before anything is written, documents."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from bench.databases import Pair
from integrity.blog import USERS, Blog

pytestmark = pytest.mark.parametrize("pair", [("sqlite", "sqlite")], indirect=True, ids="-".join)

Command = Callable[..., tuple[int, str, str]]


def plant(blog: Blog) -> None:
    """One post with its user, two of a user that never was."""
    for user_id in (blog.user(name="ada").save().id, 900, 900):
        blog.post(user_id=user_id).save()


def orphans(pair: Pair) -> int:
    """How many there are."""
    return int(pair.second.scalar("SELECT count(*) FROM posts WHERE user_id = 900"))


def test_a_dry_run_tells_what_to_add(audit: Command, blog: Blog, configured: Pair) -> None:
    """Without a policy it is the choice of one; with it, --apply."""
    plant(blog)
    status, out, _ = audit("repair", "posts.user_id", "--max-percent", "100")
    assert (status, "Next: choose a policy: --policy set_null, delete" in out) == (1, True)
    status, out, _ = audit("repair", "posts.user_id", "-p", "delete", "--max-percent", "100")
    assert (status, "planned 2" in out, "with --apply" in out, orphans(configured)) == (1, True, True, 2)


def test_a_repair_and_its_undo(audit: Command, blog: Blog, configured: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The id that the undo wants is in the repair's last line, and in the list of repairs."""
    plant(blog)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    how = ("--policy", "quarantine", "--apply", "--max-percent", "100")
    status, out, err = audit("repair", "posts.user_id", *how)
    assert (status, orphans(configured)) == (1, 2)  # nobody has answered the question
    assert "2 rows of" in err
    status, out, _ = audit("repair", "posts.user_id", *how, "--yes")
    assert (status, orphans(configured)) == (0, 0)
    repair_id = out.split("crosstie audit undo ")[1].split()[0]
    status, out, _ = audit("repairs", "--json")
    (listed,) = json.loads(out)["repairs"]
    assert (status, listed["repair_id"], listed["rows"], listed["restored"]) == (0, repair_id, 2, 0)
    assert repair_id in audit("repairs")[1]

    status, out, _ = audit("undo", repair_id, "--yes")
    assert (status, orphans(configured)) == (0, 2)
    assert "restored 2, restored before 0, not restored 0" in out
    status, out, _ = audit("undo", repair_id, "--yes", "--json")
    assert (status, json.loads(out)["restored_before"]) == (0, 2)


def test_what_cannot_be_restored_is_told(audit: Command, blog: Blog, configured: Pair) -> None:
    """By row, with the reason; exit status 1."""
    plant(blog)
    how = ("--policy", "set_null", "--apply", "--yes", "--json", "--max-percent", "100")
    status, out, _ = audit("repair", USERS, *how)
    document: dict[str, Any] = json.loads(out)
    assert (status, document["repaired"], document["dry_run"]) == (0, 2, False)
    configured.second.execute("UPDATE posts SET user_id = 1 WHERE id = 2")
    status, out, _ = audit("undo", document["repair_id"], "--yes")
    assert status == 1
    assert "id=2 (parent 900) is not restored" in out
    assert "somebody has changed user_id" in out


def test_a_cap_that_trips_is_status_2(audit: Command, blog: Blog, configured: Pair) -> None:
    """The message names the option that allows it."""
    plant(blog)
    status, _, err = audit("repair", "posts.user_id", "-p", "delete", "--apply", "--yes")
    assert (status, orphans(configured)) == (2, 2)
    assert "--max-percent" in err
    assert audit("undo", "nobody", "--yes")[0] == 2


def test_run_may_be_left_out(audit: Command, blog: Blog) -> None:
    """`crosstie audit` is `crosstie audit run`, with any of its arguments; -h tells of the others."""
    plant(blog)
    assert json.loads(audit("--json")[1])["references"] == [
        json.loads(audit("run", "posts.user_id", "--json")[1])["references"][0] | {"seconds": pytest.approx(0, abs=60)}
    ]
    status, out, _ = audit("-h")
    assert status == 0
    assert all(word in out for word in ("run", "repair", "repairs", "undo"))

"""`crosstie audit`: exit status 0, 1 or 2, a table for people, one JSON document for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.databases import Pair
from crosstie.orm import ConnectionManager
from crosstie.orm.registry import registry
from crosstie.workers.cli import main
from integrity.blog import POSTS, USERS, Blog

pytestmark = pytest.mark.parametrize("pair", [("sqlite", "sqlite")], indirect=True, ids="-".join)

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def audit(
    blog: Blog,
    configured: Pair,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Command:
    """Run `crosstie audit` in an empty folder; returns (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("CROSSTIE_IMPORTS", "[]")

    def run(*arguments: str, configuration: dict[str, Any] | None = None) -> tuple[int, str, str]:
        monkeypatch.setenv("CROSSTIE_CONNECTIONS", json.dumps(configuration or configured.configuration))
        ConnectionManager.dispose()
        with pytest.raises(SystemExit) as ended:
            main(["audit", *arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(ended.value.code or 0), out, err

    return run


def plant(blog: Blog) -> None:
    """One post with its user, three of users that never were."""
    user = blog.user(name="ada")
    user.save()
    for user_id in (user.id, 900, 900, 901):
        blog.post(user_id=user_id).save()


def test_nothing_found_is_status_0(audit: Command, blog: Blog) -> None:
    """A line for the reference, and the good news."""
    status, out, err = audit()
    assert (status, err) == (0, "")
    assert USERS in out
    assert "OK" in out
    assert "has its parent" in out


def test_findings_are_status_1_with_samples_and_a_query(audit: Command, blog: Blog) -> None:
    """The first orphans, how many more there are, SQL to copy, and what to do next in one line."""
    plant(blog)
    status, out, _ = audit("--sample", "2")
    assert status == 1
    assert "FINDINGS" in out
    assert "3 orphans of 2 missing parents" in out
    assert "id=2" in out
    assert "SELECT * FROM posts WHERE posts.user_id = 900;" in out
    assert "and 1 more" in out
    assert out.splitlines()[-1].startswith("Next: look at the orphans")


def test_a_database_that_is_down_is_status_2(audit: Command, configured: Pair) -> None:
    """The reason names the database, and what to run again."""
    down = {"driver": "sqlite", "database": "/nowhere/at/all.db"}
    status, out, _ = audit(configuration=configured.configuration | {"default": down})
    assert status == 2
    assert "INCOMPLETE" in out
    assert "'default' (sqlite file /nowhere/at/all.db) is not available" in out
    assert f'crosstie audit "{USERS}"' in out.splitlines()[-1]


def test_json_is_one_document(audit: Command, blog: Blog) -> None:
    """The same figures, for programs; every key is promised."""
    plant(blog)
    status, out, err = audit("--json", "--sample", "1")
    document = json.loads(out)
    assert (status, err) == (1, "")
    assert set(document) == {"version", "run_id", "state", "exit_status", "started_at", "seconds", "references"}
    assert (document["version"], document["state"], document["exit_status"]) == (1, "findings", 1)
    (reference,) = document["references"]
    assert reference | {"seconds": 0} == {
        "reference": USERS,
        "state": "findings",
        "reason": None,
        "keys_checked": 3,
        "child_rows": 4,
        "orphan_keys": 2,
        "orphan_rows": 3,
        "deferred_keys": 0,
        "deferred_rows": 0,
        "seconds": 0,
        "notes": [],
        "recorded": True,
        "not_recorded_because": None,
        "findings": [
            {
                "child_key": {"id": 2},
                "parent_key": 900,
                "query": "SELECT * FROM posts WHERE posts.user_id = 900;",
            }
        ],
    }


def test_an_unknown_reference_is_status_2_with_the_nearest_name(audit: Command, blog: Blog) -> None:
    """On standard error, and as a document where one was asked for."""
    status, out, err = audit("posts.user")
    assert (status, out) == (2, "")
    assert "Did you mean 'posts.user_id'?" in err
    status, out, _ = audit("posts.user", "--json")
    assert status == 2
    assert json.loads(out)["error"]["code"] == "audit.unknown-reference"


def test_all_adds_references_within_a_database(audit: Command, blog: Blog) -> None:
    """Without it, only those that no database can check."""
    assert POSTS not in audit()[1]
    assert POSTS in audit("--all")[1]


def test_the_chunk_size_is_taken(audit: Command, blog: Blog) -> None:
    """One key at a time finds the same; no keys at a time is refused."""
    plant(blog)
    assert json.loads(audit("--json", "--chunk-size", "1")[1])["references"][0]["orphan_rows"] == 3
    assert audit("--chunk-size", "0")[0] == 2


def test_without_any_reference_the_status_is_2(audit: Command, blog: Blog, monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit that forgot to import the models must not look like a good one."""
    monkeypatch.setattr(registry, "_models", {})
    status, out, _ = audit()
    assert status == 2
    assert "Nothing was checked" in out

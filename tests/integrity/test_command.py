"""`crosstie audit`: exit status 0, 1 or 2, a table for people, one JSON document for programs."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from bench.databases import Pair
from crosstie.orm.registry import registry
from integrity.blog import POSTS, USERS, Blog

pytestmark = pytest.mark.parametrize("pair", [("sqlite", "sqlite")], indirect=True, ids="-".join)

Command = Callable[..., tuple[int, str, str]]


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


def test_a_database_that_no_reference_needs_may_be_down_until_something_is_suspected(
    audit: Command, blog: Blog, configured: Pair
) -> None:
    """Then it may know of a saga that still owes the parent; what it may know cannot be left out of a verdict.

    Its own sagas are looked at as well, unless that is left out.
    """
    third = {"tertiary": {"driver": "sqlite", "database": "/nowhere/at/all.db"}}
    status, out, err = audit("--no-leftovers", configuration=configured.configuration | third)
    assert (status, err) == (0, "")
    plant(blog)
    status, out, err = audit("--json", configuration=configured.configuration | third)
    (reference,) = json.loads(out)["references"]
    assert (status, err, reference["state"]) == (2, "", "incomplete")
    assert "'tertiary'" in reference["reason"]
    status, out, err = audit("--json", configuration=configured.configuration)
    (reference,) = json.loads(out)["references"]
    assert (status, err, reference["state"], reference["orphan_rows"]) == (1, "", "findings", 3)


def test_json_is_one_document(audit: Command, blog: Blog) -> None:
    """The same figures, for programs; every key is promised."""
    plant(blog)
    status, out, err = audit("--json", "--sample", "1")
    document = json.loads(out)
    assert (status, err) == (1, "")
    promised = {"version", "run_id", "state", "exit_status", "started_at", "seconds", "references", "copies", "unique"}
    promised |= {"counters", "leftovers", "types"}
    assert set(document) == promised
    assert document["copies"] == document["unique"] == document["counters"] == document["types"] == []
    assert [(one["database"], one["left_over"]) for one in document["leftovers"]] == [("default", 0), ("secondary", 0)]
    assert (document["version"], document["state"], document["exit_status"]) == (1, "findings", 1)
    (reference,) = document["references"]
    assert reference | {"seconds": 0} == {
        "reference": USERS,
        "scope": "full",
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


def test_explain_says_how_each_reference_would_be_read(audit: Command, blog: Blog, configured: Pair) -> None:
    """Nothing is read or recorded; a reference that cannot be audited is status 2, in words and in JSON."""
    plant(blog)
    status, out, err = audit("--explain")
    assert (status, err) == (0, "")
    assert USERS in out
    assert "packed" in out
    assert "about 3 distinct keys in 4 rows" in out or "about 4 distinct keys in 4 rows" in out
    assert configured.second.scalar("SELECT count(*) FROM crosstie_audit_run") == 0
    configured.first.execute("DROP TABLE users")
    status, out, _ = audit("--explain", "--json")
    assert status == 2
    (plan,) = json.loads(out)["plans"]
    assert (plan["reference"], plan["strategy"]) == (USERS, None)
    assert "users" in plan["refusal"]

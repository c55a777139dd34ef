"""Audits of changes in use: beside sagas, from the command line, by the clock."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from bench.databases import Pair
from crosstie.orm import ConnectionManager
from crosstie.orm.integrity import AuditResult, AuditScope, AuditState
from crosstie.sagas import saga, sweep_sagas
from crosstie.workers.audit import run_audit
from crosstie.workers.audit_references import select_references
from crosstie.workers.audit_triggers import create_noting
from crosstie.workers.deployment import deployment_jobs
from integrity.blog import USERS, Blog

Command = Callable[..., tuple[int, str, str]]
ONE = pytest.mark.parametrize("pair", [("sqlite", "postgresql")], indirect=True, ids="-".join)
FEW = pytest.mark.parametrize(
    "pair", [("sqlite", "sqlite"), ("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join
)


@pytest.fixture
def noted(blog: Blog) -> Blog:
    """Users with a post each, all of them read since changes are noted."""
    for user_id in range(1, 4):
        blog.user().save()
        blog.post(user_id=user_id).save()
    create_noting(*select_references([USERS]))
    assert changes().scope is AuditScope.FULL
    return blog


def changes() -> AuditResult:
    """Audit the changes of the one reference between both databases."""
    (result,) = run_audit(scope=AuditScope.CHANGES).results
    return result


@pytest.mark.turns("pair")
@FEW
def test_what_a_saga_has_in_its_hands_is_looked_at_once_it_is_resolved(noted: Blog) -> None:
    """Deferred by one audit of changes, judged by the next."""
    with saga("post", home="default"):
        noted.user(name="ada").save()
        noted.post(user_id=900).save()
    noted.post(user_id=901).save()
    found = changes()
    assert (found.scope, [one.parent_key for one in found.findings]) == (AuditScope.CHANGES, [901])
    assert (found.deferred_keys, found.deferred_rows) == (1, 1)
    sweep_sagas("secondary")
    assert sorted(one.parent_key for one in changes().findings) == [900, 901]


@pytest.mark.turns("pair")
@FEW
def test_a_saga_may_delete_what_triggers_note(noted: Blog) -> None:
    """In a branch, and it is taken back: the rows are there again, and were looked at for nothing."""
    user, post = noted.user.find(1), noted.post.find_by(user_id=2)
    with pytest.raises(ZeroDivisionError), saga("leave", home="secondary"):
        noted.post(user_id=3).save()
        user.delete()
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), saga("unpost", home="default"):
        noted.user(name="ada").save()
        post.delete()
        raise ZeroDivisionError
    found = changes()
    assert (found.scope, found.state, noted.user.find(1).id) == (AuditScope.CHANGES, AuditState.OK, 1)
    with saga("leave for good", home="secondary"):
        noted.post(user_id=3).save()
        noted.user.find(1).delete()
    sweep_sagas("default")
    assert [one.parent_key for one in changes().findings] == [1]


@ONE
def test_the_command_makes_triggers_and_audits_changes(blog: Blog, audit: Command, configured: Pair) -> None:
    """Made, listed, used and dropped; every document says what it is about."""
    status, out, _ = audit("triggers", "--list")
    assert (status, "crosstie audit triggers makes them" in out) == (1, True)
    status, out, _ = audit("triggers", "posts.user_id", "--json")
    (made,) = json.loads(out)["references"]
    assert (status, made["reference"], made["noted"], made["error"]) == (0, USERS, True, None)
    assert len(made["created"]) == 4
    assert audit("triggers")[1].strip() == f"{USERS}: its changes are noted"

    assert json.loads(audit("--changes", "--json")[1])["references"][0]["scope"] == "full"
    configured.second.execute("INSERT INTO posts (id, user_id) VALUES (50, 7777)")
    status, out, _ = audit("--changes", "--json")
    (found,) = json.loads(out)["references"]
    assert (status, found["scope"], found["keys_checked"], found["orphan_rows"]) == (1, "changes", 1, 1)
    assert "only keys that have changed since" in audit("--changes")[1]
    assert "one part" in audit("--parts", "4")[1]

    status, out, _ = audit("triggers", "--drop", "--json")
    (dropped,) = json.loads(out)["references"]
    assert (status, sorted(dropped["dropped"])) == (0, sorted(made["created"]))
    assert configured.second.scalar("SELECT count(*) FROM pg_proc WHERE proname LIKE 'crosstie_noted%'") == 0


@ONE
def test_the_command_refuses_what_makes_no_sense(blog: Blog, audit: Command, configured: Pair) -> None:
    """Both at once; triggers where a database is down."""
    status, _, err = audit("--changes", "--parts", "3")
    assert (status, "expected one of --changes and --parts" in err) == (2, True)
    gone = configured.configuration | {"default": {"driver": "sqlite", "database": "/nowhere/at/all.db"}}
    status, out, _ = audit("triggers", "--json", configuration=gone)
    assert (status, "default" in json.loads(out)["references"][0]["error"]) == (2, True)


@ONE
def test_changes_and_parts_have_lines_of_their_own(
    noted: Blog, monkeypatch: pytest.MonkeyPatch, configured: Pair
) -> None:
    """Often the changes, every night a part."""
    monkeypatch.setenv("CROSSTIE_AUDIT__CHANGES_SCHEDULE", "*/10 * * * *")
    monkeypatch.setenv("CROSSTIE_AUDIT__PARTS_SCHEDULE", "0 3 * * *")
    ConnectionManager.configure(configured.configuration)
    jobs = {job.name: job for job in deployment_jobs()}
    assert set(jobs) == {"audit-changes", "audit-part"}
    runs = (
        "SELECT detail FROM crosstie_audit_run WHERE reference <> 'sagas'"
        " ORDER BY started_at_ms DESC, finished_at_ms DESC LIMIT 1"
    )
    for name, scope in (("audit-changes", "changes"), ("audit-part", "part")):
        jobs[name].run()
        assert json.loads(configured.second.scalar(runs))["scope"] == scope

"""What sagas have left over is a part of every audit of everything."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from bench.databases import Pair
from bench.faults import crash_at
from crosstie.orm.faults import FaultInjected
from crosstie.orm.integrity import AuditScope, AuditState
from crosstie.sagas import inspection, saga
from crosstie.workers.audit import AuditReport, run_audit
from crosstie.workers.audit_page import audit_page
from crosstie.workers.metrics import exposition
from integrity.blog import Blog

FEW = pytest.mark.parametrize(
    "pair", [("sqlite", "sqlite"), ("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join
)
ONE = pytest.mark.parametrize("pair", [("sqlite", "sqlite")], indirect=True, ids="-".join)


def write_both(blog: Blog) -> str:
    """A saga that ends well; its id."""
    with saga("write", home="default") as s:
        user = blog.user(name="ada").save()
        blog.post(user_id=user.id).save()
    return s.saga_id


def leave_half_done(blog: Blog, pair: Pair) -> str:
    """A saga that expired two minutes ago, and whose process has gone; its id."""
    with (
        crash_at("saga.branch-committed"),
        crash_at("recovery.before-decision"),
        pytest.raises(FaultInjected),
        saga("vanish", home="default") as s,
    ):
        blog.user(name="eve").save()
        blog.post(user_id=1).save()
    pair.second.execute(
        "UPDATE crosstie_saga SET expires_at_ms = created_at_ms - 120000, next_at_ms = 0 WHERE saga_id = %s",
        (s.saga_id,),
    )
    return s.saga_id


def left_over(report: AuditReport) -> dict[str, list[tuple[str, str]]]:
    """Database → kind and saga of each."""
    return {one.database: [(found.kind, found.saga_id) for found in one.found] for one in report.leftovers}


@pytest.mark.turns("pair")
@FEW
def test_leftovers_of_sagas_are_findings(blog: Blog, configured: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the state of the report, in JSON, on the page and in the metrics; every committed saga is looked at."""
    monkeypatch.setattr(inspection, "COMMITTED_AT_ONCE", 2)
    whole = [write_both(blog) for _ in range(5)]
    report = run_audit()
    assert (report.state, left_over(report)) == (AuditState.OK, {"default": [], "secondary": []})
    configured.second.execute("DELETE FROM crosstie_saga WHERE saga_id = %s", (whole[4],))
    configured.second.execute("DELETE FROM crosstie_saga WHERE saga_id = %s", (whole[0],))
    vanished = leave_half_done(blog, configured)
    configured.first.execute(
        "INSERT INTO crosstie_saga_lock (table_name, row_key, saga_id, participant, created_at_ms)"
        " VALUES ('users', '[1]', 'nobody', 'default', 0)"
    )
    report = run_audit()
    missing = [("missing-branch", one) for one in sorted([whole[0], whole[4]])]
    expected = {"default": [*missing, ("stale-lock", "nobody")], "secondary": [("unswept", vanished)]}
    assert (report.state, left_over(report)) == (AuditState.FINDINGS, expected)
    (home, branch) = json.loads(report.to_json(sample=1))["leftovers"]
    assert (home["state"], home["left_over"], len(home["findings"])) == ("findings", 3, 1)
    assert branch["findings"][0]["kind"] == "unswept"
    page = audit_page(report, {}, sample=2)
    assert "Leftovers of sagas" in page
    assert "and 1 more" in page
    text = exposition().decode()
    for kind, source, count in (
        ("missing-branch", "default", 2),
        ("stale-lock", "default", 1),
        ("unswept", "default", 0),
    ):
        assert f'crosstie_audit_saga_leftovers{{kind="{kind}",source="{source}"}} {count}.0\n' in text
    assert 'crosstie_audit_saga_leftovers{kind="unswept",source="secondary"} 1.0\n' in text
    assert 'crosstie_audit_incomplete{reference="sagas",source="default"} 0.0\n' in text
    assert 'crosstie_audit_orphan_rows{reference="sagas"' not in text


@ONE
def test_what_is_looked_at(blog: Blog, configured: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes too; not where references are named, unless asked for; and not where the setting says so."""
    leave_half_done(blog, configured)
    assert run_audit(scope=AuditScope.CHANGES).leftovers
    assert run_audit(["posts.user_id"]).leftovers == ()
    assert run_audit(["posts.user_id"], leftovers=True).leftovers
    assert run_audit(leftovers=False).leftovers == ()
    assert run_audit([], leftovers=True).state is AuditState.INCOMPLETE, "no reference was checked"


@ONE
def test_the_setting_leaves_them_out(
    audit: Callable[..., tuple[int, str, str]], blog: Blog, configured: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so does the option; what to do next is said."""
    blog.user(name="ada").save()
    leave_half_done(blog, configured)
    configured.second.execute("DELETE FROM posts")
    status, out, _ = audit()
    assert status == 1
    assert "left over in secondary: unswept: " in out
    assert out.splitlines()[-1].endswith("crosstie sagas leftovers.")
    assert audit("--no-leftovers")[0] == 0
    monkeypatch.setenv("CROSSTIE_AUDIT__LEFTOVERS", "false")
    assert audit()[0] == 0
    assert audit("--leftovers")[0] == 1


@ONE
def test_a_database_that_cannot_be_asked_makes_it_incomplete(
    audit: Callable[..., tuple[int, str, str]], blog: Blog, configured: Pair
) -> None:
    """Although no reference needs it; one without crosstie's tables has no sagas."""
    down = {"tertiary": {"driver": "sqlite", "database": "/nowhere/at/all.db"}}
    status, out, _ = audit(configuration=configured.configuration | down)
    assert status == 2
    assert "the sagas of tertiary were not looked at" in out
    assert "--no-leftovers" in out.splitlines()[-1]
    bare = {"tertiary": {"driver": "sqlite", "database": "bare.db"}}
    assert audit(configuration=configured.configuration | bare)[0] == 0


@ONE
def test_what_cannot_be_read_is_not_ok(blog: Blog, configured: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails."""

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr("crosstie.workers.audit_leftovers.find_leftovers", fail)
    report = run_audit()
    assert (report.state, report.exit_status) == (AuditState.INCOMPLETE, 2)
    assert [one.reason for one in report.leftovers] == ["unexpected ZeroDivisionError: a fault of ours"] * 2

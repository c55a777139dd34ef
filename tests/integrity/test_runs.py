"""A run of audits: which references it takes, what it writes down, and what sagas and outages do to it."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from bench.databases import Pair, TestDatabase
from bench.processes import Spawner
from crosstie.orm import ConnectionManager
from crosstie.orm.integrity import AuditProgress, AuditResult, AuditState, UnknownReference
from crosstie.outbox.tables import finding
from crosstie.sagas import saga, sweep_sagas
from crosstie.workers import audit as audit_module
from crosstie.workers import audit_record
from crosstie.workers.audit import run_audit, run_scheduled_audit
from crosstie.workers.audit_record import last_runs
from integrity.blog import POSTS, USERS, Blog

ONE = pytest.mark.parametrize("pair", [("sqlite", "postgresql")], indirect=True, ids="-".join)
FEW = pytest.mark.parametrize(
    "pair", [("sqlite", "sqlite"), ("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join
)


def plant(blog: Blog, orphans: int = 2) -> None:
    """One user with posts, and posts of users that never were."""
    user = blog.user(name="ada")
    user.save()
    for user_id in (user.id, user.id, None, *range(900, 900 + orphans)):
        blog.post(user_id=user_id).save()


def recorded_runs(pair: Pair) -> list[tuple[Any, ...]]:
    """(run_id, reference, state, rows_checked, findings) of every run of a reference, oldest first."""
    return pair.second.rows(
        "SELECT run_id, reference, state, rows_checked, findings FROM crosstie_audit_run"
        " WHERE reference <> 'sagas' ORDER BY started_at_ms, run_id"
    )


def test_a_run_finds_records_and_reports_the_same(configured: Pair, blog: Blog) -> None:
    """Every reference between two databases, its orphans in crosstie_finding, its figures in crosstie_audit_run."""
    plant(blog)
    report = run_audit()
    assert [result.reference for result in report.results] == [USERS]
    result = report.results[0]
    assert (report.state, report.exit_status, report.unrecorded) == (AuditState.FINDINGS, 1, {})
    assert (result.keys_checked, result.child_rows, result.orphan_rows) == (3, 4, 2)
    assert recorded_runs(configured) == [(report.run_id, USERS, "findings", 4, 2)]
    assert configured.second.rows("SELECT child_key, parent_key, kind FROM crosstie_finding ORDER BY parent_key") == [
        ("[4]", "900", "orphan"),
        ("[5]", "901", "orphan"),
    ]
    assert configured.second.scalar("SELECT count(*) FROM crosstie_audit_run WHERE finished_at_ms >= started_at_ms")
    assert configured.first.scalar("SELECT count(*) FROM crosstie_audit_run WHERE reference <> 'sagas'") == 0


def test_the_query_of_a_finding_shows_its_rows(configured: Pair, blog: Blog) -> None:
    """It is copied into the database's own client, and it runs there."""
    plant(blog)
    found = run_audit().results[0].findings[0]
    assert [row[1] for row in configured.second.rows(found.query)] == [found.parent_key]


@pytest.mark.turns("pair")
@FEW
def test_rows_of_an_unresolved_saga_are_not_reported_until_it_is_resolved(configured: Pair, blog: Blog) -> None:
    """The branch's record stays `applied` until a worker settles it; the orphan that it leaves is then found."""
    with saga("post", home="default"):
        blog.user(name="ada").save()
        blog.post(user_id=900).save()
    blog.post(user_id=901).save()

    first = run_audit().results[0]
    assert [one.parent_key for one in first.findings] == [901]
    assert (first.deferred_keys, first.deferred_rows) == (1, 1)

    assert sweep_sagas("secondary").settled == 1
    second = run_audit().results[0]
    assert sorted(one.parent_key for one in second.findings) == [900, 901]
    assert second.deferred_keys == 0


@pytest.mark.turns("pair")
@FEW
def test_a_parent_deleted_by_an_unresolved_saga_is_not_reported(configured: Pair, blog: Blog) -> None:
    """The record in the parent's database tells the key of the row that is gone."""
    user = blog.user(name="ada")
    user.save()
    blog.post(user_id=user.id).save()
    with saga("leave", home="secondary"):
        user.delete()
        blog.comment().save()
    result = run_audit().results[0]
    assert (result.orphan_keys, result.deferred_keys, result.state) == (0, 1, AuditState.OK)
    sweep_sagas("default")
    assert run_audit().results[0].orphan_keys == 1


@ONE
def test_references_within_a_database_only_when_asked_for(blog: Blog, configured: Pair) -> None:
    """`include_local` adds them; a name picks any."""
    blog.comment(post_id=77).save()
    assert [one.reference for one in run_audit(include_local=True).results] == [USERS, POSTS]
    report = run_audit([POSTS])
    assert [(one.reference, one.orphan_rows) for one in report.results] == [(POSTS, 1)]


@ONE
def test_a_reference_may_be_named_by_its_child(blog: Blog, configured: Pair) -> None:
    """In full, without its parent, without the connection; twice named is audited once."""
    for names in ([USERS], ["secondary.posts.user_id"], ["posts.user_id"], ["posts.user_id", USERS]):
        assert [one.reference for one in run_audit(names).results] == [USERS]


@ONE
@pytest.mark.parametrize(
    ("wrong", "suggested"),
    [
        ("post.user_id", "posts.user_id"),
        ("secondary.posts.userid", "secondary.posts.user_id"),
        (USERS.replace("users", "user"), USERS),
    ],
)
def test_an_unknown_reference_is_answered_with_the_nearest(
    blog: Blog, configured: Pair, wrong: str, suggested: str
) -> None:
    """Nothing is audited for a name with a slip in it."""
    with pytest.raises(UnknownReference, match=f"Did you mean '{suggested}'"):
        run_audit([wrong])
    assert recorded_runs(configured) == []


@ONE
def test_without_any_reference_the_run_is_not_ok(no_models: None, configured: Pair) -> None:
    """Nothing was checked, which is not the same as nothing was found."""
    report = run_audit()
    assert (report.results, report.state, report.exit_status) == ((), AuditState.INCOMPLETE, 2)


@ONE
def test_without_crossties_tables_it_still_audits_and_says_so(configured: Pair, blog: Blog) -> None:
    """The orphans are told, and that no row tells of them."""
    plant(blog)
    for table in ("crosstie_finding", "crosstie_audit_run", "crosstie_saga"):
        configured.second.execute(f"DROP TABLE {table}")
    report = run_audit()
    assert (report.state, report.results[0].orphan_rows) == (AuditState.FINDINGS, 2)
    assert "crosstie init" in report.unrecorded[USERS]
    assert any("not recorded" in note for note in report.results[0].notes)


@ONE
def test_a_database_that_is_down_costs_its_own_references_and_what_is_suspected_of_others(
    configured: Pair, blog: Blog
) -> None:
    """Its reference is incomplete, with the reason; others are audited, but no verdict is given against a row."""
    gone = configured.configuration | {"default": {"driver": "sqlite", "database": "/nowhere/at/all.db"}}
    ConnectionManager.configure(gone)
    report = run_audit(include_local=True)
    states = {one.reference: one.state for one in report.results}
    assert states == {USERS: AuditState.INCOMPLETE, POSTS: AuditState.OK}
    assert "'default'" in (report.results[0].reason or "")
    assert report.exit_status == 2
    assert [row[2] for row in recorded_runs(configured)] == ["incomplete", "ok"]
    blog.comment(post_id=77).save()
    report = run_audit(include_local=True)
    states = {one.reference: one.state for one in report.results}
    assert states == {USERS: AuditState.INCOMPLETE, POSTS: AuditState.INCOMPLETE}
    assert "'default'" in (report.results[1].reason or "")


@ONE
def test_a_fault_of_our_own_is_incomplete_not_ok(
    blog: Blog, configured: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception that nobody foresaw is logged with its traceback and shown as the reason."""

    def broken(*_: Any, **__: Any) -> AuditResult:
        raise ZeroDivisionError("a slip")

    monkeypatch.setattr(audit_module, "carry_out", broken)
    result = run_audit().results[0]
    assert (result.state, result.reason) == (AuditState.INCOMPLETE, "unexpected ZeroDivisionError: a slip")
    assert recorded_runs(configured)[0][2] == "incomplete"
    assert "ZeroDivisionError" in caplog.text


@ONE
def test_a_run_whose_end_cannot_be_recorded_is_incomplete(blog: Blog, configured: Pair) -> None:
    """What was found is told all the same; and nothing half is left behind."""
    plant(blog)

    def drop(_: AuditProgress) -> None:
        configured.second.execute("DROP TABLE IF EXISTS crosstie_finding")

    report = run_audit(progress=drop)
    result = report.results[0]
    assert (result.state, result.orphan_rows) == (AuditState.INCOMPLETE, 2)
    assert "could not be recorded" in (result.reason or "")
    assert "crosstie_finding" in report.unrecorded[USERS]
    assert recorded_runs(configured)[0][2] == "running"


@pytest.mark.turns("pair")
@FEW
def test_a_killed_audit_stays_running_until_the_next_supersedes_it(
    configured: Pair, blog: Blog, spawn: Spawner
) -> None:
    """A real SIGKILL in the middle of the scan: its row says so, and the next run notes it."""
    plant(blog)
    program = """
        import json, os, sys, threading
        import sqlalchemy as sa
        from crosstie.orm import ConnectionManager
        from crosstie.orm.integrity import AuditedReference, AuditPhase, Endpoint
        from crosstie.workers.audit import run_audit

        ConnectionManager.configure(json.loads(os.environ["DATABASES"]))
        posts = sa.Table("posts", sa.MetaData(), sa.Column("id", sa.BigInteger, primary_key=True),
                         sa.Column("user_id", sa.BigInteger))
        users = sa.Table("users", sa.MetaData(), sa.Column("id", sa.BigInteger, primary_key=True))
        reference = AuditedReference.between(
            Endpoint("secondary", posts, posts.c.user_id), Endpoint("default", users, users.c.id))

        def hang(step):
            if step.phase is AuditPhase.SCANNING and step.keys_done:
                print("in the middle", flush=True)
                threading.Event().wait()

        run_audit([reference], chunk_size=1, progress=hang)
    """
    child = spawn.code(program, environment={"DATABASES": json.dumps(configured.configuration)})
    child.wait_for_line("in the middle")
    child.kill()
    ((killed, reference, state, *_),) = recorded_runs(configured)
    assert (reference, state) == (USERS, "running")
    assert [one.state for one in last_runs("secondary")] == ["running"]

    report = run_audit()
    assert any(killed in note and "never finished" in note for note in report.results[0].notes)
    states = {run_id: state for run_id, _, state, *_ in recorded_runs(configured)}
    assert states == {killed: "incomplete", report.run_id: "findings"}


@ONE
def test_old_runs_are_forgotten_with_their_findings(
    blog: Blog, configured: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A nightly audit does not fill the database."""
    monkeypatch.setattr(audit_record, "RUNS_KEPT", 2)
    plant(blog, orphans=1)
    kept = [run_audit().run_id for _ in range(4)][-2:]
    assert sorted(row[0] for row in recorded_runs(configured)) == sorted(kept)
    assert configured.second.scalar("SELECT count(*) FROM crosstie_finding") == 2


@ONE
def test_keys_longer_than_their_column_stay_apart(blog: Blog, configured: Pair) -> None:
    """Cut with a digest: two long primary keys that begin alike are two findings."""
    column = finding.c.child_key
    texts = {audit_record._fitting("x" * 300 + end, column) for end in ("a", "b")}
    assert len(texts) == 2
    assert {len(text) for text in texts} == {190}
    assert audit_record._fitting("[1]", column) == "[1]"


@ONE
def test_the_scheduled_audit_logs_what_it_finds(blog: Blog, configured: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """Workers run it without anybody looking on."""
    plant(blog)
    with caplog.at_level(logging.INFO, logger="crosstie.workers.audit"):
        report = run_scheduled_audit()
    assert f"2 orphan rows, run {report.run_id}" in caplog.text


@ONE
def test_a_read_only_child_is_audited_unrecorded(blog: Blog, configured: Pair) -> None:
    """Nothing is written to a connection that is configured read_only."""
    plant(blog)
    second: TestDatabase = configured.second
    ConnectionManager.configure(configured.configuration | {"secondary": second.config | {"read_only": True}})
    report = run_audit()
    assert (report.results[0].orphan_rows, recorded_runs(configured)) == (2, [])
    assert "read_only" in report.unrecorded[USERS]

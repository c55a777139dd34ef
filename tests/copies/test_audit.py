"""`crosstie audit` compares copies too, and its exit status tells of them."""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Any

import pytest

from bench.databases import Pair
from copies import forum
from crosstie.orm import ConnectionManager
from crosstie.orm.integrity import AuditState
from crosstie.outbox.comparison import compare_copies
from crosstie.workers import audit_copies
from crosstie.workers.audit import run_audit, run_scheduled_audit
from crosstie.workers.cli import main

USERS = "secondary.posts.user_id -> default.users.id"
OWNERS = "secondary.badges.owner_email -> default.users.email"


@pytest.fixture
def models(configured_crash_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two groups of copies; what differs need not settle."""
    monkeypatch.setattr(audit_copies, "compare_copies", partial(compare_copies, settle_s=0))
    opened = forum.open_forum()
    ann = opened.User(username="ann", email="ann@example.org").save()
    opened.Post(user_id=ann.id).save()
    opened.Badge(owner=ann.email, place="here", number=1).save()
    forum.settle(configured_crash_pair.databases)
    return opened


def test_right_copies_are_ok_and_wrong_ones_are_findings(models: Any, configured_crash_pair: Pair) -> None:
    """Though no foreign key leads astray."""
    report = run_audit()
    assert {one.name: (one.state, one.found and one.found.rows) for one in report.copies} == {
        USERS: (AuditState.OK, 1),
        OWNERS: (AuditState.OK, 1),
    }
    assert report.exit_status == 0

    configured_crash_pair.second.execute("UPDATE posts SET username = 'eve'")
    report = run_audit()
    assert {one.name: one.state for one in report.copies} == {USERS: AuditState.FINDINGS, OWNERS: AuditState.OK}
    assert {one.state for one in report.results} == {AuditState.OK}
    assert (report.state, report.exit_status) == (AuditState.FINDINGS, 1)
    (wrong,) = [one for one in report.as_document()["copies"] if one["reference"] == USERS]
    assert (wrong["differing"], wrong["differences"][0]["fields"]) == (1, ("username",))
    assert run_audit([OWNERS]).exit_status == 0, "only the copies that follow the references that were named"
    assert run_audit([USERS]).exit_status == 1


def test_copies_that_cannot_be_compared_are_incomplete(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an error of the database, or by one of ours."""

    def fail(group: Any, **_: Any) -> None:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(audit_copies, "compare_copies", fail)
    report = run_audit()
    assert report.exit_status == 2
    assert {one.reason for one in report.copies} == {"unexpected ZeroDivisionError: of ours"}


def test_the_command_shows_the_copies_and_what_to_do(
    models: Any, configured_crash_pair: Pair, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For people and for programs, with the same exit status."""
    configured_crash_pair.second.execute("UPDATE posts SET username = 'eve'")
    monkeypatch.setenv("CROSSTIE_CONNECTIONS", json.dumps(configured_crash_pair.configuration))
    monkeypatch.setenv("CROSSTIE_IMPORTS", "[]")
    monkeypatch.setattr(sys, "path", sys.path.copy())
    ConnectionManager.dispose()
    with pytest.raises(SystemExit) as ended:
        main(["audit"])
    shown = capsys.readouterr().out
    assert ended.value.code == 1
    assert "(username)" in shown
    assert shown.splitlines()[-1].endswith("crosstie verify-copies --repair")
    with pytest.raises(SystemExit) as ended:
        main(["audit", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (ended.value.code, document["exit_status"], len(document["copies"])) == (1, 1, 2)

    down = {"driver": "sqlite", "database": "/nowhere/at/all.db"}
    monkeypatch.setenv("CROSSTIE_CONNECTIONS", json.dumps(configured_crash_pair.configuration | {"default": down}))
    ConnectionManager.dispose()
    with pytest.raises(SystemExit) as ended:
        main(["audit"])
    assert ended.value.code == 2
    assert f"copies by {USERS} were not compared" in capsys.readouterr().out


def test_the_scheduled_audit_logs_copies_that_differ(
    models: Any, configured_crash_pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody sees its exit status."""
    configured_crash_pair.second.execute("UPDATE posts SET username = 'eve'")
    run_scheduled_audit()
    assert f"audit of the copies by {USERS}: 1 rows differ" in caplog.text

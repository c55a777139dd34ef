"""Repairs of children whose parent may be in any of several databases: none of them can bring it meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.databases import Pair, Trio
from bench.waiting import eventually
from crosstie.orm import ConnectionManager, connected_to
from crosstie.orm.faults import armed
from crosstie.orm.integrity import AuditPhase, AuditProgress
from crosstie.sagas import saga
from crosstie.workers.audit_references import reflected_reference
from crosstie.workers.repair import Cap, Outcome, RepairRefused, RepairReport, repair_reference, undo_repair
from integrity.desk import UNION, WRITTEN
from integrity.test_repair_races import must_wait

ONE = pytest.mark.parametrize("trio", [("sqlite", "postgresql", "mariadb")], indirect=True, ids="-".join)
ALL = Cap(percent=100.0)


def plant(desk: Any) -> list[int]:
    """Three tickets of two users that are in no database; returns their keys."""
    _, ticket = desk
    return [int(ticket(user_id=key).save().id) for key in (99, 99, 98)]


def tickets(trio: Trio) -> dict[int, int | None]:
    """The user of each."""
    return dict(trio.first.rows("SELECT id, user_id FROM tickets ORDER BY id"))


def outcomes(report: RepairReport) -> dict[Any, set[Outcome]]:
    """By missing parent."""
    keys = {row.parent_key for row in report.rows}
    return {key: {row.outcome for row in report.rows if row.parent_key == key} for key in keys}


def when_audited(act: Callable[[], Any]) -> Callable[[AuditProgress], None]:
    """Acts between the audit of a repair and the repair."""

    def listen(step: AuditProgress) -> None:
        if step.phase is AuditPhase.DONE:
            act()

    return listen


@pytest.mark.parametrize("policy", ["set_null", "delete", "quarantine"])
def test_orphans_are_repaired_and_brought_back(desk: Any, configured_trio: Trio, policy: str) -> None:
    """After a dry run that writes nothing; no other row is touched, and the undo restores each as it was."""
    planted = plant(desk)
    before = tickets(configured_trio)
    dry = repair_reference(UNION, policy, cap=ALL)
    assert (sorted(row.child_key["id"] for row in dry.rows), dry.repair_id) == (planted, None)
    assert tickets(configured_trio) == before

    report = repair_reference(UNION, policy, apply=True, cap=ALL)
    assert (report.count(Outcome.REPAIRED), report.exit_status) == (3, 0), report.rows
    left = (
        before | dict.fromkeys(planted)
        if policy == "set_null"
        else {k: v for k, v in before.items() if v not in {98, 99}}
    )
    assert tickets(configured_trio) == left

    assert report.repair_id is not None
    undone = undo_repair(report.repair_id)
    assert (undone.exit_status, len(undone.rows), tickets(configured_trio)) == (0, 3, before)


def test_no_database_can_bring_the_parent_before_the_repair_has_committed(desk: Any, configured_trio: Trio) -> None:
    """Whoever inserts it, anywhere, waits from the last look until the child is gone."""
    desk[1](user_id=99).save()
    insert = "INSERT INTO users (id) VALUES (99)"
    shards = configured_trio.second, configured_trio.third
    waited: list[list[bool]] = []
    with armed("repair.recorded", lambda: waited.append([must_wait(one, insert) for one in shards])):
        report = repair_reference(UNION, "quarantine", apply=True, cap=ALL)
    assert (waited, report.count(Outcome.REPAIRED)) == ([[True, True]], 1)
    assert not any(must_wait(one, insert) for one in shards)


@pytest.mark.parametrize("region", ["second", "third"])
def test_a_parent_that_came_to_any_of_them_keeps_its_child(desk: Any, configured_trio: Trio, region: str) -> None:
    """It is looked for in all of them once more, behind the fences."""
    plant(desk)
    bring = when_audited(lambda: getattr(configured_trio, region).execute("INSERT INTO users (id) VALUES (99)"))
    report = repair_reference(UNION, "delete", apply=True, cap=ALL, progress=bring)
    assert outcomes(report) == {99: {Outcome.SPARED}, 98: {Outcome.REPAIRED}}, report.rows
    assert sorted(filter(None, tickets(configured_trio).values()))[-2:] == [99, 99]


@ONE
def test_a_saga_on_any_of_them_spares_the_child(desk: Any, configured_trio: Trio) -> None:
    """It has had the parent in its hands since the audit, and nobody knows yet how it ends."""
    user, ticket = desk
    plant(desk)

    def begin() -> None:
        with connected_to(region="us"), saga("join", home="default"):
            user(id=99).save()
            ticket(user_id=1).save()
        configured_trio.third.execute("DELETE FROM users WHERE id = 99")

    report = repair_reference(UNION, "delete", apply=True, cap=ALL, progress=when_audited(begin))
    assert outcomes(report) == {99: {Outcome.SPARED}, 98: {Outcome.REPAIRED}}, report.rows
    assert any("saga" in (row.reason or "") for row in report.rows)


@ONE
def test_a_lost_fence_in_any_of_them_writes_nothing(desk: Any, configured_trio: Trio) -> None:
    """Its server has let go of the key, so the parent may be there by now."""
    plant(desk)
    before = tickets(configured_trio)
    sessions = (
        "SELECT id FROM information_schema.innodb_trx JOIN information_schema.processlist ON id = trx_mysql_thread_id"
        " WHERE db = DATABASE()"
    )

    cuts: list[int] = []

    def cut() -> None:
        # The server's picture of its transactions may be 0.1 s old.
        for (session,) in eventually(lambda: configured_trio.third.rows(sessions), describe="the fence's session"):
            configured_trio.third.execute(f"KILL {int(session)}")
            cuts.append(session)

    with armed("repair.fenced", cut):
        report = repair_reference(UNION, "delete", apply=True, cap=ALL)
    assert (len(cuts), report.count(Outcome.REPAIRED)) == (1, 0)
    assert tickets(configured_trio) == before


@ONE
def test_an_empty_database_of_parents_is_refused(desk: Any, configured_trio: Trio) -> None:
    """All children of that one look like orphans, though the others have rows."""
    plant(desk)
    configured_trio.third.execute("DELETE FROM users")
    with pytest.raises(RepairRefused, match=r"tertiary\.users\.id has no rows at all"):
        repair_reference(UNION, "set_null", apply=True, cap=ALL)
    with pytest.raises(RepairRefused, match="at most 1 orphan rows"):
        configured_trio.third.execute("INSERT INTO users (id) VALUES (11)")
        repair_reference(UNION, "set_null", apply=True, cap=Cap(rows=1, percent=100))


@ONE
def test_parents_in_several_databases_are_not_made_anew(desk: Any, configured_trio: Trio) -> None:
    """A key does not tell where its parent was."""
    plant(desk)
    with pytest.raises(RepairRefused, match="a key does not tell in which"):
        repair_reference(UNION, "recreate", cap=ALL, recreate=lambda key: desk[0](id=key))


@ONE
def test_without_models_they_are_repaired_too(desk: Any, configured_trio: Trio) -> None:
    """As far as a policy needs no model."""
    plant(desk)
    report: RepairReport = repair_reference(reflected_reference(WRITTEN), "quarantine", apply=True, cap=ALL)
    assert (report.count(Outcome.REPAIRED), report.exit_status) == (3, 0), report.rows


@pytest.mark.parametrize("pair", [("sqlite", "sqlite"), ("sqlite", "postgresql"), ("sqlite", "mariadb")], indirect=True)
def test_two_names_of_one_database_have_one_fence(configured: Pair) -> None:
    """The second would wait for the first until both gave up."""
    names = {"default": configured.first, "one": configured.second, "same": configured.second}
    ConnectionManager.configure({name: database.config for name, database in names.items()})
    configured.first.execute("CREATE TABLE tickets (id INTEGER PRIMARY KEY, user_id BIGINT)")
    configured.second.execute("CREATE TABLE users (id BIGINT NOT NULL PRIMARY KEY)")
    configured.second.execute("INSERT INTO users (id) VALUES (1)")
    configured.first.execute("INSERT INTO tickets (id, user_id) VALUES (1, 1), (2, 99)")
    reference = reflected_reference("default.tickets.user_id -> {one, same}.users.id")
    report = repair_reference(reference, "set_null", apply=True, cap=ALL)
    assert report.count(Outcome.REPAIRED) == 1, report.rows

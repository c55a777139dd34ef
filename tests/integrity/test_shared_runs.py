"""Runs that many processes carry: each chunk counts once, a kill costs one chunk, and a late result is refused."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from bench.databases import Pair
from bench.faults import crash_env
from bench.processes import Spawner
from bench.waiting import eventually
from crosstie.orm import ConnectionManager
from crosstie.orm.configuration import AuditSettings
from crosstie.orm.faults import FAULT_POINTS, armed
from crosstie.orm.integrity import AuditPhase, AuditProgress, AuditState, ChunkResult, KeyRange, audit_chunk
from crosstie.workers import audit_chunks, audit_runner, tick
from crosstie.workers.audit import run_audit
from crosstie.workers.audit_record import last_runs, open_run
from crosstie.workers.audit_runner import help_audits
from crosstie.workers.audit_throttle import press, take_tokens
from crosstie.workers.errors import ChunkLost
from crosstie.workers.foreground import sweep_once
from integrity.blog import USERS, Blog, define_blog

PROGRAM = Path(__file__).with_name("audit_program.py")
POINTS = sorted(point for point in FAULT_POINTS if point.startswith("audit."))
ONE = pytest.mark.parametrize("crash_pair", [("sqlite", "postgresql")], indirect=True, ids="-".join)
HASTY = {"CROSSTIE_AUDIT__CHUNK_S": "0.000001"}
KEYS, ORPHANS = 30, {10, 20, 30}


@pytest.fixture
def blog(configured_crash_pair: Pair, no_models: None, monkeypatch: pytest.MonkeyPatch) -> Blog:
    """Posts of thirty users, three of whom never were; chunks of one page."""
    for name, value in HASTY.items():
        monkeypatch.setenv(name, value)
    ConnectionManager.configure(configured_crash_pair.configuration)
    made = define_blog()
    made.user.bulk_create([made.user(id=key) for key in range(1, KEYS + 1) if key not in ORPHANS])
    made.post.bulk_create([made.post(user_id=key) for key in range(1, KEYS + 1)])
    return made


def void(_: object) -> None:
    """Only for what it has done."""


def found(pair: Pair) -> set[int]:
    """The parents that the findings of the last run lack."""
    return {int(row[0]) for row in pair.second.rows("SELECT parent_key FROM crosstie_finding")}


def lapse(pair: Pair) -> None:
    """Let all leases have run out: of runs, of chunks, and of readers' places."""
    for table in ("audit_run", "audit_chunk", "tick"):
        for database in pair.databases:
            database.execute(f"UPDATE crosstie_{table} SET lease_until_ms = 0")


def test_every_point_is_crashed_at() -> None:
    """A point that is added is met by the test below."""
    assert len(POINTS) == 4


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_run_is_brought_to_its_end_by_another_process(
    configured_crash_pair: Pair, blog: Blog, spawn: Spawner, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was stored is not read again: the others do the rest, and one chunk at most anew."""
    nth = 1 if point == "audit.concluded" else 4
    spawn.python(PROGRAM, environment=configured_crash_pair.environment | HASTY | crash_env(point, nth)).wait_killed()
    second = configured_crash_pair.second
    stored = second.scalar("SELECT sum(keys_checked) FROM crosstie_audit_chunk WHERE state = 'done'")
    assert stored == {"audit.chunk-committed": 20, "audit.concluded": KEYS}.get(point, 15)
    assert [one.state for one in last_runs("secondary")] == ["running"]
    lapse(configured_crash_pair)

    audited: list[int] = []

    def audit_and_count(*arguments: Any, **options: Any) -> ChunkResult:
        result = audit_chunk(*arguments, **options)
        audited.append(result.keys)
        return result

    def ended() -> bool:
        help_audits("secondary", owner="other")
        return last_runs("secondary")[0].state != "running"

    monkeypatch.setattr(audit_runner, "audit_chunk", audit_and_count)
    eventually(ended)
    (run,) = last_runs("secondary")
    assert (run.state, run.findings, run.detail["keys_checked"]) == ("findings", 3, KEYS)
    assert found(configured_crash_pair) == ORPHANS
    assert sum(audited) == KEYS - stored
    assert second.scalar("SELECT count(*) FROM crosstie_audit_chunk") == 0
    assert help_audits("secondary", owner="other") is False


def test_several_share_a_run(configured_crash_pair: Pair, blog: Blog) -> None:
    """Each chunk is audited by one of them, and the one that began it reports all."""
    ended = threading.Event()
    helped: list[bool] = []
    errors: list[BaseException] = []

    def helper() -> None:
        try:
            while not ended.is_set():
                helped.append(help_audits("secondary", owner="helper"))
        except BaseException as error:  # noqa: BLE001 - shown by the test
            errors.append(error)

    threads = [threading.Thread(target=helper) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        result = run_audit(chunk_size=1).results[0]
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert (result.state, result.keys_checked, result.child_rows) == (AuditState.FINDINGS, KEYS, KEYS)
    assert {one.parent_key for one in result.findings} == ORPHANS


def begin(pair: Pair, *bounds: int) -> tuple[audit_chunks.Claim, ...]:
    """Chunks of a run, all of them claimed."""
    from crosstie.orm.integrity import AuditPlan, Strategy

    ranges = [KeyRange(lo, hi) for lo, hi in zip((None, *bounds), bounds, strict=False)]
    plan = AuditPlan(USERS, Strategy.PACKED, 10, bounds[-1], tuple(ranges), KEYS, KEYS)
    database = ConnectionManager.get("secondary")
    open_run(database, "run", USERS, plan, owner="one", lease_s=60)
    claims = [audit_chunks.claim(database, "run", USERS, owner="one", lease_s=60) for _ in ranges]
    return tuple(one for one in claims if one is not None)


def test_a_late_result_is_refused(configured_crash_pair: Pair, blog: Blog) -> None:
    """The lease has run out, and another process has the chunk: the epoch tells, not the clock."""
    (zombie,) = begin(configured_crash_pair, 30)
    database = ConnectionManager.get("secondary")
    assert audit_chunks.claim(database, "run", USERS, owner="two", lease_s=60) is None
    lapse(configured_crash_pair)
    holder = audit_chunks.claim(database, "run", USERS, owner="two", lease_s=60)
    assert holder is not None
    with pytest.raises(ChunkLost, match="another process has it"):
        audit_chunks.finish(zombie, ChunkResult(covered=zombie.range, keys=99))
    with pytest.raises(ChunkLost):
        audit_chunks.renew(zombie)
    rest = audit_chunks.finish(holder, ChunkResult(covered=KeyRange(None, 12), keys=12))
    assert rest is not None
    assert (rest.range, rest.owner) == (KeyRange(12, 30), "two")
    assert audit_chunks.finish(rest, ChunkResult(covered=rest.range, keys=18)) is None
    assert [one.keys for one in audit_chunks.results(database, "run", USERS)] == [12, 18]


@ONE
def test_a_sweep_from_cron_ends_an_abandoned_run(configured_crash_pair: Pair, blog: Blog, own_registries: None) -> None:
    """No worker is needed."""
    begin(configured_crash_pair, 10, 30)
    lapse(configured_crash_pair)
    assert sweep_once()
    assert [(one.run_id, one.state, one.findings) for one in last_runs("secondary")] == [("run", "findings", 3)]


def test_a_refused_chunk_is_tried_again_and_given_up_at_last(configured_crash_pair: Pair, blog: Blog) -> None:
    """What it had covered is kept; five times refused, its reason stays in the results."""
    (held,) = begin(configured_crash_pair, 30)
    database = ConnectionManager.get("secondary")
    down = ChunkResult(covered=KeyRange(None, 10), keys=10, reason="down", retryable=True)
    assert audit_chunks.finish(held, down) is None
    for _ in range(audit_chunks.ATTEMPTS - 1):
        lapse(configured_crash_pair)
        again = audit_chunks.claim(database, "run", USERS, owner="one", lease_s=60)
        assert again is not None
        nothing = KeyRange(again.range.lo, again.range.lo)
        assert audit_chunks.finish(again, ChunkResult(covered=nothing, reason="down", retryable=True)) is None
    assert audit_chunks.progress_of(database, "run", USERS).ready == 0
    assert [one.reason for one in audit_chunks.results(database, "run", USERS)] == [None, "down"]


@ONE
def test_a_chunk_that_is_gone_makes_the_run_incomplete(configured_crash_pair: Pair, blog: Blog) -> None:
    """Somebody deleted its row: the results no longer tile the keys."""
    delete = "DELETE FROM crosstie_audit_chunk WHERE state = 'ready'"
    with armed("audit.chunk-committed", lambda: void(configured_crash_pair.second.execute(delete)), nth=3):
        result = run_audit(chunk_size=5).results[0]
    assert result.state is AuditState.INCOMPLETE
    assert "keys were read" in (result.reason or "")


@ONE
def test_a_run_that_another_superseded_ends_without_an_answer(configured_crash_pair: Pair, blog: Blog) -> None:
    """Its chunks are gone, and its row is not overwritten."""
    inner: list[AuditState] = []
    with armed("audit.chunk-committed", lambda: inner.append(run_audit(chunk_size=5).results[0].state), nth=3):
        outer = run_audit(chunk_size=5).results[0]
    assert (inner, outer.state) == ([AuditState.FINDINGS], AuditState.INCOMPLETE)
    states = configured_crash_pair.second.rows(
        "SELECT state FROM crosstie_audit_run WHERE reference <> 'sagas' ORDER BY state"
    )
    assert states == [("findings",), ("incomplete",)]


def test_readers_of_one_database_are_few(configured_crash_pair: Pair, blog: Blog) -> None:
    """A token in each database that is read; who finds none left holds none, and a lapsed one is free."""
    databases = [ConnectionManager.get(name) for name in ("secondary", "default")]

    def take() -> list[tick.Tick] | None:
        return take_tokens(databases, concurrency=2, owner="me", lease_s=60)

    first, second = take(), take()
    assert first is not None
    assert second is not None
    assert take() is None
    tick.release(second[1])  # only one of its two
    assert take() is None
    tick.release(second[0])
    assert take() is not None
    lapse(configured_crash_pair)
    assert take() is not None


def test_nothing_is_read_while_a_database_has_a_press(configured_crash_pair: Pair, blog: Blog) -> None:
    """Running statements are counted by each server; SQLite has none."""
    for name, database in configured_crash_pair.by_name.items():
        settings = AuditSettings.model_construct(max_running=-1, max_lag_s=-1.0)
        why = press(ConnectionManager.get(name), settings)
        assert (why is None) is (database.kind == "sqlite")
        assert press(ConnectionManager.get(name), AuditSettings(max_running=None, max_lag_s=None)) is None


@ONE
def test_a_run_waits_until_the_press_is_over(
    configured_crash_pair: Pair, blog: Blog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that it waits, and goes on by itself."""
    answers = ["a press", "a press"]
    monkeypatch.setattr(audit_runner, "press", lambda *_: answers.pop() if answers else None)
    monkeypatch.setattr(audit_runner, "PAUSE_S", 0.0)
    steps: list[AuditProgress] = []
    assert run_audit(progress=steps.append).results[0].state is AuditState.FINDINGS
    assert [step.phase for step in steps].count(AuditPhase.WAITING) == 2

"""Audits of a forum on which everybody writes: no false alarm, nothing missed, whatever dies in the midst of it.

Sagas write both ends of references, pause and die between their commits and are undone; others insert parents before
children and delete them after; parents are deleted past everything; those who audit are killed. The seed is printed;
`CROSSTIE_STORM_SEED` repeats a run's choices. The long form is `make storm`.
"""

from __future__ import annotations

import json
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from bench.databases import TestDatabase, Trio
from bench.processes import Child, Spawner
from bench.waiting import eventually
from crosstie.orm.integrity import AuditedReference, AuditState
from crosstie.workers.audit import run_audit, select_references
from crosstie.workers.audit_triggers import create_noting
from storm.auditor import BREAKS
from storm.forum import AUTHOR, DOOMED, MODELS, PARENTS, POST
from storm.stage import LONG, seed_of_run
from storm.weather import children_of, send

KINDS = [("postgresql", "mariadb", "sqlite")]
SECONDS = 180 if LONG else 6
KILLS = 15 if LONG else 3
REJECTED, DEFERRED = (100, 5) if LONG else (10, 1)
WRITERS, HELPERS = 4, 1
SETTINGS = {"CROSSTIE_AUDIT__LEASE_S": "5", "CROSSTIE_AUDIT__CHUNK_S": "0.3"}
UNFINISHED = "SELECT count(*) FROM crosstie_saga WHERE state IN ('applied', 'aborted', 'owed')"
RUNNING = "SELECT count(*) FROM crosstie_audit_run WHERE state = 'running'"
IN_CHUNKS = f"{RUNNING} AND detail LIKE '%lo%'"
"""A run of changes alone has no chunks that others could take over; the next run supersedes it."""
FALSE_ALARM = "what is no orphan was found"
BROKEN = list(BREAKS) if LONG else list(BREAKS)[:1]

Row = tuple[int, int]
"""A child's key, and its parent's."""


def _now_ms() -> int:
    return int(time.time() * 1000)


@dataclass
class _Planted:
    """An orphan, from the deletion of its parent until somebody puts that back; before and after it may be found."""

    row: Row
    since_ms: int | None = None
    until_ms: int | None = None

    def lasted(self, begun_at_ms: int, ended_at_ms: int) -> bool:
        """Whether it was one for all that time."""
        return (
            self.since_ms is not None
            and self.since_ms < begun_at_ms
            and (self.until_ms is None or self.until_ms > ended_at_ms)
        )


@dataclass
class _Forum:
    """The databases, those at work on them, what was planted, and what every run has found."""

    databases: dict[str, TestDatabase]
    choose: random.Random
    spawn: Spawner
    environment: dict[str, str]
    planted: dict[str, list[_Planted]] = field(default_factory=lambda: {name: [] for name in PARENTS})
    runs: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    taken_over: int = 0
    kills: int = 0
    _seen: set[tuple[str, str]] = field(default_factory=set)

    def begin(self) -> None:
        """Have writers, and those who audit."""
        self.mill = self._start(f"from storm.forum import write_forum; write_forum({WRITERS}, {self._seed()})")
        self.helpers = self._start(f"from storm.auditor import help_forum; help_forum({HELPERS}, {self._seed()})")
        self.auditor = self._start(f"from storm.auditor import audit_forum; audit_forum({self._seed()})")

    def _seed(self) -> int:
        return self.choose.randrange(2**32)

    def _start(self, program: str) -> Child:
        return self.spawn.code(program, environment=self.environment)

    def plant(self) -> None:
        """Delete a parent that has children, past everything; or put one back."""
        database = self.choose.choice(list(PARENTS))
        parents, planted = self.databases[PARENTS[database]], self.planted[database]
        gone = {one.row[1] for one in planted if one.until_ms is None}
        if gone and self.choose.random() < 0.3:
            key = self.choose.choice(sorted(gone))
            for one in planted:
                if one.row[1] == key and one.until_ms is None:
                    one.until_ms = _now_ms()
            parents.execute("INSERT INTO forum_authors (id, name) VALUES (%s, 'back')", [key])
        elif len(gone) < DOOMED // 2:
            key = self.choose.choice([key for key in range(1, DOOMED + 1) if key not in gone])
            rows = self.databases[database].rows("SELECT id, author_id FROM forum_posts WHERE author_id = %s", [key])
            fresh = [_Planted((int(one), int(other))) for one, other in rows]
            planted += fresh
            parents.execute("DELETE FROM forum_authors WHERE id = %s", [key])
            for one in fresh:
                one.since_ms = _now_ms()

    def kill(self) -> None:
        """SIGKILL of somebody who audits, while a run is under way."""
        whose = self.auditor if self.kills == 0 else self.choose.choice([self.auditor, self.helpers, self.helpers])
        victims = children_of(whose)
        if victims and any(one.scalar(RUNNING) for one in self.databases.values()):
            send([self.choose.choice(victims)], signal.SIGKILL)
            self.kills += 1

    def read_runs(self) -> None:
        """Judge the runs that have ended since; the test's own one has begun now, for all that is known."""
        begun = {
            (run_id, reference.strip()): int(at_ms)
            for run_id, at_ms, reference in re.findall(r"^begins (\S+) (\d+) (.*)$", self.auditor.output, re.MULTILINE)
        }
        for name, database in self.databases.items():
            query = "SELECT run_id, reference, state, finished_at_ms, epoch, detail FROM crosstie_audit_run"
            for run_id, reference, state, ended_at_ms, epoch, detail in database.rows(query):
                if state == "running" or (name, run_id) in self._seen:
                    continue
                self._seen.add((name, run_id))
                scope, reason = (json.loads(detail).get(key) for key in ("scope", "reason"))
                self.taken_over += int(epoch) > 1
                self.runs[state if state != "incomplete" else f"incomplete: {reason}"[:60]] += 1
                time_ms = begun.get((run_id, reference), _now_ms()), int(ended_at_ms)
                self._judge(name, f"{scope} run {run_id} is {state}", state, self._found(database, run_id), time_ms)

    def _found(self, database: TestDatabase, run_id: str) -> set[Row]:
        query = "SELECT child_key, parent_key FROM crosstie_finding WHERE run_id = %s"
        return {(int(json.loads(child)[0]), int(parent)) for child, parent in database.rows(query, [run_id])}

    def _judge(self, name: str, what: str, state: str, found: set[Row], time_ms: tuple[int, int]) -> None:
        planted = self.planted[name]
        if invented := found - {one.row for one in planted}:
            self.wrong.append(f"{name}: {what}: {FALSE_ALARM}: {sorted(invented)[:5]}")
        if state == AuditState.INCOMPLETE:
            return
        lasting = {one.row for one in planted if one.lasted(*time_ms)}
        if missed := lasting - found:
            self.wrong.append(f"{name}: {what} and missed orphans: {sorted(missed)[:5]}")
        if (state == AuditState.OK) != (not found):
            self.wrong.append(f"{name}: {what} with {len(found)} findings")

    def judged(self) -> Counter[str]:
        """What became of candidates when they were confirmed."""
        counts: Counter[str] = Counter()
        pattern = r"judged (\d+) candidates (\d+) orphans (\d+) deferred"
        for candidates, orphans, deferred in re.findall(pattern, self.auditor.output + self.helpers.output):
            counts["orphans"] += int(orphans)
            counts["deferred"] += int(deferred)
            counts["rejected"] += int(candidates) - int(orphans) - int(deferred)
        return counts

    def calm(self) -> None:
        """Nobody writes or begins an audit; what was begun comes to its end."""
        self.mill.kill()
        self.auditor.kill()
        for question in (UNFINISHED, IN_CHUNKS):
            eventually(
                lambda: not sum(int(one.scalar(question)) for one in self.databases.values()),  # noqa: B023
                within_s=120,
                describe=question,
            )
        self.helpers.kill()

    def truth(self, name: str) -> set[Row]:
        """The orphans, as they are."""
        authors = {key for (key,) in self.databases[PARENTS[name]].rows("SELECT id FROM forum_authors")}
        return {
            (a, b) for a, b in self.databases[name].rows("SELECT id, author_id FROM forum_posts") if b not in authors
        }


@pytest.fixture
def forum(configured_trio: Trio, spawn: Spawner, request: pytest.FixtureRequest) -> Iterator[_Forum]:
    """A forum with authors, posts, triggers that note what changes, and nobody at work yet."""
    for model in MODELS:
        model.create_table()
    for name, author in AUTHOR.items():
        author.bulk_create([author(id=key) for key in range(1, DOOMED + 1)])
        POST[name].bulk_create([POST[name](id=n, author_id=1 + n % DOOMED) for n in range(1, 2 * DOOMED)])
    for reference in _references():
        create_noting(reference)
    broken: str | None = getattr(request, "param", None)
    environment = configured_trio.environment | SETTINGS | ({"STORM_BREAK": broken} if broken else {})
    yield _Forum(configured_trio.by_name, random.Random(seed_of_run()), spawn, environment)
    spawn.close()


def _references() -> list[AuditedReference]:
    return [one for one in select_references() if one.child.table.name == "forum_posts"]


def _rage(forum: _Forum, enough: Callable[[], bool], *, within_s: float) -> None:
    forum.begin()
    eventually(lambda: forum.judged().total(), within_s=120, describe="somebody audits")

    def done() -> bool:
        if forum.choose.random() < 0.3:
            forum.plant()
        forum.read_runs()
        if forum.kills < KILLS and forum.choose.random() < 0.5:
            forum.kill()
        return enough()

    eventually(done, within_s=within_s, describe="enough has happened to prove anything")


@pytest.mark.storm
@pytest.mark.timeout(3600 if LONG else 600)
@pytest.mark.parametrize("trio", KINDS, ids="-".join, indirect=True)
def test_no_false_alarm_and_nothing_missed(forum: _Forum) -> None:
    """No run of any scope finds what is none, misses what is there all the time, or stays unfinished."""
    until_s = time.monotonic() + SECONDS

    def enough() -> bool:
        assert not forum.wrong
        judged = forum.judged()
        happened = judged["rejected"] >= REJECTED and judged["deferred"] >= DEFERRED and forum.kills >= KILLS
        return happened and time.monotonic() >= until_s

    _rage(forum, enough, within_s=SECONDS + 240)
    forum.calm()
    left = {name: forum.truth(name) for name in PARENTS}
    report = run_audit(_references())
    found = {
        result.reference.partition(".")[0]: {(one.child_key["id"], one.parent_key) for one in result.findings}
        for result in report.results
    }
    forum.read_runs()
    crashed = forum.mill.output.count("crashed\n")
    errors = Counter(re.findall(r"^error (.*)$", forum.mill.output + forum.helpers.output, re.MULTILINE))
    planted = [one for some in forum.planted.values() for one in some]
    sys.stdout.write(
        f"runs {dict(forum.runs)}; candidates {dict(forum.judged())}; planted {len(planted)}, "
        f"left {sum(map(len, left.values()))}; auditors killed {forum.kills}, runs taken over {forum.taken_over}; "
        f"writers that died between two commits {crashed}; errors {dict(errors)}\n"
    )
    assert not forum.wrong
    assert left == {name: {one.row for one in forum.planted[name] if one.until_ms is None} for name in PARENTS}
    assert found == left
    assert all(result.reason is None for result in report.results)
    assert not sum(int(one.scalar(RUNNING)) for one in forum.databases.values())
    assert forum.taken_over > 0
    assert crashed > 0


@pytest.mark.storm
@pytest.mark.timeout(600)
@pytest.mark.parametrize("trio", KINDS, ids="-".join, indirect=True)
@pytest.mark.parametrize("forum", BROKEN, indirect=True)
def test_an_audit_that_looks_in_a_wrong_way_is_found_out(forum: _Forum) -> None:
    """Else the storm would prove nothing: what must not be reported comes in the way of every look."""
    _rage(forum, lambda: any(FALSE_ALARM in one for one in forum.wrong), within_s=300)

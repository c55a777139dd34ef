"""Audits beside sagas that write and delete parents and children all the time: no false alarm, nothing missed."""

from __future__ import annotations

import os
import random
import threading
import time
from typing import Any

import pytest

from bench.databases import Pair
from crosstie.orm.errors import CrosstieError
from crosstie.orm.integrity import AuditState
from crosstie.sagas import saga, sweep_sagas
from crosstie.workers.audit import run_audit
from integrity.blog import Blog

LONG = os.environ.get("CROSSTIE_STORM") == "long"
ENOUGH = 3
"""Audits, however slow the machine is."""
PLANTED = {10**9, 10**9 + 1, 10**9 + 2}


class Storm:
    """Threads that run sagas until told to stop; an error of theirs is kept."""

    def __init__(self, blog: Blog, seed: int) -> None:
        self.blog = blog
        self.stopped = threading.Event()
        self.written = 0
        self.errors: list[BaseException] = []
        self._alive: list[tuple[int, int]] = []
        self._lock = threading.Lock()
        self._threads = [
            *(threading.Thread(target=self._guarded, args=(self._write, seed * 100 + n)) for n in range(3)),
            threading.Thread(target=self._guarded, args=(self._sweep, 0)),
        ]

    def __enter__(self) -> Storm:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for thread in self._threads:
            thread.join()

    def _guarded(self, work: Any, seed: int) -> None:
        chance = random.Random(seed)
        while not self.stopped.is_set():
            try:
                work(chance)
            except CrosstieError as error:
                if not error.retryable:
                    self.errors.append(error)
            except Exception as error:  # noqa: BLE001 - a thread's error is shown by the test
                self.errors.append(error)

    def _write(self, chance: random.Random) -> None:
        home = chance.choice(["default", "secondary"])
        if chance.random() < 0.55 or len(self._alive) < 20:
            with saga("add", home=home):
                user = self.blog.user(name="x")
                user.save()
                post = self.blog.post(user_id=user.id)
                post.save()
            with self._lock:
                self._alive.append((user.id, post.id))
        else:
            with self._lock:
                user_id, post_id = self._alive.pop(chance.randrange(len(self._alive)))
            rows = [(self.blog.user, user_id), (self.blog.post, post_id)]
            with saga("remove", home=home):
                for model, key in chance.sample(rows, 2):
                    model.find_by(id=key).delete()
        self.written += 1

    def _sweep(self, _: random.Random) -> None:
        for name in ("default", "secondary"):
            sweep_sagas(name)
        self.stopped.wait(0.05)


@pytest.mark.storm
@pytest.mark.timeout(600)
@pytest.mark.parametrize("pair", [("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join)
@pytest.mark.parametrize("chunk_size", [10, 50_000])
def test_no_false_alarm_and_nothing_missed(configured: Pair, blog: Blog, chunk_size: int, record_property: Any) -> None:
    """Only the planted orphans are reported, by every audit, and every audit is conclusive."""
    seed = int(os.environ.get("CROSSTIE_STORM_SEED", random.randrange(10**6)))
    record_property("seed", seed)
    for key in PLANTED:
        blog.post(user_id=key).save()
    audits = 0
    deadline = time.monotonic() + (60 if LONG else 3)
    with Storm(blog, seed) as storm:
        while time.monotonic() < deadline or audits < ENOUGH:
            result = run_audit(chunk_size=chunk_size).results[0]
            found = {finding.parent_key for finding in result.findings}
            assert (result.state, result.reason) == (AuditState.FINDINGS, None), f"seed {seed}"
            assert found == PLANTED, f"seed {seed}"
            audits += 1
    assert storm.errors == [], f"seed {seed}"
    assert storm.written > 10

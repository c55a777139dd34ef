"""Children are seen as what they are: alive, ended, killed; and none outlives its test."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from bench.processes import Child, Spawner, Worker, child_environment
from bench.waiting import eventually

APP = """
import celery
app = celery.Celery("bench", broker="memory://")
app.conf.broker_connection_retry_on_startup = True
"""
WORKER = ("-m", "celery", "-A", "bench_app", "worker", "--concurrency", "1", "--loglevel", "INFO")


def alive(pid: int) -> bool:
    """Whether the process runs; one that is dead and not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except FileNotFoundError:
        return False


def test_a_child_that_kills_itself_is_seen_as_killed(spawn: Spawner) -> None:
    """And its output from before is kept, standard error included."""
    child = spawn.code(
        """
        import os, signal, sys
        print("before")
        print("aside", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    assert child.wait_killed().splitlines() == ["before", "aside"]
    assert child.exit_code == -signal.SIGKILL


@pytest.mark.parametrize(("code", "end"), [("", "0"), ("raise SystemExit(3)", "3")])
def test_an_ordinary_end_is_not_taken_for_a_kill(code: str, end: str, spawn: Spawner) -> None:
    """A crash test whose child ran to its end must fail."""
    with pytest.raises(AssertionError, match=f"killed by SIGKILL, it ended with {end}"):
        spawn.code(code).wait_killed()


@pytest.mark.parametrize("code", ["raise ValueError('its reason')", "import os; print('its reason'); os.abort()"])
def test_a_failure_is_shown_with_the_output(code: str, spawn: Spawner) -> None:
    """Neither an exception nor a signal passes for success."""
    with pytest.raises(AssertionError, match=r"expected it to succeed(.|\n)*its reason"):
        spawn.code(code).wait_ok()


def test_a_line_is_a_signal(spawn: Spawner) -> None:
    """It is heard while the child goes on, past or to come."""
    child = spawn.code("import threading; print('one'); print('two'); threading.Event().wait()")
    assert child.wait_for_line("^two$") == "two"
    assert child.wait_for_line("o+ne") == "one"
    assert child.exit_code is None
    with pytest.raises(AssertionError, match=r"no line with 'three' within 0\.01 s"):
        child.wait_for_line("three", within_s=0.01)


def test_waiting_for_a_line_ends_with_the_child(spawn: Spawner) -> None:
    """A child that died says at once that the line will never come, and why."""
    with pytest.raises(AssertionError, match=r"no line with 'ready'(.|\n)*NameError"):
        spawn.code("nonsense").wait_for_line("ready", within_s=60)


def test_a_child_that_never_ends_is_not_waited_for_for_ever(spawn: Spawner) -> None:
    """The deadline holds, and the child dies with the test."""
    child = spawn.code("import threading; print('up'); threading.Event().wait()")
    child.wait_for_line("up")
    with pytest.raises(AssertionError, match=r"still runs after 0\.01 s"):
        child.wait(within_s=0.01)
    child.close()
    assert not alive(child.pid)


FAMILY = """
    import subprocess, sys, threading
    grandchild = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
    print("grandchild", grandchild.pid)
    threading.Event().wait()
"""


def test_a_kill_reaches_the_whole_group(spawn: Spawner) -> None:
    """A worker's pool processes die with it."""
    child = spawn.code(FAMILY)
    grandchild = int(child.wait_for_line("grandchild").split()[1])
    child.kill()
    child.wait_killed()
    eventually(lambda: not alive(grandchild), describe="the grandchild's death")


def test_a_group_left_behind_by_its_leader_dies_with_the_test(spawn: Spawner) -> None:
    """A leader that is killed alone leaves children, and `close` still finds them."""
    child = spawn.code(FAMILY)
    grandchild = int(child.wait_for_line("grandchild").split()[1])
    child.signal(signal.SIGKILL)
    child.wait_killed()
    assert alive(grandchild)
    child.close()
    eventually(lambda: not alive(grandchild), describe="the grandchild's death")


def test_children_die_with_a_test_run_that_is_killed(spawn: Spawner) -> None:
    """No teardown runs then; the kernel ends them."""
    run = spawn.code(
        """
        import os, signal
        from bench.processes import Child
        child = Child(["-c", "print('up'); import threading; threading.Event().wait()"])
        child.wait_for_line("up")
        print("child", child.pid)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    pid = int(run.wait_for_line("child").split()[1])
    run.wait_killed()
    eventually(lambda: not alive(pid), describe="the child's death")


def test_a_childs_environment_has_none_of_this_processs_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own configuration cannot change what a test proves; test servers stay known."""
    monkeypatch.setenv("CROSSTIE_FAULTS", "saga.home-committed=kill")
    monkeypatch.setenv("CROSSTIE_TEST_REDIS_URL", "redis://elsewhere")
    environment = child_environment({"CROSSTIE_SWEEP_INTERVAL_S": "0.2"})
    assert "CROSSTIE_FAULTS" not in environment
    assert environment["CROSSTIE_TEST_REDIS_URL"] == "redis://elsewhere"
    assert environment["CROSSTIE_SWEEP_INTERVAL_S"] == "0.2"


def test_children_leave_no_file_open() -> None:
    """Pipes and process handles are closed, or thousands of tests would run out of them."""
    before = set(Path("/proc/self/fd").iterdir())
    with Child(["-c", "print('done')"]) as child:
        child.wait_ok()
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_a_failed_test_shows_what_its_children_wrote(tmp_path: Path) -> None:
    """The report carries their output: in CI nobody can look anywhere else."""
    failing = tmp_path / "test_failing.py"
    failing.write_text("def test_it(spawn):\n    spawn.code('print(6 * 7)', name='sum').wait()\n    assert False\n")
    command: list[str | Path] = ["-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-c", os.devnull, failing]
    with Child(command, folder=tmp_path) as run:
        assert run.wait() == 1
    assert re.search(r"output of <Child 'sum' pid \d+>[ -]+\n42\n", run.output), run.output


def test_a_worker_is_ready_once_made_and_stops_when_asked(spawn: Spawner) -> None:
    """A real Celery worker with a pool process, ended by SIGTERM."""
    (spawn.folder / "bench_app.py").write_text(APP)
    worker = spawn.worker(WORKER)
    assert worker.exit_code is None
    worker.stop()
    assert worker.exit_code == 0


def test_a_worker_that_cannot_start_shows_its_log(spawn: Spawner) -> None:
    """The reason is in the failure, and no process is left."""
    with pytest.raises(AssertionError, match=r"(?i)no line with(.|\n)*bench_app"):
        spawn.worker(WORKER)
    assert spawn.children == []


def test_a_killed_worker_does_not_pass_for_one_that_stopped(spawn: Spawner) -> None:
    """Its pool is gone as well."""
    (spawn.folder / "bench_app.py").write_text(APP)
    worker = spawn.worker(WORKER)
    assert isinstance(worker, Worker)
    worker.kill()
    worker.wait_killed()

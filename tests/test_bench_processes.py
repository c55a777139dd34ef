"""Children are seen as what they are: alive, ended, killed; and none outlives its test."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from bench.fork_server import lead_group
from bench.processes import Child, Spawner, Worker, child_environment, lives
from bench.waiting import eventually

APP = """
import celery
app = celery.Celery("bench", broker="memory://")
app.conf.broker_connection_retry_on_startup = True
"""
WORKER = ("-m", "celery", "-A", "bench_app", "worker", "--concurrency", "1", "--loglevel", "INFO")


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
        spawn.code("nonsense").wait_for_line("ready")


def test_a_child_that_never_ends_is_not_waited_for_for_ever(spawn: Spawner) -> None:
    """The deadline holds, and the child dies with the test."""
    child = spawn.code("import threading; print('up'); threading.Event().wait()")
    child.wait_for_line("up")
    with pytest.raises(AssertionError, match=r"still runs after 0\.01 s"):
        child.wait(within_s=0.01)
    child.close()
    assert not lives(child.pid)


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
    eventually(lambda: not lives(grandchild), describe="the grandchild's death")


def test_a_group_left_behind_by_its_leader_dies_with_the_test(spawn: Spawner) -> None:
    """A leader that is killed alone leaves children, and `close` still finds them."""
    child = spawn.code(FAMILY)
    grandchild = int(child.wait_for_line("grandchild").split()[1])
    child.signal(signal.SIGKILL)
    eventually(lambda: not lives(child.pid), describe="the leader's death")
    assert lives(grandchild)
    child.close()
    eventually(lambda: not lives(grandchild), describe="the grandchild's death")


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
    eventually(lambda: not lives(pid), describe="the child's death")


def test_a_childs_environment_has_none_of_this_processs_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own configuration cannot change what a test proves; test servers stay known."""
    monkeypatch.setenv("CROSSTIE_FAULTS", "saga.home-committed=kill")
    monkeypatch.setenv("CROSSTIE_TEST_REDIS_URL", "redis://elsewhere")
    environment = child_environment({"CROSSTIE_SWEEP_INTERVAL_S": "0.2"})
    assert "CROSSTIE_FAULTS" not in environment
    assert environment["CROSSTIE_TEST_REDIS_URL"] == "redis://elsewhere"
    assert environment["CROSSTIE_SWEEP_INTERVAL_S"] == "0.2"


def test_a_child_is_as_if_started_anew(spawn: Spawner) -> None:
    """Libraries are there; crosstie, which reads the environment while it is imported, is not, nor are tests."""
    child = spawn.code(
        """
        import os, random, signal, sys, threading
        ours = [name for name in sys.modules if name.split(".")[0] in ("crosstie", "bench", "conftest")]
        assert not ours, ours
        assert "sqlalchemy" in sys.modules
        assert threading.active_count() == 1 and os.getpgid(0) == os.getpid()
        assert os.fstat(0).st_rdev == os.makedev(1, 3)  # /dev/null
        assert sys.argv == ["-c", "one", "two"] and sys.path[0] == "" and __name__ == "__main__"
        # A run of tests in the background of a shell ignores it, and so do its children.
        assert signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_IGN)
        assert sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:3] == [0, 1, 2]
        assert len(os.listdir("/proc/self/fd")) == 4, os.listdir("/proc/self/fd")  # and the one that lists them
        print(os.getcwd(), os.environ["MARK"], os.environ.get("CROSSTIE_FAULTS"), random.random())
        """,
        *("one", "two"),
        environment={"MARK": "mine"},
    )
    folder, mark, faults, chance = child.wait_ok().split()
    assert (folder, mark, faults) == (str(spawn.folder), "mine", "None")
    assert spawn.code("import random; print(random.random())").wait_ok().strip() != chance


def test_a_script_and_a_module_are_run_as_the_interpreter_runs_them(spawn: Spawner) -> None:
    """With their folder on the path, their arguments, and `__main__` being theirs."""
    (spawn.folder / "neighbour.py").write_text("VALUE = 42\n")
    program = spawn.folder / "program.py"
    program.write_text(
        "import pickle, sys, neighbour\nclass Own: pass\n"
        "print(neighbour.VALUE, __name__, sys.argv[1:], type(pickle.loads(pickle.dumps(Own()))) is Own)\n"
    )
    assert spawn.python(program, "x").wait_ok().strip() == "42 __main__ ['x'] True"
    assert spawn.python("-m", "program", "x").wait_ok().strip() == "42 __main__ ['x'] True"


def test_what_the_interpreter_reads_at_its_start_is_refused(spawn: Spawner) -> None:
    """It would be too late for it, and nobody would notice."""
    with pytest.raises(ValueError, match="PYTHONHASHSEED: a forked child's interpreter has started already"):
        spawn.code("", environment={"PYTHONHASHSEED": "1"})


def test_a_child_that_is_another_program_already_leads_its_group() -> None:
    """Seen on a busy machine: the child had executed its program before the server came to set its group."""
    with subprocess.Popen(["sleep", "60"], process_group=0) as child:  # returns once it is that program
        try:
            lead_group(child.pid)
            assert os.getpgid(child.pid) == child.pid
        finally:
            child.kill()


def test_children_leave_no_file_open() -> None:
    """Pipes and process handles are closed, or thousands of tests would run out of them."""
    with Child(["-c", ""]) as child:
        child.wait_ok()  # now the server that forks them is there
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

"""A kept process is there again after it died, and never outlives the process that wanted it."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from bench.processes import Child, Spawner
from bench.waiting import eventually
from crosstie.orm import ConnectionManager, Database
from crosstie.workers import keeper

PROGRAM = """
    import logging, os, signal, sys, threading
    from crosstie.workers import keeper

    if sys.argv[1:] == ["poll"]:  # as on a system whose kernel does not see to it
        keeper._die_with_parent = lambda: None

    logging.basicConfig(format="%(processName)s: %(message)s")

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # it waits until sigwait asks for it

    def say(word, pid):
        os.write(1, f"{word} {pid}\\n".encode())  # one write, which those of other processes cannot divide

    def work():
        wakeup = keeper.Wakeup()
        say("working", os.getpid())
        while not wakeup.stopping and not keeper.orphaned():
            wakeup.wait(1)
        say("stopped", os.getpid())
        return 0

    pid = keeper.fork(lambda: keeper.keep(work, "worker"), "the keeper")
    say("keeper", pid)
    if sys.argv[1:] == ["stop"]:
        signal.sigwait({signal.SIGUSR1})
        keeper.end_process(pid, 20)
        say("ended", os.getpid())
    threading.Event().wait()
"""


def alive(pid: int) -> bool:
    """Whether the process runs; one that is dead and not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except FileNotFoundError:
        return False


def pids(child: Child, word: str, count: int = 1) -> list[int]:
    """The first `count` numbers that the child has printed after this word."""

    def found() -> list[int]:
        return [int(number) for number in re.findall(rf"{word} (\d+)", child.output)]

    return eventually(lambda: found() if len(found()) >= count else [], describe=f"{count} x {word}")


def test_a_killed_process_is_started_again(spawn: Spawner) -> None:
    """By SIGKILL, as the kernel does it when memory is short."""
    child = spawn.code(PROGRAM)
    (first,) = pids(child, "working")
    os.kill(first, signal.SIGKILL)
    assert pids(child, "working", 2)[1] != first
    assert f"the worker (pid {first}) ended by SIGKILL; another is started" in child.output


@pytest.mark.parametrize("way", ["kernel", "poll"])
def test_both_die_with_a_parent_that_is_killed(spawn: Spawner, way: str) -> None:
    """Nobody is left to stop them, and a second worker must not compete with orphans of the first."""
    child = spawn.code(PROGRAM, way)
    family = pids(child, "keeper") + pids(child, "working")
    child.signal(signal.SIGKILL)
    eventually(lambda: not any(map(alive, family)), describe="the death of both")


@pytest.mark.parametrize("way", ["kernel", "poll"])
def test_the_kept_process_dies_with_a_keeper_that_is_killed(spawn: Spawner, way: str) -> None:
    """Whoever starts another keeper must not end with two of it."""
    child = spawn.code(PROGRAM, way)
    (kept,) = pids(child, "working")
    os.kill(pids(child, "keeper")[0], signal.SIGKILL)
    eventually(lambda: not alive(kept), describe="its death")


def test_they_stop_when_the_parent_tells_them_to_and_not_when_the_group_is_signalled(spawn: Spawner) -> None:
    """Ctrl-C and a service manager reach all processes at once; the worker still needs its net while it finishes."""
    child = spawn.code(PROGRAM, "stop")
    kept, kept_by = pids(child, "working")[0], pids(child, "keeper")[0]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(kept, number)
        os.kill(kept_by, number)
    child.signal(signal.SIGUSR1)
    pids(child, "ended")
    assert pids(child, "stopped") == [kept]
    assert child.output.count("working") == 1


def test_a_function_that_raises_ends_its_process_with_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """It never returns into the code that forked."""

    def fail() -> int:
        raise RuntimeError("for a test")

    pid = keeper.fork(fail, "failing")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == keeper.FAILED


def test_a_forked_child_never_uses_a_connection_of_its_parent(configured_database: object) -> None:
    """Two processes on one connection would read each other's answers."""
    database = ConnectionManager.get("default")

    def backend(one: Database) -> object:
        with one.engine.connect() as connection:
            raw = connection.connection.dbapi_connection
            number = {"sqlite": id, "postgresql": lambda c: c.info.backend_pid}.get(one.kind, lambda c: c.thread_id())
            return number(raw), connection.exec_driver_sql("SELECT 1").scalar()

    mine = backend(database)
    read, write = os.pipe()

    def child() -> int:
        theirs = backend(ConnectionManager.get("default"))
        os.write(write, repr(theirs).encode())
        return 0

    pid = keeper.fork(child, "child")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(write)
    theirs = os.read(read, 1000).decode()
    os.close(read)
    assert theirs.endswith(", 1)")
    if database.kind != "sqlite":  # there, a connection's number is its address, which may be used again
        assert theirs != repr(mine)
    assert backend(database) == mine  # its own connection is still good, and still its own

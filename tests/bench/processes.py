"""Child processes of a test: watched, killed for real, and never outliving it."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import textwrap
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from bench.fork_server import fork_server
from bench.waiting import PATIENCE_S

__all__ = ["Child", "Spawner", "Worker", "child_environment", "lives", "state_of"]

TESTS: Final = Path(__file__).resolve().parents[1]
DRAIN_TIMEOUT_S: Final = 5.0


def child_environment(additions: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without its own crosstie settings, with `bench` importable, and the additions.

    What the interpreter reads when it starts cannot be among the additions. Raises ValueError.
    """
    early = [name for name in additions if name.startswith("PYTHON")]
    if early:
        raise ValueError(f"{', '.join(early)}: a forked child's interpreter has started already; start one yourself")
    ours = {k: v for k, v in os.environ.items() if not k.startswith("CROSSTIE_") or k.startswith("CROSSTIE_TEST_")}
    path = os.pathsep.join(filter(None, [str(TESTS), ours.get("PYTHONPATH", "")]))
    return ours | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"} | dict(additions)


def state_of(pid: int) -> str:
    """The kernel's letter: `T` for one that is stopped, `Z` for one that is dead and not yet reaped; empty for none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def lives(pid: int) -> bool:
    """Whether the process runs."""
    return state_of(pid) not in {"", "Z", "X"}


class Child:
    """A process in a process group of its own; a context manager that kills the group at its end.

    By default it is Python, forked with the libraries loaded (see fork_server.py) and else as if started anew;
    `arguments` are then those of the interpreter: a script's path, or `-m` or `-c` and what follows. With a `program`
    it is that one, and with a `user` it runs as that one, if this process is root's. The dead leader is reaped only by
    `close`, so that its number cannot become another process's while the group is still addressed by it.
    """

    def __init__(
        self,
        arguments: Sequence[str | Path],
        *,
        program: str | Path = "",
        user: str = "",
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        name: str = "child",
    ) -> None:
        self.name = name
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._output_ended = False
        self._ended_with: int | None = None
        self._server = fork_server(child_environment({}))
        readable, writable = os.pipe()
        try:
            self.pid = self._server.spawn(
                [str(argument) for argument in arguments],
                output=writable,
                environment=child_environment(environment or {}),
                folder=folder or Path.cwd(),
                program=str(program),
                user=user,
            )
        finally:
            os.close(writable)
        self._pipe = os.fdopen(readable, encoding="utf-8", errors="replace")
        self._pidfd = os.pidfd_open(self.pid)
        self._reader = threading.Thread(target=self._read, name=f"output of {name}", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} pid {self.pid}>"

    @property
    def output(self) -> str:
        """What it has written until now, standard output and error in order."""
        with self._changed:
            return "".join(self._lines)

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that killed it."""
        return self._server.exit_code(self.pid) if self._ended_with is None else self._ended_with

    def wait_for_line(self, pattern: str, *, within_s: float = PATIENCE_S) -> str:
        """Return the first line, past or to come, in which the regular expression is found.

        Raises AssertionError with the output where the process ends or the time passes without it.
        """
        deadline = time.monotonic() + within_s
        seen = 0
        with self._changed:
            while True:
                for line in self._lines[seen:]:
                    if re.search(pattern, line):
                        return line.rstrip("\n")
                seen = len(self._lines)
                left_s = deadline - time.monotonic()
                if self._output_ended or left_s <= 0:
                    break
                self._changed.wait(left_s)
        raise self._disappointment(f"no line with {pattern!r} within {within_s:g} s")

    def wait(self, *, within_s: float = PATIENCE_S) -> int:
        """Wait for its end and return the exit code. Raises AssertionError where it still runs after this time."""
        ready, _, _ = select.select([self._pidfd], [], [], within_s)
        code = self.exit_code
        if not ready or code is None:
            raise self._disappointment(f"it still runs after {within_s:g} s")
        with self._changed:  # the last lines may still be in the pipe; a grandchild may hold it open
            self._changed.wait_for(lambda: self._output_ended, DRAIN_TIMEOUT_S)
        return code

    def wait_ok(self, *, within_s: float = PATIENCE_S) -> str:
        """Wait for its successful end and return the output. Raises AssertionError for any other end."""
        code = self.wait(within_s=within_s)
        if code != 0:
            raise self._disappointment(f"expected it to succeed, it ended with {code}")
        return self.output

    def wait_killed(self, *, within_s: float = PATIENCE_S) -> str:
        """Wait for its death by SIGKILL and return the output. Raises AssertionError for any other end."""
        code = self.wait(within_s=within_s)
        if code != -signal.SIGKILL:
            raise self._disappointment(f"expected it to be killed by SIGKILL, it ended with {code}")
        return self.output

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone, not to its children."""
        signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """SIGKILL the whole group, and return once the leader is dead."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def close(self) -> None:
        """Kill what is left of the group, reap the leader, close the pipe."""
        if self._ended_with is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._ended_with = self._server.reap(self.pid)
        self._reader.join(DRAIN_TIMEOUT_S)
        os.close(self._pidfd)
        self._pipe.close()

    def _read(self) -> None:
        for line in self._pipe:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._output_ended = True
            self._changed.notify_all()

    def _disappointment(self, what: str) -> AssertionError:
        return AssertionError(f"{self!r}: {what}; its output:\n{textwrap.indent(self.output or '(none)', '  | ')}")


class Worker(Child):
    """A real Celery worker process with its pool, ready for tasks once made.

    Raises AssertionError with its log where it does not become ready.
    """

    CELERY: Final = ("-m", "celery", "-A", "crosstie.workers", "worker", "--concurrency", "2", "--loglevel", "INFO")
    READY: Final = r"\bready\b"

    def __init__(
        self,
        arguments: Sequence[str | Path] = CELERY,
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        name: str = "worker",
        ready: str = READY,
        within_s: float = PATIENCE_S,
    ) -> None:
        super().__init__(arguments, environment=environment, folder=folder, name=name)
        try:
            self.wait_for_line(ready, within_s=within_s)
        except BaseException:
            self.close()
            raise

    def stop(self, *, within_s: float = PATIENCE_S) -> str:
        """End it gracefully by SIGTERM and return its log. Raises AssertionError where it ends in another way."""
        self.signal(signal.SIGTERM)
        return self.wait_ok(within_s=within_s)


class Spawner:
    """Starts children for one test, in its folder, and ends them all with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.children: list[Child] = []

    def python(
        self, *arguments: str | Path, environment: Mapping[str, str] | None = None, name: str = "child"
    ) -> Child:
        """Start the interpreter with these arguments: a script and its arguments, or `-m` and a module."""
        return self._keep(Child(arguments, environment=environment, folder=self.folder, name=name))

    def code(
        self, code: str, *arguments: str, environment: Mapping[str, str] | None = None, name: str = "child"
    ) -> Child:
        """Start a program given as text, indented as the test has it."""
        return self.python("-c", textwrap.dedent(code), *arguments, environment=environment, name=name)

    def worker(
        self,
        arguments: Sequence[str | Path] = Worker.CELERY,
        *,
        environment: Mapping[str, str] | None = None,
        name: str = "worker",
        ready: str = Worker.READY,
        within_s: float = PATIENCE_S,
    ) -> Worker:
        """Start a worker and return it once it is ready."""
        worker = Worker(
            arguments, environment=environment, folder=self.folder, name=name, ready=ready, within_s=within_s
        )
        self.children.append(worker)
        return worker

    def close(self) -> None:
        """End all children, the newest first."""
        for child in reversed(self.children):
            child.close()

    def _keep(self, child: Child) -> Child:
        self.children.append(child)
        return child

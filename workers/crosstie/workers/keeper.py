"""Child processes that do not outlive their parent, and the keeper that restarts one of them.

The worker forks the keeper before it has started a thread or opened a connection, and the keeper has neither ever
after. So the keeper can fork again at any time: a fork in the midst of a busy worker could copy a lock that some thread
held, and a child that waits for it for ever would look alive.

Children stop when their parent sends SIGUSR2, and ignore what a terminal or a service manager sends to a whole group of
processes: the worker still has tasks in hand then, and decides itself when its net may go.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Final

__all__ = ["STOP_SIGNAL", "STOP_TIMEOUT_S", "Wakeup", "end_process", "fork", "keep", "orphaned"]

logger = logging.getLogger(__name__)

STOP_SIGNAL: Final = signal.SIGUSR2
FAILED: Final = 70
"""Exit code of a child whose function raised (EX_SOFTWARE)."""
RESTART_PAUSE_S: Final = 1.0
STOP_TIMEOUT_S: Final = 10.0
_CHECK_INTERVAL_S: Final = 1.0
_PR_SET_PDEATHSIG: Final = 1
_GROUP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_HANDLED: Final = (*_GROUP_SIGNALS, signal.SIGCHLD, signal.SIGUSR1, STOP_SIGNAL)

_parent_pid = 0


def fork(run: Callable[[], int], name: str) -> int:
    """Run a function in a forked child and return the child's pid; the result is its exit code.

    The child dies with this process, even by SIGKILL; `name` is its process name in logs.
    """
    parent = os.getpid()
    _flush()  # else the child would write the parent's buffers once more
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)  # none may meet the parent's handlers in the child
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns where threads exist. The module's text says why the keeper is safe from them.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _child(run, name, parent, blocked)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return pid


def _child(run: Callable[[], int], name: str, parent: int, mask: Iterable[int]) -> None:
    global _parent_pid  # noqa: PLW0603 - a fact about this process
    code = FAILED
    try:
        _parent_pid = parent
        _die_with_parent()
        signal.set_wakeup_fd(-1)
        for number in _HANDLED:
            signal.signal(number, signal.SIG_IGN if number in _GROUP_SIGNALS else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        multiprocessing.current_process().name = name
        if not orphaned():
            code = run()
    except BaseException:
        logger.critical("the process %r ends because of an error", name, exc_info=True)
    finally:
        _flush()
        os._exit(code)


def _flush() -> None:
    with contextlib.suppress(OSError, ValueError):  # closed by whoever made this process a daemon
        sys.stdout.flush()
        sys.stderr.flush()


def _die_with_parent() -> None:
    # Bound to the parent's *thread* that forks: its main thread, or one that lives as long as the child.
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def orphaned() -> bool:
    """Whether the process that forked this one has died: the answer where the kernel does not see to it."""
    return os.getppid() != _parent_pid


class Wakeup:
    """Waits for signals in a process of this module, without a handler that could interrupt a held lock."""

    def __init__(self, *stop_signals: signal.Signals) -> None:
        self.stopping = False
        self._stop_signals = frozenset(stop_signals or (STOP_SIGNAL,))
        self._read, write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (*self._stop_signals, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)

    def wait(self, timeout_s: float) -> None:
        """Return after this time, or as soon as a signal has come; one of the stop signals sets `stopping`."""
        ready, _, _ = select.select([self._read], [], [], timeout_s)
        if ready and self._stop_signals.intersection(os.read(self._read, 4096)):
            self.stopping = True


def keep(run: Callable[[], int], name: str) -> int:
    """Run a function in a child, again and again until told to stop: the keeper's whole life."""
    wakeup = Wakeup()
    while not (wakeup.stopping or orphaned()):
        started = time.monotonic()
        pid = fork(run, name)
        status = _watch(pid, wakeup)
        if status is None:
            break
        logger.error("the %s (pid %s) ended %s; another is started", name, pid, _reason(status))
        left_s = RESTART_PAUSE_S - (time.monotonic() - started)
        while left_s > 0 and not wakeup.stopping:  # one that cannot live must not eat a processor
            wakeup.wait(left_s)
            left_s = RESTART_PAUSE_S - (time.monotonic() - started)
    return 0


def _watch(pid: int, wakeup: Wakeup) -> int | None:
    """Wait for the child's end; its wait status, or None where it was asked for."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        if wakeup.stopping or orphaned():
            end_process(pid, STOP_TIMEOUT_S)
            return None
        wakeup.wait(_CHECK_INTERVAL_S)


def _reason(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"


def end_process(pid: int, timeout_s: float) -> None:
    """Tell a child of this process to stop, kill it where it has not ended after this time, and reap it."""
    deadline = time.monotonic() + timeout_s
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, STOP_SIGNAL)
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                logger.warning("process %s did not stop within %g s and is killed", pid, timeout_s)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return
            time.sleep(0.05)

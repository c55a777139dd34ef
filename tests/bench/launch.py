"""Become the given program, and die with the process that asked for it: `launch.py PARENT_PID PROGRAM ARG…`.

A test run that is killed runs no teardown; the kernel then ends its children. The signal is bound to the *thread* that
started the child: start children from threads that outlive them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent, program, *_ = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != int(parent):  # it died before the request was in force
            sys.exit("the parent is gone")
    os.execv(program, sys.argv[2:])  # noqa: S606 - no shell is wanted

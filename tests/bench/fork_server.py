"""Processes that begin with the libraries loaded, forked by a server that has done nothing but import them.

Importing them takes several times longer than what most children of a test do. crosstie itself is not among them: what
it reads from the environment while it is imported is the child's own.

The server is one thread, which forks, tells how a child has ended, and reaps it when told to, so that no pid is used
again while somebody still addresses it. It ends when the other end of its socket is closed, even by a SIGKILL of the
test run; the kernel then ends its children. As a program: `fork_server.py SOCKET`, the number of a descriptor.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import pwd
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

__all__ = ["ForkServer", "fork_server"]

LIBRARIES: Final = (
    *("sqlalchemy.orm", "sqlalchemy.dialects.sqlite", "sqlalchemy.dialects.postgresql", "sqlalchemy.dialects.mysql"),
    *("psycopg", "pymysql", "pydantic", "pydantic_settings", "redis", "yaml", "click", "tzlocal"),
    *("celery.bin.celery", "celery.apps.worker", "celery.app.trace", "celery.concurrency.prefork", "celery.app.amqp"),
    *("celery.worker.consumer", "celery.loaders.app", "celery.app.control", "celery.app.events", "celery.app.log"),
    *("kombu.transport.pyamqp", "kombu.transport.redis", "kombu.transport.sqlalchemy", "kombu.transport.filesystem"),
    *("concurrent.futures.thread", "multiprocessing.util", "logging.handlers", "ipaddress", "zoneinfo", "rich.console"),
    *("numpy", "pyroaring", "typer", "stamina", "xml.etree.ElementTree"),
)
LONGEST_REQUEST: Final = 1 << 17
PR_SET_PDEATHSIG: Final = 1


class ForkServer:
    """The client's side; safe to use from several threads."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._mutex = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def spawn(
        self,
        arguments: Sequence[str],
        *,
        output: int,
        environment: Mapping[str, str],
        folder: Path,
        program: str = "",
        user: str = "",
    ) -> int:
        """Start a process as the interpreter, or another program, with these arguments; returns its pid.

        `output` is its standard output and error; as another `user` only if this process is root's.
        """
        request = {
            "do": "spawn",
            "arguments": list(arguments),
            "environment": dict(environment),
            "folder": str(folder),
            "program": program,
            "user": user,
        }
        return int(self._ask(request, [output]))

    def exit_code(self, pid: int) -> int | None:
        """None while it runs; negative for the signal that killed it."""
        code: int | None = self._ask({"do": "look", "pid": pid})
        return code

    def reap(self, pid: int) -> int:
        """Wait for its end; from now on its pid may be another process's."""
        return int(self._ask({"do": "reap", "pid": pid}))

    def close(self) -> None:
        """End the server, and with it the children that are left."""
        self._socket.close()
        self._process.wait()

    def _ask(self, request: Mapping[str, Any], descriptors: Sequence[int] = ()) -> Any:
        message = json.dumps(request).encode()
        if len(message) > LONGEST_REQUEST:
            raise ValueError(f"the arguments and environment of a child take {len(message)} bytes")
        with self._mutex:
            socket.send_fds(self._socket, [message], descriptors)
            answer = self._socket.recv(LONGEST_REQUEST)
        if not answer:
            raise ConnectionError("the fork server has died; what it wrote is on this process's standard error")
        return json.loads(answer)


_servers: dict[int, ForkServer] = {}


def fork_server(environment: Mapping[str, str]) -> ForkServer:
    """The one of this process, started when first asked for."""
    server = _servers.get(os.getpid())
    if server is None:
        server = _servers[os.getpid()] = ForkServer(environment)
        atexit.register(server.close)
    return server


def serve(end: socket.socket) -> dict[str, Any]:
    """Answer requests until the other end is closed; returns, in a forked child, what that child is asked to be."""
    me = os.getpid()
    while True:
        message, descriptors, _, _ = socket.recv_fds(end, LONGEST_REQUEST, 1)
        if not message:
            os._exit(0)
        request: dict[str, Any] = json.loads(message)
        answer: int | None
        if request["do"] == "spawn":
            answer = os.fork()
            if answer == 0:
                end.close()
                _become_child(request, me, descriptors[0])
                return request
            lead_group(answer)
            os.close(descriptors[0])
        elif request["do"] == "look":
            answer = _exit_code(os.waitid(os.P_PID, request["pid"], os.WEXITED | os.WNOHANG | os.WNOWAIT))
        else:
            answer = _exit_code(os.waitid(os.P_PID, request["pid"], os.WEXITED))
        end.send(json.dumps(answer).encode())


def lead_group(child: int) -> None:
    """Put a child into a group of its own. Both it and we do so: the group is there before anybody asks for it."""
    with contextlib.suppress(PermissionError):  # it has become another program by now, which it did after us
        os.setpgid(child, child)


def _exit_code(status: Any) -> int | None:
    if status is None:
        return None
    return int(status.si_status if status.si_code == os.CLD_EXITED else -status.si_status)


def _become_child(request: Mapping[str, Any], parent: int, output: int) -> None:
    os.setpgid(0, 0)
    if request["user"]:  # before the request below, which the kernel forgets when the user changes
        account = pwd.getpwnam(request["user"])
        os.initgroups(account.pw_name, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the request was in force
        os._exit(1)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    os.chdir(request["folder"])


def run(arguments: Sequence[str]) -> None:
    """Do what the interpreter does with these arguments: a script, or `-m` or `-c` and what follows."""
    first, *rest = arguments
    if first == "-m":
        sys.argv = ["-m", *rest[1:]]
        sys.path.insert(0, os.getcwd())  # noqa: PTH109 - as the interpreter puts it
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        code = compile(rest[0], "<string>", "exec")
    else:
        sys.argv = [first, *rest]
        sys.path.insert(0, str(Path(first).resolve().parent))
        main.__file__ = first
        code = compile(Path(first).read_bytes(), first, "exec")
    exec(code, main.__dict__)  # noqa: S102 - a program of a test


if __name__ == "__main__":
    del sys.path[0]  # this folder, which no child asked for
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy would start threads, and what forks has one
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()  # what is here already is shared by all children
    wanted = serve(socket.socket(fileno=int(sys.argv[1])))
    if wanted["program"]:
        os.execv(wanted["program"], [wanted["program"], *wanted["arguments"]])  # noqa: S606 - no shell is wanted
    run(wanted["arguments"])

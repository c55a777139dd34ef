"""A PostgreSQL or MariaDB server of one test, which may kill it, start it again and set what it likes.

The data lie in memory (/dev/shm) where there is room, else in the system's temporary folder, copied from a template
that is made once for each test process. PostgreSQL refuses to run as root; it then runs as the user `postgres`.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
import pymysql

from bench import engines
from bench.databases import TestDatabase
from bench.engines import ServedKind
from bench.leftovers import PREFIX, alive, owner_pid, unique_name
from bench.processes import Child, state_of
from bench.servers import MISSING, refuse
from bench.waiting import eventually

__all__ = ["PrivateServer", "delete_leftovers", "private_server"]

MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a folder of an unguessable name is made in it
ROOM_BYTES: Final = 1 << 30
"""What must be free in memory before data are put there."""
ROOT: Final = os.geteuid() == 0
SUPERUSER: Final = "crosstie"
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 60.0
IPC_RMID: Final = 0


@dataclass(frozen=True)
class _Recipe:
    """How one kind of server is made, started and stopped; `programs` are the installer and the server."""

    programs: tuple[str, str]
    stop: signal.Signals
    not_ready: type[Exception]
    unprivileged: str
    """The user to become where this process is root's and the server refuses to be."""

    def install(self, home: Path) -> list[str]:
        """The installer's arguments for an empty data directory."""
        raise NotImplementedError

    def serve(self, home: Path, port: int, settings: Mapping[str, str]) -> list[str]:
        """The server's arguments."""
        raise NotImplementedError


class _PostgreSQL(_Recipe):
    def install(self, home: Path) -> list[str]:
        options = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--wal-segsize=1"]
        return [f"--pgdata={home / 'data'}", f"--username={SUPERUSER}", *options]

    def serve(self, home: Path, port: int, settings: Mapping[str, str]) -> list[str]:
        ours = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": "",
            "shared_buffers": "16MB",
            "max_wal_size": "64MB",
            "dynamic_shared_memory_type": "mmap",  # files in the data directory: nothing is left after SIGKILL
        }
        return ["-D", str(home / "data"), *(f"--{name}={value}" for name, value in (ours | dict(settings)).items())]


class _MariaDB(_Recipe):
    def install(self, home: Path) -> list[str]:
        options = ["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-log-bin"]
        return [*self._common(home), "--innodb-log-file-size=8M", *options]

    def serve(self, home: Path, port: int, settings: Mapping[str, str]) -> list[str]:
        ours = {
            "bind-address": "127.0.0.1",
            "port": str(port),
            "socket": str(home / "socket"),
            "pid-file": str(home / "pid"),
            "skip-name-resolve": "1",
            "performance-schema": "0",
            "innodb-buffer-pool-size": "32M",
            "innodb-log-file-size": "8M",
            "innodb-flush-log-at-trx-commit": "1",
            "innodb-buffer-pool-dump-at-shutdown": "0",
            "key-buffer-size": "1M",
            "aria-pagecache-buffer-size": "1M",
        }
        return [*self._common(home), *(f"--{name}={value}" for name, value in (ours | dict(settings)).items())]

    def _common(self, home: Path) -> list[str]:
        # A starting mariadbd deletes temporary tables that it finds in its tmpdir, those of other servers too.
        folders = [f"--datadir={home / 'data'}", f"--tmpdir={home / 'tmp'}"]
        return ["--no-defaults", *folders, *(["--user=root"] if ROOT else [])]


RECIPES: Final[Mapping[ServedKind, _Recipe]] = {
    "postgresql": _PostgreSQL(
        ("initdb", "postgres"), signal.SIGINT, psycopg.OperationalError, unprivileged="postgres" if ROOT else ""
    ),
    "mariadb": _MariaDB(
        ("mariadb-install-db", "mariadbd"), signal.SIGTERM, pymysql.err.OperationalError, unprivileged=""
    ),
}


class PrivateServer:
    """A running server. Start and restart it from a thread that outlives it: it dies with that thread.

    - `config`: the server's own database, for `ConnectionManager.configure`; the user may do anything.
    - `database()`: a fresh database in it, for as long as the server lives.
    - `kill()`: SIGKILL of all its processes at once. What was committed is found again by `start()`.
    - `start()`: on the same data and the same port; returns once it answers queries.
    - `stop()`: an orderly end. `restart()`: both.
    - `home`: the folder of its data, which is deleted in the end. `pids`: its processes.
    - `output`: what the server has written since its last start.
    """

    def __init__(self, kind: ServedKind, home: Path, folder: Path, settings: Mapping[str, str]) -> None:
        self.kind: ServedKind = kind
        self.settings = dict(settings)
        self.home, self._folder = home, folder
        self._recipe = RECIPES[kind]
        self._process: Child | None = None
        # Bound, never listening: the port stays ours while the server is down, and the server may still bind it.
        self._reservation = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reservation.bind(("127.0.0.1", 0))
        self.port: int = self._reservation.getsockname()[1]

    @property
    def config(self) -> dict[str, Any]:
        """The connection to the server's own database."""
        name, user = {"postgresql": ("postgres", SUPERUSER), "mariadb": ("mysql", "root")}[self.kind]
        where = {"driver": self.kind, "host": "127.0.0.1", "port": self.port}
        return where | {"database": name, "username": user, "password": ""}

    @property
    def output(self) -> str:
        """What the server has written since its last start."""
        return self._process.output if self._process is not None else ""

    @property
    def pids(self) -> list[int]:
        """Its processes, the first one first; none where it is down."""
        if self._process is None or not self.is_running:
            return []
        return [self._process.pid, *_children(self._process.pid)]

    @property
    def is_running(self) -> bool:
        """Whether its first process lives."""
        return self._process is not None and self._process.exit_code is None

    def database(self) -> TestDatabase:
        """An empty database of a name of its own."""
        name = unique_name()
        with closing(engines.connect(self.config)) as admin:
            engines.create(self.kind, admin, name)
        config = self.config | {"database": name}
        return TestDatabase(self.kind, name, config, config)

    def start(self, *, within_s: float = START_TIMEOUT_S) -> None:
        """Start it, and return once it answers. Raises AssertionError with its output where it does not."""
        assert not self.is_running, "it runs already"
        self._forget()
        _, program = _programs(self.kind)
        self._process = Child(
            self._recipe.serve(self.home, self.port, self.settings),
            program=program,
            user=self._recipe.unprivileged,
            folder=self.home,
            name=f"private {self.kind}",
        )
        eventually(self._answers, within_s=within_s, describe=f"the private {self.kind} server answers")

    def kill(self) -> None:
        """SIGKILL of all its processes, and return once they are dead."""
        assert self._process is not None
        self._process.signal(signal.SIGSTOP)  # so that no child is born between the list and the kill
        pid = self._process.pid
        eventually(lambda: state_of(pid) in {"T", "Z"}, describe="the server stands still")
        _kill_all(self.pids)
        self._process.wait()

    def stop(self, *, within_s: float = STOP_TIMEOUT_S) -> None:
        """End it in order, whoever is connected. Raises AssertionError with its output where it does not end so."""
        assert self._process is not None
        self._process.signal(self._recipe.stop)
        self._process.wait_ok(within_s=within_s)

    def restart(self) -> None:
        """Stop it in order and start it."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Kill what runs; the data may be deleted then."""
        if self.is_running:
            self.kill()
        self._forget()
        _remove_shared_memory(self.home / "data" / "postmaster.pid")
        self._reservation.close()

    def _forget(self) -> None:
        if self._process is not None:
            log = self._folder / f"{self.home.name}.log"
            with log.open("a") as file:
                file.write(self._process.output)
            self._process.close()
            self._process = None

    def _answers(self) -> bool:
        if not self.is_running:
            raise AssertionError(f"the private {self.kind} server has ended:\n{self.output}")
        try:
            engines.connect(self.config).close()
        except self._recipe.not_ready:
            return False
        return True


@contextlib.contextmanager
def private_server(
    kind: ServedKind, folder: Path, *, settings: Mapping[str, str] | None = None, on_disk: bool = False
) -> Iterator[PrivateServer]:
    """Start a server of the caller's own; at the end of the block it is killed, and its data are deleted.

    Its log is written into `folder`. `settings` are the server's own, such as `{"max_prepared_transactions": "20"}`.
    `on_disk` keeps its data out of memory, where MariaDB writes its log without a buffer.
    Skips the test where the server's programs are not installed, or fails it in CI.
    """
    place = None if on_disk else _roomy()
    with tempfile.TemporaryDirectory(prefix=unique_name(), dir=place, ignore_cleanup_errors=True) as name:
        home = Path(name)
        subprocess.run(["cp", "-a", f"{_template(kind)}/.", home], check=True)
        server = PrivateServer(kind, home, folder, settings or {})
        try:
            server.start()
            yield server
        finally:
            server.close()


@functools.cache
def _template(kind: ServedKind) -> Path:
    """An empty data directory, and a folder for temporary files beside it."""
    installer, _ = _programs(kind)
    recipe = RECIPES[kind]
    home = Path(tempfile.mkdtemp(prefix=unique_name()))
    atexit.register(_delete_own, home)
    (home / "tmp").mkdir()
    (home / "data").mkdir()
    if recipe.unprivileged:
        for folder in (home, home / "tmp", home / "data"):
            shutil.chown(folder, recipe.unprivileged, recipe.unprivileged)
    with Child(recipe.install(home), program=installer, user=recipe.unprivileged, folder=home) as installation:
        installation.wait_ok()
    return home


def _programs(kind: ServedKind) -> tuple[Path, Path]:
    """The installer and the server; skips the test where they are not there, or fails it in CI."""
    names = RECIPES[kind].programs
    for folders in _search_paths(kind):
        installer, server = (shutil.which(name, path=folders) for name in names)
        if installer and server:
            return Path(installer), Path(server)
    return refuse(
        f"{MISSING} {kind} for private use (PATH and the usual folders lack {' or '.join(names)}): install it"
    )


def _search_paths(kind: ServedKind) -> list[str]:
    if kind == "mariadb":
        return [os.pathsep.join([*os.get_exec_path(), "/usr/sbin", "/usr/local/sbin"])]
    # Both of one version: distributions keep several beside each other, and link some of their programs elsewhere.
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda found: float(found.parent.name))
    config = shutil.which("pg_config")
    told = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True).stdout if config else ""
    return [*os.get_exec_path(), *told.split(), *map(str, reversed(installed))]


def delete_leftovers() -> list[Path]:
    """Delete the data of dead runs of this machine, and return where they were; those of living runs stay."""
    folders = [folder for place in {MEMORY, Path(tempfile.gettempdir())} for folder in place.glob(f"{PREFIX}*")]
    dead = [folder for folder in folders if (pid := owner_pid(folder.name)) is not None and not alive(pid)]
    for folder in dead:
        _remove_shared_memory(folder / "data" / "postmaster.pid")
        shutil.rmtree(folder, ignore_errors=True)  # another run's start may be deleting it too
    return dead


def _delete_own(home: Path) -> None:
    if owner_pid(home.name) == os.getpid():  # a fork ends too
        shutil.rmtree(home, ignore_errors=True)


def _roomy() -> Path | None:
    """Memory, if it is there and not nearly full."""
    return MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= ROOM_BYTES else None


def _children(parent: int) -> list[int]:
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def _kill_all(pids: Sequence[int]) -> None:
    """Kill them and wait until they are dead: the next start refuses to share memory with them."""
    with contextlib.ExitStack() as stack:
        handles: list[int] = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                handles.append(os.pidfd_open(pid))
                stack.callback(os.close, handles[-1])
                signal.pidfd_send_signal(handles[-1], signal.SIGKILL)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for handle in handles:
            dead, _, _ = select.select([handle], [], [], max(0.0, deadline - time.monotonic()))
            assert dead, "a killed process still lives"


def _remove_shared_memory(postmaster: Path) -> None:
    """PostgreSQL's segment of System V, which outlives a server that was killed: its number is in the lock file."""
    if postmaster.exists():
        lines = postmaster.read_text().splitlines()
        if len(lines) > 6:
            ctypes.CDLL(None).shmctl(int(lines[6].split()[1]), IPC_RMID, None)

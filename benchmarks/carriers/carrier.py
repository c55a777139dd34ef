"""What each carrier does: take a backlog of committed events in, then apply it with two worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import IO, Any

from carriers.place import environment


class Carrier(ABC):
    """One way."""

    name: str
    share: float = 1.0
    """Of the events that the baseline gets, so that each takes some seconds."""

    def __init__(self) -> None:
        self.workers: list[subprocess.Popen[bytes]] = []
        self._log: IO[Any] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()

    @abstractmethod
    def load(self, count: int) -> None:
        """Commit so many events while nobody works. Raises ImportError where a package is missing."""

    @abstractmethod
    def start(self) -> None:
        """Start two worker processes."""

    def run(self, *command: str, **more: str) -> None:
        """Start a worker process with this Python."""
        process = subprocess.Popen(
            [sys.executable, *command],
            env=environment(**more),
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        self.workers.append(process)

    def stop(self) -> None:
        """End the workers and what they have started."""
        for process in self.workers:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.workers.clear()

    def output(self) -> str:
        """The end of what the workers have said, for a benchmark that fails."""
        self._log.seek(0)
        return str(self._log.read()[-3000:].decode(errors="replace"))

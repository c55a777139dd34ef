"""A gremlin in a broker that is a folder of files: it deletes, doubles, delays, truncates and garbles messages."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from pathlib import Path
from typing import Final, Self

__all__ = ["Gremlin"]

PACE_S: Final = 0.05


class Gremlin:
    """Plays with the messages in `folder` from a thread of its own, until `stop`; a context manager.

    `destruction` is how many messages at most it makes unreadable: kombu's transport answers each by ending a worker.
    """

    def __init__(self, folder: Path, seed: int, *, destruction: int) -> None:
        self.acts: Counter[str] = Counter()
        self._folder = folder
        self._choose = random.Random(seed)
        self._destruction = destruction
        self._aside: list[tuple[Path, bytes]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gremlin", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Play no more, and leave the broker as empty as one that was reset."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._thread.join()
            for message in self._folder.glob("*.msg"):
                message.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._stopped.wait(self._choose.uniform(0, 2 * PACE_S)):
            messages = list(self._folder.glob("*.msg"))
            if self._aside and self._choose.random() < 0.3:
                path, content = self._aside.pop(self._choose.randrange(len(self._aside)))
                path.write_bytes(content)
            elif messages:
                with contextlib.suppress(FileNotFoundError):  # a worker was faster
                    self._play(self._choose.choice(messages))

    def _play(self, message: Path) -> None:
        ruin = ["truncated", "garbled"] if self._destruction else []
        act = self._choose.choice(["deleted", "doubled", "delayed", *ruin])
        content = message.read_bytes()
        if act == "deleted":
            message.unlink()
        elif act == "doubled":
            number, _, rest = message.name.partition("_")
            message.with_name(f"{number}_{self._choose.randrange(10**6)}{rest}").write_bytes(content)
        elif act == "delayed":
            message.unlink()
            self._aside.append((message, content))
        else:
            self._destruction -= 1
            torn = content[: len(content) // 2]
            message.write_bytes(torn if act == "truncated" else torn + self._choose.randbytes(20))
        self.acts[act] += 1

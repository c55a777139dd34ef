"""Databases behind proxies, for requests that are held and answers that are lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import guard
from bench.databases import DatabaseKind, Pair, TestDatabase, fresh_database
from bench.links import Pattern
from bench.proxy import Moment, Proxy, Trigger

__all__ = ["COMMIT", "Bench", "behind_proxies", "while_held"]

COMMIT: dict[DatabaseKind, Pattern] = {
    "postgresql": b"COMMIT\x00",
    "mariadb": (b"\x03COMMIT", b"; COMMIT; END"),
}
"""How COMMIT looks, alone and with the last statement before it; the bare word is in READ COMMITTED too."""


@dataclass
class Bench:
    """Home behind one proxy, the branch behind another, and the databases themselves."""

    home: Proxy
    branch: Proxy
    databases: dict[str, TestDatabase]

    def lose_commit_of(self, name: str, moment: Moment) -> Trigger:
        """Cut the connections when the next COMMIT of this database passes."""
        proxy = self.home if name == "default" else self.branch
        return proxy.cut_after(COMMIT[self.databases[name].kind], moment=moment)


@contextmanager
def behind_proxies(
    kinds: tuple[DatabaseKind, DatabaseKind],
    folder: Path,
    proxy_to: Callable[[TestDatabase], Proxy],
    create: Callable[[dict[str, TestDatabase]], object],
) -> Iterator[Bench]:
    """Configured, filled by `create`, and warm: nothing but what the test sends will pass."""
    with ExitStack() as stack:
        pair = Pair(*(stack.enter_context(fresh_database(kind, folder, furnished=True)) for kind in kinds))
        home, branch = proxy_to(pair.first), proxy_to(pair.second)
        behind = Pair(pair.first.proxied(home), pair.second.proxied(branch))
        stack.enter_context(guard.configured_databases(behind))
        create(pair.by_name)
        yield Bench(home, branch, pair.by_name)


@contextmanager
def while_held(act: Callable[[], object], held: Sequence[Trigger], heal: Callable[[], object]) -> Iterator[None]:
    """Run `act` in a thread, and the block once all of these hold what it sends; then `heal`, and it must succeed."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for trigger in held:
            trigger.wait()
        yield
    finally:
        heal()
        thread.join()
    assert failures == []

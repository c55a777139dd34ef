"""What befalls processes, servers and the connections between them in a storm: each fault with what mends it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from bench.private_servers import PrivateServer
from bench.processes import Child, lives
from bench.proxy import Ears, Moment, Proxy

__all__ = ["LONGEST_STOP_S", "Crew", "Weather", "children_of", "send"]

LONGEST_STOP_S: Final = 2.0
LONGEST_CUT_S: Final = 0.5
EARS: Final[tuple[Ears, ...]] = ("both", "to_server", "to_client")
MOMENTS: Final[tuple[Moment, ...]] = ("answered", "answered", "withheld", "forwarded")


class Crew:
    """As many workers as there were in the beginning; dead ones are replaced."""

    def __init__(self, count: int, hire: Callable[[int], Child]) -> None:
        self._hire = hire
        self.members = [hire(place) for place in range(count)]
        self.replaced = 0

    def replace_dead(self) -> None:
        """Hire another for each that has ended, whether it was killed or has met a message that it could not bear."""
        for place, member in enumerate(self.members):
            if member.exit_code is not None:
                member.kill()  # what it leaves behind, such as a pool without its worker
                self.members[place] = self._hire(place)
                self.replaced += 1

    def kill(self) -> None:
        """SIGKILL of all."""
        for member in self.members:
            member.kill()


class Weather:
    """Faults at random; what has to be mended later is, when its time has come and `mend` is called.

    `proxies` are by whose they are and the kind of the server behind them: `worker 0`, `worker 1`, `producers`.
    `mill` is the parent of the producers. `kills` says how many workers and servers are killed at most: to start one
    takes seconds.
    """

    def __init__(
        self,
        choose: random.Random,
        *,
        workers: Crew,
        mill: Child,
        proxies: Mapping[tuple[str, str], Proxy],
        servers: Mapping[str, PrivateServer],
        kills: Mapping[str, int],
    ) -> None:
        self.faults: Counter[str] = Counter()
        self._choose = choose
        self._workers, self._mill = workers, mill
        self._proxies, self._servers = proxies, servers
        self._left = dict(kills)
        self._mends: list[tuple[float, Callable[[], None]]] = []
        self._busy: set[tuple[str, str]] = set()
        self._asleep: set[int] = set()

    def strike(self) -> None:
        """One fault, if what it would strike is not struck already."""
        acts: list[tuple[Callable[[], str], int]] = [
            (self._stop_worker, 6),
            (self._stop_producer, 2),
            (self._kill_producer, 3),
            (self._kill_part, 4),
            (self._kill_worker, 2 if self._left["worker"] else 0),
            (self._cut, 2 if self._proxies else 0),
            (self._deafen, 3 if self._proxies else 0),
            (self._delay_lock, 5 if self._proxies else 0),
            (self._lose_commit, 5 if self._proxies else 0),
            (self._kill_server, 2 if self._servers and self._left["server"] else 0),
        ]
        act = self._choose.choices([act for act, _ in acts], weights=[weight for _, weight in acts])[0]
        self.faults[act()] += 1

    def mend(self) -> None:
        """Mend what has lasted long enough."""
        due = [mend for at_s, mend in self._mends if at_s <= time.monotonic()]
        self._mends = [(at_s, mend) for at_s, mend in self._mends if at_s > time.monotonic()]
        for mend in due:
            mend()

    def clear(self) -> None:
        """Mend everything now."""
        for _, mend in self._mends:
            mend()
        self._mends = []

    def _later(self, within_s: tuple[float, float], mend: Callable[[], None]) -> None:
        self._mends.append((time.monotonic() + self._choose.uniform(*within_s), mend))

    def _stop_worker(self) -> str:
        """A worker and its children sleep, for longer than their leases perhaps."""
        return self._stop(_group(self._choose.choice(self._workers.members).pid), "worker")

    def _stop_producer(self) -> str:
        return self._stop(self._choose.sample(children_of(self._mill), 1), "producer")

    def _stop(self, pids: Sequence[int], what: str) -> str:
        if self._asleep.intersection(pids):
            return "nothing"
        self._asleep.update(pids)
        send(pids, signal.SIGSTOP)

        def go_on() -> None:
            self._asleep.difference_update(pids)
            send(pids, signal.SIGCONT)

        self._later((0.05, LONGEST_STOP_S), go_on)
        return f"SIGSTOP of a {what}"

    def _kill_producer(self) -> str:
        send(self._choose.sample(children_of(self._mill), 1), signal.SIGKILL)
        return "SIGKILL of a producer"

    def _kill_part(self) -> str:
        """A worker's sweeper, the sweeper's keeper, or a process of its pool."""
        others = children_of(self._choose.choice(self._workers.members))
        send(others and [self._choose.choice(others)], signal.SIGKILL)
        return "SIGKILL of a worker's child"

    def _kill_worker(self) -> str:
        self._left["worker"] -= 1
        self._choose.choice(self._workers.members).kill()
        return "SIGKILL of a worker"

    def _cut(self) -> str:
        return self._disturb("connections cut", lambda proxy: proxy.cut())

    def _deafen(self) -> str:
        way = self._choose.choice(EARS)
        return self._disturb("network deaf", lambda proxy: proxy.deaf(way))

    def _delay_lock(self) -> str:
        """A worker has read events, and its lock on their lane in the target comes when another owns the lane."""
        late = LONGEST_STOP_S * 0.6, LONGEST_STOP_S * 1.2
        pattern = b"FOR UPDATE NOWAIT"
        return self._disturb("lock delayed", lambda p: p.deaf_after(pattern, moment="withheld"), "worker", late)

    def _lose_commit(self) -> str:
        moment = self._choose.choice(MOMENTS)
        return self._disturb("COMMIT lost", lambda proxy: proxy.cut_after(b"COMMIT", moment=moment))

    def _disturb(
        self,
        what: str,
        disturb: Callable[[Proxy], object],
        whom: str = "",
        within_s: tuple[float, float] = (0.05, LONGEST_CUT_S),
    ) -> str:
        """Of one worker, or of all producers; heal it after a time between these."""
        whose = self._choose.choice(sorted({whose for whose, _ in self._proxies if whose.startswith(whom)}))
        name = self._choose.choice([name for name in self._proxies if name[0] == whose])
        if name in self._busy:
            return "nothing"
        proxy = self._proxies[name]
        self._busy.add(name)
        disturb(proxy)

        def heal() -> None:
            self._busy.discard(name)
            proxy.heal()

        self._later(within_s, heal)
        return what

    def _kill_server(self) -> str:
        self._left["server"] -= 1
        name = self._choose.choice(sorted(self._servers))
        self._servers[name].kill()
        self._servers[name].start()
        return f"SIGKILL of {name}"


def _group(leader: int) -> list[int]:
    """The living processes of a process group."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(int(entry.name)) == leader and lives(int(entry.name)):
                found.append(int(entry.name))
    return sorted(found)


def children_of(member: Child) -> list[int]:
    """The living processes of its group but itself."""
    return [pid for pid in _group(member.pid) if pid != member.pid]


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to those that still live."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(pid, number)

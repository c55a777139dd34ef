"""A TCP proxy between driver and server that loses what a test tells it to lose.

Its sockets live in one thread with an event loop. The methods of `Proxy` may be called from any other thread, and
return once the change is in force.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine
from typing import Any, Literal, Self, TypeVar

from bench.links import Direction, Link, Moment, Pattern, Side, Trigger
from bench.waiting import PATIENCE_S

__all__ = ["Direction", "Ears", "Moment", "Proxy", "Trigger", "close_all"]

T = TypeVar("T")
Ears = Direction | Literal["both"]


class Proxy:
    """A proxy before `host`:`port`, listening at 127.0.0.1 on `port`; a context manager.

    - `cut()`: every connection is reset and new ones are refused.
    - `deaf(direction)`: connections stay open, but nothing arrives; it is kept back, as by a broken network, and
      delivered after `heal()`. New connections are accepted and hear nothing.
    - `cut_after`, `deaf_after`: the same at the moment when a byte pattern passes.
    - `delay_s`: what clients send takes so much longer; set it while nothing is on its way.
    - `heal()`: as if nothing had happened, except for the connections that were reset.

    TLS is kept out of the connections, so that patterns can be seen.
    """

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.triggers: list[Trigger] = []
        self._deaf: set[Direction] = set()
        self._links: set[Link] = set()
        self.delay_s = 0.0
        self._failures: list[str] = []
        self._listening: socket.socket | None = None
        self._arriving: set[asyncio.Task[object]] = set()
        # Bound but never listening: keeps the port ours while `cut` has the listening socket closed.
        self._reservation = _bound(0)
        self.port: int = self._reservation.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _, context: self._failures.append(str(context)))
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()
        self._in_loop(self._listen())
        _open.append(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        return len(self._links)

    def cut(self) -> None:
        """Reset every connection and refuse new ones, until `heal`."""
        self._in_loop(self._cut())

    def deaf(self, direction: Ears = "both") -> None:
        """Forward nothing in this direction, until `heal`."""
        self._in_loop(self._deafen(_directions(direction)))

    def heal(self) -> None:
        """Forward again, what was kept back first; accept again; forget triggers that have not acted."""
        self._in_loop(self._heal())

    def cut_after(
        self, pattern: Pattern, direction: Direction = "to_server", *, moment: Moment = "answered"
    ) -> Trigger:
        """Cut when `pattern`, or one of several, passes in `direction`, on whichever connection.

        - `withheld`: what completes the pattern is not forwarded. A COMMIT is lost.
        - `forwarded`: it is, and the cut comes at once.
        - `answered`: it is, and the cut takes the place of the first bytes that come back. The acknowledgement of a
          COMMIT is lost, and the server has certainly executed it.
        """
        return self._arm(Trigger(pattern, direction, moment))

    def deaf_after(
        self,
        pattern: Pattern,
        direction: Direction = "to_server",
        *,
        moment: Moment = "answered",
        deafens: Ears = "both",
    ) -> Trigger:
        """Go deaf when `pattern` passes in `direction`; the moments of `cut_after`, but nothing is reset."""
        return self._arm(Trigger(pattern, direction, moment, deafens=_directions(deafens)))

    def close(self) -> None:
        """Reset what is open and end the thread. Raises AssertionError if the proxy itself failed on the way."""
        if self._loop.is_closed():
            return
        _open.remove(self)
        self._in_loop(self._cut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._reservation.close()
        if self._failures:
            raise AssertionError(f"the proxy failed: {'; '.join(self._failures)}")

    # -- the rules that links ask for, in the proxy's thread -------------------------------------------------------

    def is_deaf(self, direction: Direction) -> bool:
        """Whether nothing passes in this direction now."""
        return direction in self._deaf

    def opened(self, link: Link) -> None:
        """A client has connected; too late where the cut came between its arrival and this call."""
        self._links.add(link)
        if self._listening is None:
            link.reset()

    def closed(self, link: Link) -> None:
        """Both ends of a link are gone."""
        self._links.discard(link)

    def act(self, trigger: Trigger, *, spare: Side | None = None) -> None:
        """Do what the trigger says, and signal it in the loop's next turn, when sockets have been closed."""
        self.triggers.remove(trigger)
        if trigger.deafens:
            self._deafen_now(trigger.deafens)
        else:
            self._cut_now(spare=spare)
        self._loop.call_soon(trigger.fired.set)

    # -- changes, in the proxy's thread ----------------------------------------------------------------------------

    def _in_loop(self, change: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(change, self._loop).result(PATIENCE_S)

    def _arm(self, trigger: Trigger) -> Trigger:
        async def arm() -> None:
            self.triggers.append(trigger)

        self._in_loop(arm())
        return trigger

    async def _listen(self) -> None:
        # Not by an asyncio.Server: one that is closed just when a client has come leaves that one's socket unclosed.
        if self._listening is None:
            self._listening = _bound(self.port)
            self._listening.setblocking(False)
            self._listening.listen()
            self._loop.add_reader(self._listening, self._accept, self._listening)

    def _accept(self, listening: socket.socket) -> None:
        try:
            client, _ = listening.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it has gone again
            return
        client.setblocking(False)
        arrival = self._loop.connect_accepted_socket(lambda: Link(self).client, client)
        task: asyncio.Task[object] = self._loop.create_task(arrival)
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)

    async def _cut(self) -> None:
        self._cut_now()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)
        for _ in range(2):  # an aborted transport closes its socket in the next turn
            await asyncio.sleep(0)

    def _cut_now(self, *, spare: Side | None = None) -> None:
        if self._listening is not None:
            self._loop.remove_reader(self._listening)
            self._listening.close()
            self._listening = None
        for link in list(self._links):
            link.reset(spare=spare)

    async def _deafen(self, directions: tuple[Direction, ...]) -> None:
        self._deafen_now(directions)

    def _deafen_now(self, directions: tuple[Direction, ...]) -> None:
        self._deaf.update(directions)
        for link in self._links:
            link.listen()

    async def _heal(self) -> None:
        self._deaf.clear()
        self.triggers.clear()
        for link in list(self._links):
            link.listen()
        await self._listen()


_open: list[Proxy] = []


def close_all() -> None:
    """Close every proxy that is still open: a rollback through a deaf one would wait for ever."""
    for proxy in _open:
        proxy.close()


def _directions(ears: Ears) -> tuple[Direction, ...]:
    return ("to_server", "to_client") if ears == "both" else (ears,)


def _bound(port: int) -> socket.socket:
    """A socket at this port, which others of this proxy may share."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", port))
    return bound

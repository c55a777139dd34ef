"""One proxied connection: what it forwards, keeps back or resets. Everything here runs in the proxy's thread."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from typing import Final, Literal, Protocol, cast

from bench.plaintext import asks_for_encryption, without_tls_offer
from bench.waiting import PATIENCE_S

__all__ = ["Direction", "Link", "Moment", "Pattern", "Rules", "Trigger"]

Direction = Literal["to_server", "to_client"]
Moment = Literal["withheld", "forwarded", "answered"]
Pattern = bytes | tuple[bytes, ...]
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
REMEMBERED_BYTES: Final = 256
"""How far back a pattern may begin: patterns may be torn apart by the network."""


class Trigger:
    """Acts once, when a pattern, or one of several, passes; `wait` is the signal that it has acted."""

    def __init__(
        self, pattern: Pattern, direction: Direction, moment: Moment, *, deafens: tuple[Direction, ...] = ()
    ) -> None:
        self.patterns = (pattern,) if isinstance(pattern, bytes) else pattern
        for one in self.patterns:
            if not 0 < len(one) < REMEMBERED_BYTES:
                raise ValueError(f"expected a pattern of 1 to {REMEMBERED_BYTES - 1} bytes, found {len(one)}")
        held_back = {"withheld": direction, "forwarded": None, "answered": _opposite(direction)}[moment]
        if deafens and held_back is not None and held_back not in deafens:
            raise ValueError(f"{moment!r} keeps back what goes {held_back}: it must be among what goes deaf, {deafens}")
        self.direction = direction
        self.moment = moment
        self.deafens = deafens
        self.fired = threading.Event()

    def wait(self, within_s: float = PATIENCE_S) -> None:
        """Return once it has acted. Raises AssertionError where it has not within this time."""
        if not self.fired.wait(within_s):
            raise AssertionError(f"{self.patterns!r} did not pass {self.direction} within {within_s:g} s")

    def completed_by(self, data: bytes, *, after: bytes) -> bool:
        """Whether the pattern ends within `data`; what was seen before it was armed does not fire it again."""
        seen = after + data
        return any(seen.find(one, max(0, len(after) - len(one) + 1)) >= 0 for one in self.patterns)


class Rules(Protocol):
    """What a link asks and tells the proxy."""

    target: tuple[str, int]
    triggers: list[Trigger]
    delay_s: float

    def is_deaf(self, direction: Direction) -> bool:
        """Whether nothing passes in this direction now."""

    def opened(self, link: Link) -> None:
        """A client has connected."""

    def closed(self, link: Link) -> None:
        """Both ends are gone."""

    def act(self, trigger: Trigger, *, spare: Side | None = None) -> None:
        """Cut or go deaf; `spare` is closed in order, so that what was forwarded to it arrives."""


class Side(asyncio.Protocol):
    """One end of a link; what it receives goes to the other end, in `direction`."""

    def __init__(self, link: Link, direction: Direction) -> None:
        self.link = link
        self.direction = direction
        self.transport: asyncio.Transport | None = None
        self.lost = False
        self.held = b""
        self.seen = b""
        self.silent_so_far = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Read nothing until both ends are there."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.pause_reading()
        if self is self.link.client:
            self.link.begin()

    def data_received(self, data: bytes) -> None:
        """Hand the bytes to the link."""
        if self.silent_so_far:
            self.silent_so_far = False
            data = without_tls_offer(data)
            if self.direction == "to_server" and asks_for_encryption(data):
                self.silent_so_far = True  # the same question may come twice, for GSS and for TLS
                self.write(b"N")
                return
        self.link.pass_on(self, data)
        self.seen = (self.seen + data)[-REMEMBERED_BYTES:]

    def connection_lost(self, _error: Exception | None) -> None:
        """The other end follows, once it has been sent what is on its way."""
        self.lost = True
        self.link.lose(self)

    def write(self, data: bytes) -> None:
        """Send to this end."""
        if self.transport is not None and data:
            self.transport.write(data)

    def end(self, *, reset: bool) -> None:
        """Close this end: with RST and what was not sent yet dropped, or in order."""
        if self.transport is None or self.lost:
            return
        if not reset:
            self.transport.close()
            return
        connection: socket.socket = self.transport.get_extra_info("socket")
        if connection.fileno() != -1:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.transport.abort()


class Link:
    """A client's connection and the one made for it to the server."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.client = Side(self, "to_server")
        self.server = Side(self, "to_client")
        self._connecting: asyncio.Task[None] | None = None
        self._unanswered: Trigger | None = None

    def begin(self) -> None:
        """Connect to the server for the client that has come."""
        self._connecting = asyncio.get_running_loop().create_task(self._connect())
        self.rules.opened(self)

    def pass_on(self, origin: Side, data: bytes) -> None:
        """Forward, keep back or lose bytes, as the triggers and the proxy's ears say."""
        receiver = self._other(origin)
        unanswered = self._unanswered
        if unanswered in self.rules.triggers and unanswered.direction != origin.direction:
            self._unanswered = None
            origin.held += data
            self.rules.act(unanswered)
        elif (trigger := self._trigger(origin, data)) is None:
            if self.rules.delay_s and origin is self.client:
                asyncio.get_running_loop().call_later(self.rules.delay_s, receiver.write, data)
            else:
                receiver.write(data)
            return
        elif trigger.moment == "withheld":
            origin.held += data
            self.rules.act(trigger)
        elif trigger.moment == "forwarded":
            receiver.write(data)
            self.rules.act(trigger, spare=receiver)
        else:
            receiver.write(data)
            self._unanswered = trigger
        self.listen()

    def listen(self) -> None:
        """Deliver what was kept back and read, except in directions that are deaf now."""
        if self.server.transport is None:
            return
        for side in (self.client, self.server):
            if side.transport is None or side.transport.is_closing():
                continue
            if self.rules.is_deaf(side.direction):
                side.transport.pause_reading()
            else:
                self._other(side).write(side.held)
                side.held = b""
                side.transport.resume_reading()

    def reset(self, *, spare: Side | None = None) -> None:
        """End the link at once."""
        if self._connecting is not None:
            self._connecting.cancel()
        for side in (self.client, self.server):
            side.end(reset=side is not spare)

    def lose(self, side: Side) -> None:
        """One end is gone."""
        if self._connecting is not None:
            self._connecting.cancel()
        other = self._other(side)
        other.end(reset=False)
        if other.lost or other.transport is None:
            self.rules.closed(self)

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.server, *self.rules.target)
        except OSError:  # the server itself is down: the client sees its connection reset
            self.client.end(reset=True)
        else:
            self.listen()

    def _trigger(self, origin: Side, data: bytes) -> Trigger | None:
        mine = (trigger for trigger in self.rules.triggers if trigger.direction == origin.direction)
        return next((t for t in mine if t.completed_by(data, after=origin.seen)), None)

    def _other(self, side: Side) -> Side:
        return self.server if side is self.client else self.client


def _opposite(direction: Direction) -> Direction:
    return "to_client" if direction == "to_server" else "to_server"

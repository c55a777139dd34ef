"""Servers that are a network away: each message to them, and each from them, arrives half a round trip later.

Run as a program it is the way itself: it listens on a port, which it prints, and carries what arrives there until its
standard input ends. A process of its own, so that it shares no interpreter with what is measured.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import sqlalchemy as sa

from carriers import place

_DEFAULT_PORT = {"postgresql": 5432, "mariadb": 3306}


@contextmanager
def at_distance(round_trip_ms: float) -> Iterator[None]:
    """In the block, the databases of `place` are this far away."""
    before = place.SOURCE_URL, place.TARGET_URL
    with ExitStack() as ways:
        if round_trip_ms:
            moved = [ways.enter_context(_way(sa.make_url(url), round_trip_ms)) for url in before]
            place.SOURCE_URL, place.TARGET_URL = moved
        try:
            yield
        finally:
            place.SOURCE_URL, place.TARGET_URL = before


@contextmanager
def _way(url: sa.URL, round_trip_ms: float) -> Iterator[str]:
    host, port = url.host or "127.0.0.1", url.port or _DEFAULT_PORT[url.get_backend_name()]
    command = [sys.executable, __file__, host, str(port), str(round_trip_ms / 2000)]
    process = subprocess.Popen(
        command, env=place.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield url.set(host="127.0.0.1", port=int(process.stdout.readline())).render_as_string(hide_password=False)
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def _carry(host: str, port: int, delay_s: float) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        threading.Thread(target=_accept, args=(listening, host, port, delay_s), daemon=True).start()
        sys.stdin.read()


def _accept(listening: socket.socket, host: str, port: int, delay_s: float) -> None:
    while True:
        near, _ = listening.accept()
        far = socket.create_connection((host, port))
        for one in (near, far):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, target in ((near, far), (far, near)):
            threading.Thread(target=_pass_on, args=(source, target, delay_s), daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket, delay_s: float) -> None:
    with suppress(OSError):  # either side may end the connection
        while received := source.recv(1 << 16):
            time.sleep(delay_s)
            target.sendall(received)
        target.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    _carry(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))

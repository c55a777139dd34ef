"""What an ORM costs: crosstie, SQLAlchemy's ORM and others do the same work on the same tables.

All peers are open at once and take turns: in each round every one does every row, so that what else the machine does
hits all alike. Printed are medians over the rounds, and in brackets the median of the rounds' ratios to SQLAlchemy's
ORM of the same round: below 1.00 is faster than it. A peer that is not installed, or cannot do a row, is said to be
left out.

    python benchmarks/orm.py [--databases postgresql,mariadb,sqlite] [--rounds 9] [--scale 1.0]

CROSSTIE_BENCH_POSTGRESQL_URL and CROSSTIE_BENCH_MARIADB_URL name databases in which tables called bench_* may be made
(default: `test` on the standard local ports); the SQLite file lies in a temporary folder.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import logging
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url

sys.path.insert(0, str(Path(__file__).parent))

from peers.peer import METADATA, Peer, Target
from peers.sqlalchemy_peer import url_of

PEERS = {
    "sqlalchemy": "peers.sqlalchemy_peer:SQLAlchemy",
    "crosstie": "peers.crosstie_peer:Crosstie",
    "sqlmodel": "peers.sqlmodel_peer:SQLModelPeer",
    "peewee": "peers.peewee_peer:Peewee",
    "django": "peers.django_peer:Django",
    "tortoise": "peers.tortoise_peer:TortoisePeer",
    "rhosocial": "peers.rhosocial_peer:Rhosocial",
}
ADDRESSES = {
    "postgresql": ("CROSSTIE_BENCH_POSTGRESQL_URL", "postgresql://root@127.0.0.1:5432/test"),
    "mariadb": ("CROSSTIE_BENCH_MARIADB_URL", "mariadb://root@127.0.0.1:3306/test"),
}
KINDS = (*ADDRESSES, "sqlite")
BOOKS_EACH = 10
MEMORY = "bytes per loaded object"


class Sizes:
    """How much of everything there is; `scale` 1 is what the page of benchmarks tells about."""

    def __init__(self, scale: float) -> None:
        self.items = max(10, int(20_000 * scale))
        self.authors = max(10, int(1_000 * scale))
        self.bulk = max(10, int(10_000 * scale))
        self.singles = max(10, int(200 * scale))


Row = Callable[[Peer], None]


def rows_of(sizes: Sizes) -> dict[str, Row]:
    """What is measured, by the words of the table. An AssertionError means that a peer did not do it."""
    choice = random.Random(1)
    gets = [choice.randint(1, sizes.items) for _ in range(sizes.singles)]
    updates = list(range(1, sizes.singles + 1))

    def hydrate(peer: Peer) -> None:
        assert len(peer.load()) == sizes.items

    def eager(peer: Peer) -> None:
        assert peer.eager() == sizes.authors * BOOKS_EACH

    def get(peer: Peer) -> None:
        assert peer.get(gets) == sum(gets)

    return {
        f"hydrate {sizes.items:,} rows of 6 columns": hydrate,
        f"eager load {sizes.authors:,} x {BOOKS_EACH}": eager,
        f"get by key, {sizes.singles} times": get,
        f"insert one, {sizes.singles} times": lambda peer: peer.insert(sizes.singles),
        f"get, change, save one, {sizes.singles} times": lambda peer: peer.update(updates),
        f"bulk insert {sizes.bulk:,}": lambda peer: peer.bulk(sizes.bulk),
    }


def prepare(engine: sa.Engine, sizes: Sizes) -> None:
    """Make the tables and fill them."""
    METADATA.drop_all(engine)
    METADATA.create_all(engine)
    tables = METADATA.tables
    items = [
        {"name": f"name {n}", "email": f"user{n}@example.org", "age": n % 90, "score": n / 7, "active": n % 2 == 0}
        for n in range(sizes.items)
    ]
    books = [{"author_id": n // BOOKS_EACH + 1, "title": f"title {n}"} for n in range(sizes.authors * BOOKS_EACH)]
    with engine.begin() as connection:
        connection.execute(sa.insert(tables["bench_item"]), items)
        connection.execute(sa.insert(tables["bench_author"]), [{"name": f"author {n}"} for n in range(sizes.authors)])
        connection.execute(sa.insert(tables["bench_book"]), books)
        note = {"title": "title", "body": "body", "n": 0}
        connection.execute(sa.insert(tables["bench_note"]), [note] * sizes.singles)
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ANALYZE")


def open_peers(target: Target, wanted: list[str]) -> dict[str, Peer]:
    """The peers that are installed and know this kind of database; says which are left out."""
    found: dict[str, Peer] = {}
    for key in wanted:
        module, _, name = PEERS[key].partition(":")
        try:
            peer: type[Peer] = getattr(importlib.import_module(module), name)
        except ImportError as error:
            print(f"  left out: {key} ({error})")
            continue
        if target.kind not in peer.kinds:
            print(f"  left out: {peer.name} (no adapter for {target.kind} here)")
            continue
        try:
            found[key] = peer(target)
        except Exception as error:  # noqa: BLE001 - said and left out; the others go on
            print(f"  left out: {peer.name} ({type(error).__name__}: {str(error)[:150]})")
    return found


def measure(peers: dict[str, Peer], rows: dict[str, Row], engine: sa.Engine, rounds: int, kept: int) -> Any:
    """Seconds by row and peer, one for each round; the first round warms up and does not count."""
    note = METADATA.tables["bench_note"]
    seconds: dict[str, dict[str, list[float]]] = {row: {key: [] for key in peers} for row in rows}
    for number in range(rounds + 1):
        order = list(peers)
        random.Random(number).shuffle(order)
        for row, work in rows.items():
            for key in [one for one in order if one in seconds[row]]:
                gc.collect()
                start = time.perf_counter()
                try:
                    work(peers[key])
                except Exception as error:  # noqa: BLE001 - said and left out; the others go on
                    print(f"  left out: {peers[key].name}, {row} ({type(error).__name__}: {str(error)[:150]})")
                    del seconds[row][key]
                    continue
                if number:
                    seconds[row][key].append(time.perf_counter() - start)
                with engine.begin() as connection:
                    connection.execute(sa.delete(note).where(note.c.id > kept))
    return seconds


def memory(peer: Peer) -> float:
    """Bytes that a loaded object costs as long as it lives; the second loading, when everything is warm."""
    peer.load()
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        loaded = peer.load()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        return (after - before) / len(loaded)
    finally:
        tracemalloc.stop()


def show(title: str, cells: dict[str, str]) -> None:
    """Print one row of the table."""
    print(f"| {title} | " + " | ".join(cells.values()) + " |")


def run(kind: str, arguments: argparse.Namespace) -> None:
    """Measure on one kind of database and print its table."""
    logging.disable(logging.INFO)  # as in production; one of the peers tells every statement on stderr otherwise
    sizes = Sizes(arguments.scale)
    with tempfile.TemporaryDirectory() as folder:
        target = target_of(kind, folder)
        engine = sa.create_engine(url_of(target))
        with engine.connect() as connection:
            if kind == "sqlite":
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            print(f"\n## {kind} {'.'.join(map(str, engine.dialect.server_version_info or ()))}\n")
        prepare(engine, sizes)
        peers = open_peers(target, arguments.peers)
        try:
            table(peers, sizes, engine, arguments.rounds)
        finally:
            for peer in peers.values():
                peer.close()
            METADATA.drop_all(engine)
            engine.dispose()


def table(peers: dict[str, Peer], sizes: Sizes, engine: sa.Engine, rounds: int) -> None:
    """Measure and print: milliseconds, and in brackets the ratio to the first peer, which is SQLAlchemy's ORM."""
    rows = rows_of(sizes)
    seconds = measure(peers, rows, engine, rounds, sizes.singles)
    versions = {key: version(peer.distribution) for key, peer in peers.items()}
    print()
    show("milliseconds (ratio)", {key: f"{peer.name} {versions[key]}" for key, peer in peers.items()})
    show("---", dict.fromkeys(peers, "---:"))
    base = next(iter(peers))
    for row in rows:
        cells = {}
        for key in peers:
            mine, reference = seconds[row].get(key), seconds[row].get(base)
            if mine is None:
                cells[key] = "-"
                continue
            text = f"{statistics.median(mine) * 1000:.1f}"
            if reference is not None:
                ratio = statistics.median(one / other for one, other in zip(mine, reference, strict=True))
                text += f" ({ratio:.2f})"
            cells[key] = text
        show(row, cells)
    able = seconds[next(iter(rows))]
    sizes_in_bytes = {key: memory(peer) for key, peer in peers.items() if key in able}
    cells = {key: f"{size:.0f} ({size / sizes_in_bytes[base]:.2f})" for key, size in sizes_in_bytes.items()}
    show(MEMORY, {key: cells.get(key, "-") for key in peers})


def target_of(kind: str, folder: str) -> Target:
    """Where to measure."""
    if kind == "sqlite":
        return Target("sqlite", str(Path(folder) / "bench.sqlite3"))
    variable, default = ADDRESSES[kind]
    url = make_url(os.environ.get(variable, default))
    port = url.port or {"postgresql": 5432, "mariadb": 3306}[kind]
    return Target(kind, url.database or "", url.host or "127.0.0.1", port, url.username or "", url.password or "")


def main() -> None:
    """One process for each kind of database, because several of the ORMs can be set up only once in a process."""
    parser = argparse.ArgumentParser(description="Compare ORMs on the same tables.")
    parser.add_argument("--databases", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument("--peers", type=lambda text: text.split(","), default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--scale", type=float, default=1.0, help="a share of the rows, to try it out")
    parser.add_argument("--here", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.peers = ["sqlalchemy", *(peer for peer in arguments.peers if peer != "sqlalchemy")]
    if arguments.here:
        run(arguments.here, arguments)
        return
    drivers = []
    for driver in ("psycopg", "PyMySQL", "asyncpg", "aiomysql", "aiosqlite"):
        try:
            drivers.append(f"{driver} {version(driver)}")
        except PackageNotFoundError:
            continue
    print(f"# ORMs compared\n\nPython {platform.python_version()}; {', '.join(drivers)}; {arguments.rounds} rounds")
    sys.stdout.flush()
    failed = [
        kind
        for kind in arguments.databases
        if subprocess.run([sys.executable, __file__, "--here", kind, *sys.argv[1:]], check=False).returncode
    ]
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()

"""Fixtures of every test: databases by kind, pair and trio, crosstie configured for them, proxies, child processes.

What they are made of is the package `bench`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

import pytest

from bench import guard, leftovers, private_servers, servers, turns
from bench.databases import KINDS, DatabaseKind, Pair, Solo, TestDatabase, Trio, fresh_database
from bench.processes import Child, Spawner
from bench.proxy import Proxy

PAIRS: Final[list[tuple[DatabaseKind, DatabaseKind]]] = [
    *((first, second) for first in KINDS for second in KINDS if first != second),
    ("sqlite", "sqlite"),
]
CRASH_PAIRS: Final[list[tuple[DatabaseKind, DatabaseKind]]] = [
    ("sqlite", "sqlite"),
    ("postgresql", "mariadb"),
    ("mariadb", "postgresql"),
]
CHILDREN: Final = pytest.StashKey[list[Child]]()
TRIOS: Final = [(*KINDS[turn:], *KINDS[:turn]) for turn in range(3)]


def pytest_sessionstart(session: pytest.Session) -> None:
    """Drop what dead earlier runs left on the servers; under xdist once, before the workers start."""
    if not hasattr(session.config, "workerinput"):
        leftovers.drop_leftovers()
        private_servers.delete_leftovers()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the pairs and trios that are not in turn, where they take turns, and run no storm beside another."""
    if turns.turns_are_taken():
        items[:], out = turns.leave_out(items, {"pair": PAIRS, "crash_pair": CRASH_PAIRS, "trio": TRIOS})
        config.hook.pytest_deselected(items=out)
    # They take longest: the last one is to end before the others do.
    storms = [item for item in items if item.get_closest_marker("storm")]
    items[:] = [item for item in items if item not in storms]
    for number, storm in enumerate(storms):
        items.insert(len(items) * number // (len(storms) + 2), storm)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the child processes of a failed test have written."""
    report = yield
    if report.failed:
        for child in item.stash.get(CHILDREN, []):
            report.sections.append((f"output of {child!r}", child.output))
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None]:
    """Say loudly, last of all, which servers were missing and how much was not tested for want of them."""
    yield
    skipped = terminalreporter.stats.get("skipped", [])
    lines = servers.untested(report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple))
    if lines:
        terminalreporter.write_sep("=", "servers missing", red=True, bold=True)
        for line in lines:
            terminalreporter.write_line(line, red=True, bold=True)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a transaction open in its thread, and close all pools after it."""
    guard.hush()
    yield
    guard.release()


@pytest.fixture
def furnished() -> None:
    """The databases of a test with this fixture, as with `configured…`, have crosstie's tables from the start."""


def _fresh(stack: ExitStack, request: pytest.FixtureRequest, kind: DatabaseKind, folder: Path) -> TestDatabase:
    database = stack.enter_context(fresh_database(kind, folder, furnished="furnished" in request.fixturenames))
    # Nobody may be at work in it any more: it may be the next test's.
    stack.callback(guard.release)
    stack.callback(_end_children, request.node)
    return database


def _end_children(test: pytest.Item) -> None:
    for child in test.stash.get(CHILDREN, []):
        child.close()


def _ids(kinds: tuple[DatabaseKind, ...]) -> str:
    return "-".join(kinds)


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TestDatabase]:
    """One fresh database, in turn of each kind."""
    with ExitStack() as stack:
        yield _fresh(stack, request, request.param, tmp_path)


@pytest.fixture(params=PAIRS, ids=_ids)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    """Two fresh databases: all six ordered pairs of different kinds, and two SQLite files."""
    with ExitStack() as stack:
        yield Pair(*(_fresh(stack, request, kind, tmp_path) for kind in request.param))


@pytest.fixture(params=CRASH_PAIRS, ids=_ids)
def crash_pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    """Two fresh databases, in the three combinations that crash tests are run over."""
    with ExitStack() as stack:
        yield Pair(*(_fresh(stack, request, kind, tmp_path) for kind in request.param))


@pytest.fixture(params=TRIOS, ids=_ids)
def trio(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Trio]:
    """Three fresh databases, one of each kind, each kind first in turn."""
    with ExitStack() as stack:
        yield Trio(*(_fresh(stack, request, kind, tmp_path) for kind in request.param))


@pytest.fixture
def configured(pair: Pair, furnished: None) -> Iterator[Pair]:
    """A pair for which crosstie is configured, with its tables in both."""
    with guard.configured_databases(pair):
        yield pair


@pytest.fixture
def configured_crash_pair(crash_pair: Pair, furnished: None) -> Iterator[Pair]:
    """A crash pair for which crosstie is configured, with its tables in both."""
    with guard.configured_databases(crash_pair):
        yield crash_pair


@pytest.fixture
def configured_trio(trio: Trio, furnished: None) -> Iterator[Trio]:
    """A trio for which crosstie is configured, with its tables in all three."""
    with guard.configured_databases(trio):
        yield trio


@pytest.fixture
def configured_database(database: TestDatabase, furnished: None) -> Iterator[TestDatabase]:
    """A database configured as `default`, with crosstie's tables."""
    with guard.configured_databases(Solo(database)):
        yield database


@pytest.fixture
def proxy_to() -> Iterator[Callable[[TestDatabase], Proxy]]:
    """Call it with a database for a proxy before that database's server; closed after the test."""
    with ExitStack() as stack:
        yield lambda database: stack.enter_context(Proxy(database.direct["host"], database.direct["port"]))


@pytest.fixture
def spawn(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Spawner]:
    """Starts child processes of the test; they are killed with it, and shown where it fails."""
    spawner = Spawner(tmp_path)
    request.node.stash[CHILDREN] = spawner.children
    try:
        yield spawner
    finally:
        spawner.close()


@pytest.fixture
def redis_url() -> str:
    """A Redis server's URL; the keys are shared with other tests, so use names of your own."""
    return servers.require("redis")


@pytest.fixture
def rabbitmq_url() -> str:
    """A RabbitMQ server's URL; the queues are shared with other tests, so use names of your own."""
    return servers.require("rabbitmq")


@pytest.fixture
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that stalls, too, no lane and no key is due again before a test says so (`bank.ready_now`)."""
    from crosstie.outbox import parking, relay

    monkeypatch.setattr(relay, "HOLD_S", 60.0)
    monkeypatch.setattr(relay, "backoff_s", lambda failures, **_: 60.0 * (failures + 1))
    monkeypatch.setattr(parking, "FIRST_RETRY_S", 600.0)


@pytest.fixture
def own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start without subscribers and doorbells, and forget at the end which event classes the test has defined."""
    from crosstie.orm.registry import registry
    from crosstie.outbox import change_event, doorbell, event, subscription
    from crosstie.outbox.brokers import forwarding

    monkeypatch.setattr(subscription, "_subscriptions", {})
    monkeypatch.setattr(forwarding, "_forwards", {})
    monkeypatch.setattr(doorbell, "_listeners", [])
    monkeypatch.setattr(event, "_classes", dict(event._classes))
    monkeypatch.setattr(change_event, "_publishers", WeakKeyDictionary())
    registry.generation += 1  # models are watched by the publishers of this test

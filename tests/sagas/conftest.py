"""Fixtures that several files of saga tests share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.private_servers import private_server
from sagas import till
from sagas.preparing import Servers


@pytest.fixture
def own_till(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is charged and refunded is written into a file of the test's own."""
    monkeypatch.setenv(till.VARIABLE, str(tmp_path / "till"))


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """One server of each kind that keeps prepared transactions, for all tests of the group `two-phase`."""
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("servers")
        settings = {"max_prepared_transactions": "20"}
        postgresql = stack.enter_context(private_server("postgresql", folder, settings=settings))
        yield {"postgresql": postgresql, "mariadb": stack.enter_context(private_server("mariadb", folder))}

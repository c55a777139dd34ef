"""Fixtures that several files of saga tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from sagas import till


@pytest.fixture
def own_till(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is charged and refunded is written into a file of the test's own."""
    monkeypatch.setenv(till.VARIABLE, str(tmp_path / "till"))

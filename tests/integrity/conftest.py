"""Fixtures of the audit's tests."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.databases import Pair, Trio
from crosstie.orm import ConnectionManager
from crosstie.orm.registry import registry
from crosstie.workers.cli import main
from integrity.blog import Blog, define_blog
from integrity.desk import define_desk
from integrity.tables import Linked, linked


@pytest.fixture
def world(configured: Pair) -> Linked:
    """Linked tables with BIGINT keys, over every pair."""
    return linked(configured)


@pytest.fixture
def no_models() -> Iterator[None]:
    """The models that other tests have imported declare references too; for this test there are none."""
    with registry.isolated():
        registry._models.clear()
        registry.generation += 1
        yield


@pytest.fixture
def blog(configured: Pair, no_models: None) -> Blog:
    """Models whose references cross the pair, and their tables: users in `default`, posts in `secondary`."""
    return define_blog()


@pytest.fixture
def desk(configured_trio: Trio, no_models: None) -> Any:
    """Models of users in two databases and of their tickets in a third one, and their tables."""
    return define_desk()


@pytest.fixture
def audit(
    blog: Blog,
    configured: Pair,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Callable[..., tuple[int, str, str]]:
    """Run `crosstie audit` in an empty folder; returns (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("CROSSTIE_IMPORTS", "[]")

    def run(*arguments: str, configuration: dict[str, Any] | None = None) -> tuple[int, str, str]:
        monkeypatch.setenv("CROSSTIE_CONNECTIONS", json.dumps(configuration or configured.configuration))
        ConnectionManager.dispose()
        with pytest.raises(SystemExit) as ended:
            main(["audit", *arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(ended.value.code or 0), out, err

    return run

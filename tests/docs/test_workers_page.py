"""The examples of docs/workers.md run, and its tables say what the code does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.documents import ROOT, run_document
from crosstie.orm.configuration import load_settings
from crosstie.workers import doorbell, sender, sweep, sweeper, tasks

PAGE = (ROOT / "docs" / "workers.md").read_text()


@pytest.fixture
def _own_bell() -> Iterator[None]:
    """An installed app's broker carries the process's doorbells; afterwards the former one does again."""
    before = doorbell._bell.send
    yield
    doorbell.use_sender(before)


@pytest.mark.usefixtures("_own_bell")
def test_the_users_app_of_the_page_serves_crosstie() -> None:
    """With the settings that the page recommends."""
    app = run_document("docs/workers.md", name="workers_page").app
    assert all(f"`{name}`" in PAGE for name in tasks.TASK_NAMES)
    assert set(tasks.TASK_NAMES) <= set(app.tasks)
    assert app.conf.broker_connection_max_retries is None


def test_the_configuration_of_the_page_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file in the working directory."""
    (block,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "crosstie.toml").write_text(block)
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    assert settings.imports == ["shop.models", "shop.subscribers"]
    assert settings.connections["default"].database == "shop"


def test_the_figures_of_the_page_are_those_of_the_code() -> None:
    """A limit that is changed is changed here too."""
    assert f"a task is ended after {tasks.TIME_LIMIT_S} s" in PAGE
    assert f"the sweeper after {sweeper.STALL_S:g} s or ten leases" in PAGE
    assert sweeper.LEASES_TO_STALL == 10
    assert f"one batch every {doorbell.DEBOUNCE_S * 1000:g} ms" in PAGE
    assert doorbell.PAUSE_AFTER_FAILURE_S == 5
    assert sweep.PRUNE_EVERY_S == 60
    assert sweep.SYNC_ROUTES_EVERY_S == 300
    assert load_settings({}).sweep_interval_s == 1
    assert sender.EXPIRES_S == 10

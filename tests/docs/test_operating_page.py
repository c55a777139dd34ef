"""What docs/operating.md says of commands, figures and metrics is so."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from bench.documents import ROOT
from crosstie.orm.configuration import load_settings
from crosstie.outbox import parking, relay, tables, verification
from crosstie.workers import audit_gauges, gauges, metrics
from crosstie.workers.cli import cli

PAGE = (ROOT / "docs" / "operating.md").read_text()
OUTBOX_PAGE = (ROOT / "docs" / "outbox.md").read_text()


def commands() -> Iterator[list[str]]:
    """The arguments of each command line of the page."""
    for line in re.findall(r"^    (crosstie .*)$", PAGE, re.MULTILINE):
        yield shlex.split(line, comments=True)[1:]


def command(*path: str) -> tuple[Any, list[str]]:
    """The command that these arguments name, and what is left of them."""
    found: Any = typer.main.get_command(cli)
    left = list(path)
    while left and hasattr(found, "commands"):
        found = found.commands[left.pop(0)]
    return found, left


@pytest.mark.parametrize("arguments", list(commands()), ids=" ".join)
def test_the_commands_of_the_page_can_be_given(arguments: list[str]) -> None:
    """With these options and arguments."""
    found, left = command(*arguments)
    found.make_context("crosstie", left)


def test_every_command_of_the_outbox_is_told() -> None:
    """And each has --json, as the page promises."""
    outbox, _ = command("outbox")
    assert set(outbox.commands) == {path[1] for path in commands() if path[0] == "outbox"}
    for one in outbox.commands.values():
        options = {name for parameter in one.params for name in parameter.opts}
        assert {"--json", "--import", "--database"} <= options


def test_the_states_of_the_page_are_those_of_the_table() -> None:
    """One row for each."""
    (check,) = [one for one in tables.parked.constraints if one.name == "crosstie_parked_state"]
    allowed = set(re.findall(r"'(\w+)'", str(check.sqltext.compile(compile_kwargs={"literal_binds": True}))))  # type: ignore[attr-defined]
    section = PAGE.split("## Parked events")[1].split("## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == allowed


def test_the_problems_of_the_page_are_those_that_verify_finds() -> None:
    """By their names."""
    source = Path(verification.__file__).read_text() + (ROOT / "workers/crosstie/workers/outbox_command.py").read_text()
    found = set(re.findall(r'Problem\(\s*\w+,\s*"([a-z-]+)"', source))
    section = PAGE.split("## Looking on")[1].split("## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`([a-z-]+)`", row)} == found


def test_the_metrics_of_the_page_are_those_that_are_served() -> None:
    """By their names; counters end with _total."""
    counted = [*metrics.RelayMeter().metrics, *metrics.CacheMeter().metrics]
    kinds = [(family.name, family.type) for metric in counted for family in metric.collect()]
    served = {f"{name}_total" if kind == "counter" else name for name, kind in kinds}
    served |= {f"crosstie_audit_{name}" for name in audit_gauges._GAUGES}
    served |= {f"crosstie_outbox_{name}" for name in gauges._GAUGES} | {
        "crosstie_database_up",
        "crosstie_sagas",
        "crosstie_saga_effects",
        "crosstie_runs",
        "crosstie_audit_saga_leftovers",
        "crosstie_audit_wrong_counters",
    }
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `crosstie_")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == served


def test_the_configuration_of_the_page_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the host is the default."""
    (block,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "crosstie.toml").write_text(block)
    monkeypatch.chdir(tmp_path)
    assert load_settings().metrics.port == 9464
    monkeypatch.chdir("/")
    assert load_settings().metrics.host == "127.0.0.1"


def test_the_figures_of_both_pages_are_those_of_the_code() -> None:
    """A limit that is changed is changed there too."""
    settings = load_settings({}).outbox
    text = " ".join(OUTBOX_PAGE.split())
    assert f"`outbox.attempts` failures ({settings.attempts}, in" in text
    assert f"`outbox.batch_size` ({settings.batch_size:,})" in text
    assert f"`outbox.batch_target_s` ({settings.batch_target_s:g})" in text
    assert f"`outbox.lanes_per_target` ({settings.lanes_per_target})" in text
    assert f"`outbox.lease_s` ({settings.lease_s:g})" in text
    assert (relay.PASSING_TRIES, relay.UNDEPLOYED_TRIES) == (8, 12)
    assert (parking.FIRST_RETRY_S, parking.LONGEST_RETRY_S, parking.UNDEPLOYED_RETRY_S) == (1, 600, 60)
    waits = sum(min(600, 2**n) for n in range(settings.attempts - 1))
    assert "20, in about an hour and a half" in text
    assert 75 <= waits * 0.75 / 60 <= 90, "the jitter takes a quarter away in the mean"
    assert verification.LONG_EXPIRED_MS == 600_000

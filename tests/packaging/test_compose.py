"""compose.yaml is checked as far as that goes without a container engine: against the CLI and the configuration."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from crosstie.orm.configuration import load_settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
LASTING = {name: service for name, service in SERVICES.items() if service["restart"] != "no"}


def interpolated(value: str, environment: dict[str, str]) -> str:
    """Replace `${NAME:-default}` as compose does."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: environment.get(m[1]) or m[2], value)


def test_the_stack_has_every_kind_of_database_a_broker_a_worker_and_a_beat() -> None:
    """What the file is for: the whole of crosstie, on one machine."""
    assert {"postgres", "mysql", "mariadb", "redis", "worker", "beat"} <= set(SERVICES)
    assert SERVICES["mysql"]["image"] == "mysql:8.4"


@pytest.mark.parametrize("name", LASTING)
def test_a_service_that_stays_up_says_whether_it_is_healthy(name: str) -> None:
    """A one-shot service tells it by its exit status instead."""
    assert LASTING[name]["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}


@pytest.mark.parametrize("name", SERVICES)
def test_no_port_is_published_beyond_this_machine(name: str) -> None:
    """Development passwords must not be reachable from the network."""
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), port


@pytest.mark.parametrize("name", OURS)
def test_a_service_of_ours_waits_for_what_it_needs_to_be_ready(name: str) -> None:
    """Started is not enough: each dependency is awaited as healthy, or as done where it ends by itself."""
    conditions = OURS[name]["depends_on"]
    assert conditions
    for other, dependency in conditions.items():
        expected = "service_healthy" if other in LASTING else "service_completed_successfully"
        assert dependency["condition"] == expected, other


@pytest.mark.parametrize("name", OURS)
def test_a_service_of_ours_runs_a_command_that_the_cli_has(name: str) -> None:
    """A renamed subcommand must not be found out by a container that restarts for ever."""
    from crosstie.workers.cli import cli

    group = typer.main.get_group(cli)
    program, subcommand, *rest = OURS[name]["command"]
    assert program == "crosstie"
    assert subcommand in group.commands
    group.commands[subcommand].make_context(subcommand, rest)  # refuses options that it does not know


@pytest.mark.parametrize("name", OURS)
def test_the_environment_of_our_services_is_a_valid_configuration(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every variable is one that crosstie reads, and each connection names a database server of the file."""
    monkeypatch.chdir(tmp_path)  # away from any crosstie.toml
    for variable in [key for key in os.environ if key.startswith("CROSSTIE_")]:
        monkeypatch.delenv(variable)
    for variable, value in OURS[name]["environment"].items():
        monkeypatch.setenv(variable, interpolated(value, {"CROSSTIE_DB_PASSWORD": "p@ss:word/"}))
    settings = load_settings()
    assert {connection.driver for connection in settings.connections.values()} == {"postgresql", "mariadb", "mysql"}
    for connection in settings.connections.values():
        assert connection.host in LASTING
        assert connection.url().password == "p@ss:word/"
    assert settings.broker_url is not None
    assert settings.broker_url.get_secret_value() == "redis://redis:6379/0"
    read = {key.upper() for key in type(settings).model_fields}
    for variable in OURS[name]["environment"]:
        assert variable == "PYTHONPATH" or variable.removeprefix("CROSSTIE_").split("__")[0] in read, variable


def test_data_live_in_declared_volumes() -> None:
    """A container that is made anew finds its database again."""
    for name in ("postgres", "mysql", "mariadb"):
        (volume,) = SERVICES[name]["volumes"]
        assert volume.split(":")[0] in COMPOSE["volumes"]


def test_the_image_is_built_from_files_that_exist() -> None:
    """COPY of a file that was moved fails the build; and every source root must get into the image."""
    for service in OURS.values():
        copied: set[str] = set()
        for line in service["build"]["dockerfile_inline"].splitlines():
            if line.startswith("COPY "):
                copied.update(line.split()[1:-1])
        assert {"orm", "outbox", "sagas", "workers", "pyproject.toml"} <= copied
        assert [name for name in sorted(copied) if not (ROOT / name).exists()] == []

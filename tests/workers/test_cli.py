"""The command line says what is wrong and what to do, and its exit status can be relied upon."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from bench.databases import TestDatabase
from bench.processes import Spawner
from crosstie.orm import ConnectionManager
from crosstie.outbox import tables


def closed_port() -> int:
    """A port where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_it_tells_its_version(cli: Callable) -> None:
    """As installed."""
    assert re.fullmatch(r"crosstie \d+\.\d+\.\d+\S*\n", cli("--version")[1])


@pytest.mark.parametrize("command", ["init", "worker", "beat", "status", "sweep"])
def test_without_a_configuration_every_command_says_how_to_give_one(command: str, cli: Callable) -> None:
    """In a file, in the environment, or in a module."""
    status, out, err = cli(command)
    assert (status, out) == (2, "")
    assert "error: no database is configured" in err
    for way in ("[connections.default]", "crosstie.toml", "CROSSTIE_CONNECTIONS__DEFAULT__DRIVER", "--import"):
        assert way in err


def test_a_wrong_configuration_is_told_field_by_field(cli: Callable) -> None:
    """And a password in it is not repeated."""
    status, _, err = cli(
        "status", configuration={"default": {"driver": "postgresql", "databse": "x", "password": "s3"}}
    )
    assert status == 2
    assert "connections.default.databse: unknown key. Did you mean 'database'?" in err
    assert "s3" not in err


def test_init_creates_the_tables_once_and_says_so(cli: Callable, database: TestDatabase) -> None:
    """Repeating it is safe."""
    status, out, err = cli("init", configuration={"default": database.config})
    assert status == 0, err
    assert "default (" in out
    assert "created crosstie_audit_chunk, crosstie_audit_key, crosstie_audit_run" in out
    assert database.scalar("SELECT count(*) FROM crosstie_saga") == 0
    status, out, _ = cli("init")
    assert (status, "all tables exist" in out) == (0, True)


def test_init_upgrades_the_tables_and_refuses_those_of_a_newer_crosstie(
    cli: Callable, database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says from which version to which."""
    from crosstie.outbox.migrations import change
    from crosstie.outbox.migrations.version import Version

    cli("init", configuration={"default": database.config})
    newest, versions = change.newest_version(), change.VERSIONS
    monkeypatch.setattr(change, "VERSIONS", (*versions, Version(newest + 1, lambda _: None, lambda _: None)))
    status, out, _ = cli("init")
    assert (status, f"upgraded from version {newest} to {newest + 1}" in out) == (0, True)
    monkeypatch.setattr(change, "VERSIONS", versions)
    status, _, err = cli("init")
    assert (status, "which a newer crosstie has made" in " ".join(err.split())) == (2, True)


SUBSCRIBING = """
from crosstie.outbox import Event, subscriber

class {name}Placed(Event):
    __event_type__ = "{name}.placed"
    number: int

@subscriber({name}Placed, database="{database}")
def note(event): ...
"""


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_init_writes_the_subscriptions_of_the_modules_that_it_is_told_to_import(
    cli: Callable, database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the working directory, without any path set."""
    from crosstie.outbox import event, subscription

    monkeypatch.setattr(subscription, "_subscriptions", {})
    monkeypatch.setattr(event, "_classes", dict(event._classes))
    (tmp_path / "shop_good.py").write_text(SUBSCRIBING.format(name="order", database="default"))
    status, out, _ = cli("init", "-i", "shop_good", configuration={"default": database.config})
    assert (status, "events 'order.placed' go to 'default'" in out) == (0, True)
    assert database.rows("SELECT route, event_type FROM crosstie_route") == [("default", "order.placed")]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_subscriber_of_an_unknown_connection_is_named(
    cli: Callable, database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the nearest valid name."""
    from crosstie.outbox import event, subscription

    monkeypatch.setattr(subscription, "_subscriptions", {})
    monkeypatch.setattr(event, "_classes", dict(event._classes))
    (tmp_path / "shop_bad.py").write_text(SUBSCRIBING.format(name="other", database="defualt"))
    status, _, err = cli("init", "-i", "shop_bad", configuration={"default": database.config})
    assert status == 2
    assert "no connection is called 'defualt'. Did you mean 'default'?" in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"imports: there is no module 'shop_broken'"),
        ("import shop_nowhere", r"'shop_broken' fails as it is imported at .*shop_broken\.py:1: ModuleNotFoundError"),
        ("\n1 / 0", r"'shop_broken' fails as it is imported at .*shop_broken\.py:2: ZeroDivisionError"),
        ("import crosstie.orm\ncrosstie.orm.ConnectionManager.get('x')", r"no connection is called 'x'"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_with_the_place(
    text: str | None, message: str, cli: Callable, tmp_path: Path
) -> None:
    """A mistyped name, a missing package and a defect of the module are three different things."""
    if text is not None:
        (tmp_path / "shop_broken.py").write_text(text)
    status, _, err = cli("worker", "-i", "shop_broken", configuration={"default": f"sqlite:///{tmp_path}/x.sqlite3"})
    assert status == 2
    assert re.search(message, err)


def test_a_module_may_bring_the_configuration(cli: Callable, tmp_path: Path) -> None:
    """A project that calls `configure` in Python needs no file."""
    text = f"from crosstie.orm import ConnectionManager\nConnectionManager.configure({{'mine': 'sqlite:///{tmp_path}/x.sqlite3'}})"
    (tmp_path / "shop_configured.py").write_text(text)
    status, out, _ = cli("init", "--import", "shop_configured")
    assert (status, out.startswith("mine (sqlite file")) == (0, True)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_database_that_is_down_is_told_and_the_others_are_served(cli: Callable, database: TestDatabase) -> None:
    """`init` goes on, fails at the end, and shows no password."""
    down = {"driver": "postgresql", "database": "x", "host": "127.0.0.1", "port": closed_port(), "username": "u"}
    both = {"aside": down | {"password": "s3cret"}, "default": database.config}
    status, out, err = cli("init", configuration=both)
    assert status == 2
    assert "default (sqlite file" in out
    assert "database 'aside' (postgresql at 127.0.0.1:" in err
    assert "is not available" in err
    status, out, err = cli("status")
    assert status == 1
    assert "aside: database 'aside'" in err
    status, out, err = cli("sweep", "--once")
    assert status == 1
    assert "default: sagas settled 0" in out
    assert "is not available" in err
    assert "s3cret" not in out + err


@pytest.mark.parametrize("database", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_missing_tables_are_told_with_the_remedy(cli: Callable, database: TestDatabase) -> None:
    """On every kind of database."""
    status, _, err = cli("status", configuration={"default": database.config})
    assert (status, "run `crosstie init`" in err) == (1, True)
    status, _, err = cli("sweep", "--once")
    assert (status, "crosstie init" in err) == (1, True)


def test_status_shows_what_is_unfinished(cli: Callable, configured_database: TestDatabase) -> None:
    """For people as a table, for programs as JSON with the same figures."""
    saga: dict[str, object] = {"step": 0, "participant": "default", "role": "branch", "state": "applied"}
    saga |= {"name": "order", "home": "elsewhere", "participants": "[]", "undo_log": "[]", "expires_at_ms": 1000}
    event = {"uid": "u", "key": "k", "type": "order.placed", "payload": "{}", "headers": "{}", "created_at_ms": 1000}
    with ConnectionManager.get("default").engine.begin() as connection:
        connection.execute(sa.insert(tables.saga).values(saga_id="a", **saga))
        connection.execute(sa.insert(tables.saga).values(saga_id="b", quarantine="a conflict", **saga))
        connection.execute(sa.insert(tables.route).values(route="default", event_type="order.placed", lanes=4))
        connection.execute(sa.insert(tables.outbox).values(route="default", lane=1, **event))
    effect = {"saga_name": "order", "home": "default", "compensation": "c", "arguments": "{}", "expires_at_ms": 1000}
    with ConnectionManager.get("default").engine.begin() as connection:
        for step, state in enumerate(["open", "settled", "due", "due"]):
            connection.execute(sa.insert(tables.effect).values(saga_id="a", step=step, state=state, **effect))
    status, out, _ = cli("status", "--json", configuration={"default": configured_database.config})
    (found,) = json.loads(out)["databases"]
    assert status == 0
    assert found["unresolved_sagas"] == {"applied": 1, "aborted": 0, "owed": 0, "quarantined": 1}
    assert found["unresolved_effects"] == {"open": 1, "due": 2, "quarantined": 0}
    assert [(one["route"], one["depth"]) for one in found["routes"]] == [("default", 1)]
    assert found["routes"][0]["oldest_s"] > 1e9
    status, out, _ = cli("status")
    assert status == 0
    assert re.search(r"default +\S.* ms +1 +0 +0 +1 +2 +0 +0 +0\n", out)
    assert re.search(r"default +default +1 +\d+\.\d s +0", out)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_an_audit_schedule_that_cannot_be_read_stops_the_worker_at_its_start(
    cli: Callable, database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at three in the morning."""
    monkeypatch.setenv("CROSSTIE_AUDIT__SCHEDULE", "every night")
    status, _, err = cli("worker", configuration={"default": database.config})
    assert (status, "audit.schedule: expected the five fields of a cron line" in err) == (2, True)


def test_the_commands_are_plain_text_in_a_pipe(spawn: Spawner, tmp_path: Path) -> None:
    """No colours and no frames in a log."""
    environment = {"TERM": "xterm-256color", "CROSSTIE_CONNECTIONS__DEFAULT": f"sqlite:///{tmp_path}/x.sqlite3"}
    child = spawn.python("-m", "crosstie.workers", "status", environment=environment)
    assert child.wait() == 1
    assert "database  address" in child.output
    assert "run `crosstie init`" in child.output
    assert not set("\x1b─│┃") & set(child.output)

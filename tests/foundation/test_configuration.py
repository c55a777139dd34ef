"""Configuration is validated at once, completely, and never repeats a secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crosstie.orm import ConnectionManager, CrosstieError
from crosstie.orm.configuration import load_settings
from crosstie.orm.errors import ConfigurationError, DatabaseUnavailable, UnknownConnection

SECRET = "s3cr3t-word"
GOOD = {"driver": "postgresql", "host": "db", "database": "shop", "username": "app", "password": SECRET}


@pytest.mark.parametrize(
    ("connections", "complaint"),
    [
        ({"main": {"driver": "mysq", "database": "x"}}, r"connections\.main\.driver: .*'mysql'.*\(found 'mysq'\)"),
        ({"main": {"driver": "mysql"}}, r"connections\.main\.database: this key is required"),
        (
            {"main": {"driver": "mysql", "database": "x", "hots": "y"}},
            r"connections\.main\.hots: unknown key\. Did you mean 'host'",
        ),
        (
            {"main": {"driver": "mysql", "database": "x", "port": 0}},
            r"connections\.main\.port: .*greater than 0.*found 0",
        ),
        ({"main": {"driver": "mysql", "database": "x", "pool_size": "many"}}, r"main\.pool_size: .*found 'many'"),
        ({"main": {"driver": "sqlite", "database": ":memory:"}}, r"connections\.main: .*in-memory.*name a file"),
        ({"main": "nonsense"}, r"connections\.main: .*expected a URL such as postgresql://"),
        ({"main": "oracle://db/shop"}, r"connections\.main\.driver: .*found 'oracle'"),
        ({"main": 7}, r"connections\.main: "),
    ],
)
def test_each_wrong_field_is_named(connections: dict[str, Any], complaint: str) -> None:
    """The message says which key, what was expected, what was found and what comes closest."""
    with pytest.raises(ConfigurationError, match=complaint):
        ConnectionManager.configure(connections)


def test_all_complaints_come_at_once() -> None:
    """Nobody should have to mend a configuration error by error."""
    with pytest.raises(ConfigurationError) as refused:
        ConnectionManager.configure({"a": {"driver": "x"}, "b": {"driver": "sqlite", "database": "b", "hots": 1}})

    assert len(str(refused.value).splitlines()) == 3


@pytest.mark.parametrize(
    "connections",
    [
        {"main": GOOD | {"driver": SECRET + "!"} | {"driver": "nonsense"}},
        {"main": GOOD | {"password": {"nested": SECRET}}},
        {"main": f"oracle://app:{SECRET}@db/shop"},
        {"main": f"://{SECRET}@"},
        {"main": GOOD | {"options": [SECRET]}},
    ],
)
def test_a_complaint_never_repeats_a_secret(connections: dict[str, Any]) -> None:
    """Messages end in logs."""
    with pytest.raises(ConfigurationError) as refused:
        ConnectionManager.configure(connections)

    assert SECRET not in str(refused.value)


def test_a_password_appears_in_no_representation() -> None:
    """Neither settings, nor databases, nor engines, nor errors show it."""
    ConnectionManager.configure({"main": GOOD | {"host": "127.0.0.1", "port": 9}})
    database = ConnectionManager.get("main")
    with pytest.raises(DatabaseUnavailable, match=r"database 'main' \(postgresql at 127\.0\.0\.1:9/shop\)") as down:
        database.ping()

    shown = [repr(ConnectionManager.settings()), repr(database), repr(database.engine), str(down.value)]
    assert not any(SECRET in text for text in shown)
    assert SECRET in database.settings.url().render_as_string(hide_password=False)


def test_a_configuration_that_is_refused_leaves_the_former_one_in_force() -> None:
    """Half of a configuration would be worse than the old one."""
    ConnectionManager.configure({"main": GOOD})

    with pytest.raises(ConfigurationError):
        ConnectionManager.configure({"other": {"driver": "x"}})

    assert ConnectionManager.names() == ["main"]


def test_an_unknown_connection_is_named_with_the_nearest_one() -> None:
    """A slip in a model's `__connection__` is found at its first use."""
    ConnectionManager.configure({"secondary": GOOD})

    with pytest.raises(UnknownConnection, match=r"no connection is called 'seconary'\. Did you mean 'secondary'"):
        ConnectionManager.get("seconary")


def test_using_a_connection_before_configuring_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing in the environment, no file: the message names the call."""
    monkeypatch.chdir(tmp_path)

    with pytest.raises(UnknownConnection, match=r"call ConnectionManager\.configure"):
        ConnectionManager.get("default")


def test_a_url_stands_for_a_whole_connection() -> None:
    """Deployments hand out URLs."""
    ConnectionManager.configure({"main": "postgresql+psycopg://app:pass%40word@db:5433/shop?sslmode=require"})
    settings = ConnectionManager.get("main").settings

    assert (settings.driver, settings.host, settings.port, settings.database) == ("postgresql", "db", 5433, "shop")
    assert settings.password is not None
    assert settings.password.get_secret_value() == "pass@word"
    assert settings.options == {"sslmode": "require"}


def test_environment_goes_before_the_file_and_arguments_before_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One model for all sources, merged key by key."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crosstie.toml").write_text(
        'imports = ["shop"]\n[saga]\nexpiry_s = 7\nretention_s = 70\n'
        '[connections.main]\ndriver = "sqlite"\ndatabase = "file.db"\n'
    )
    monkeypatch.setenv("CROSSTIE_SAGA__EXPIRY_S", "8")
    monkeypatch.setenv("CROSSTIE_CONNECTIONS__MAIN__DATABASE", "environment.db")

    settings = load_settings()
    assert settings.imports == ["shop"]
    assert (settings.saga.expiry_s, settings.saga.retention_s) == (8, 70)
    assert settings.connections["main"].database == "environment.db"

    given = load_settings({"other": {"driver": "sqlite", "database": "argument.db"}})
    assert list(given.connections) == ["other"]
    assert given.saga.expiry_s == 8


@pytest.mark.parametrize("key", ["sagas", "[saga]\nexpiry"])
def test_an_unknown_key_in_a_file_is_refused(key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A setting that is silently ignored is worse than none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crosstie.toml").write_text(f"{key} = 1\n")

    with pytest.raises(ConfigurationError, match=r"unknown key\. Did you mean '(saga|expiry_s)'"):
        load_settings()


def test_configuring_does_not_connect() -> None:
    """A database that is down must not keep a process from starting."""
    ConnectionManager.configure({"main": GOOD | {"host": "host.invalid"}})

    assert ConnectionManager.names() == ["main"]
    assert issubclass(ConfigurationError, CrosstieError)

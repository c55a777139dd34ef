"""Brokers are configured by name; mistakes are told before anything is published, and secrets never."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from bench.databases import TestDatabase
from crosstie.orm.configuration import BrokerSettings, Settings, load_settings
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import ConfigurationError
from crosstie.outbox import forward, pending, sync_routes
from crosstie.outbox.brokers import BrokerUnavailable, MessageRefused, kinds, pool
from crosstie.outbox.errors import EventDefinitionError
from outbox import bank
from outbox.bank import Moved

Configure = Callable[..., dict[str, str]]


def settings_with(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    """The settings of a process with these variables for the broker `shop`."""
    for name, value in variables.items():
        monkeypatch.setenv(f"CROSSTIE_BROKERS__SHOP__{name.upper()}", value)
    return load_settings({})


def test_a_brokers_url_is_no_ones_business(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the password."""
    settings = settings_with(monkeypatch, url="amqp://user:hidden@host:5672//")
    assert settings.brokers["shop"].scheme == "amqp"
    assert "hidden" not in repr(settings) + str(settings.model_dump()) + settings.model_dump_json()
    with pytest.raises(ConfigurationError) as caught:
        settings_with(monkeypatch, url="hidden")
    assert "brokers.shop.url" in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_a_url_may_stand_for_the_whole() -> None:
    """As for connections."""
    assert Settings(brokers={"shop": "redis://h/0"}).brokers["shop"] == BrokerSettings(url="redis://h/0")  # type: ignore[dict-item, arg-type]


def test_an_unknown_setting_is_told_with_the_nearest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that does nothing helps nobody."""
    with pytest.raises(ConfigurationError, match=r"brokers.shop.exchang: unknown key. Did you mean 'exchange'"):
        settings_with(monkeypatch, url="amqp://h//", exchang="x")


def test_a_broker_that_is_not_configured_is_told_when_subscriptions_are_written(configure: Configure) -> None:
    """With its name and the one that was meant."""
    configure(url="redis://h/0")
    forward(Moved, broker="shopp", to="x")
    with pytest.raises(ConfigurationError, match=r"Moved is forwarded to broker 'shopp'.*Did you mean 'shop'"):
        sync_routes()


def test_a_kind_of_broker_that_nobody_knows_is_told_too(configure: Configure) -> None:
    """By the scheme of its URL, which is no secret."""
    configure(url="kafka://user:hidden@h/0")
    forward(Moved, broker="shop", to="x")
    with pytest.raises(ConfigurationError, match=r"begins with kafka://.*`broker_kind`") as caught:
        sync_routes()
    assert "hidden" not in str(caught.value)


def test_a_kind_may_come_with_a_package(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an entry point, loaded when a URL asks for it."""
    found = EntryPoint("kafka", "collections:Counter", kinds.ENTRY_POINTS)

    def entry_points(*, group: str, name: str) -> list[EntryPoint]:
        return [found] if (group, name) == ("crosstie.brokers", "kafka") else []

    monkeypatch.setattr(kinds, "entry_points", entry_points)
    monkeypatch.setattr(kinds, "_kinds", {})
    configure(url="kafka://h/0")
    forward(Moved, broker="shop", to="x")
    assert not sync_routes().failed


@pytest.mark.parametrize("names", [{"broker": "a:b", "to": "x"}, {"broker": "a", "to": ""}, {"broker": "a", "to": "ü"}])
def test_names_that_no_route_can_hold_are_refused(names: dict[str, Any]) -> None:
    """They are part of the route's name in every database."""
    with pytest.raises(EventDefinitionError, match="forward"):
        forward(Moved, **names)


def test_a_relay_without_the_broker_says_so(
    configure: Configure, configured_database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The events wait for a worker that has it."""
    configure(url="redis://127.0.0.1:1/0")
    bank.create_accounts("default")
    forward(Moved, broker="shop", to="x")
    sync_routes()
    bank.transfer("a")
    monkeypatch.delenv("CROSSTIE_BROKERS__SHOP__URL")
    ConnectionManager.configure({"default": configured_database.config})
    assert bank.drain_all() == 0
    assert "broker 'shop' is not configured in this process" in str(pending("default")[0].last_error)


def test_another_configuration_gives_up_the_connections(configure: Configure, redis_url: str) -> None:
    """They were made by the former one."""
    configure(url=redis_url)
    with pool.borrowed("shop") as first:
        pass
    with pool.borrowed("shop") as again:
        assert again is first
    configure(url=redis_url)
    with pool.borrowed("shop") as other:
        assert other is not first
    with pytest.raises(ZeroDivisionError), pool.borrowed("shop"):
        raise ZeroDivisionError
    with pool.borrowed("shop") as fresh:
        assert fresh is not other


@pytest.mark.parametrize("error", [BrokerUnavailable("away", 3), MessageRefused("ugly", 2)])
def test_a_brokers_error_survives_the_way_between_processes(error: Exception) -> None:
    """Celery's pool pickles what a task raises."""
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))

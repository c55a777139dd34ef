"""Each transport is told what it understands, and no log shows a password."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kombu import Connection

from crosstie.orm.configuration import Settings, load_settings
from crosstie.workers import embedded
from crosstie.workers.broker import broker_url, is_embedded, shown_url, transport_options


def settings_with(monkeypatch: pytest.MonkeyPatch, url: str | None) -> Settings:
    """The settings of a process with this broker."""
    if url is None:
        monkeypatch.delenv("CROSSTIE_BROKER_URL", raising=False)
    else:
        monkeypatch.setenv("CROSSTIE_BROKER_URL", url)
    return load_settings({})


def test_without_a_broker_the_file_in_the_working_directory_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing to install, nothing to configure."""
    monkeypatch.chdir(tmp_path)
    url = broker_url(settings_with(monkeypatch, None))
    assert url == f"crosstie+sqlite:///{tmp_path}/.crosstie/broker.sqlite3"
    assert is_embedded(url)
    assert not is_embedded(broker_url(settings_with(monkeypatch, "redis://127.0.0.1/0")))


def test_a_visibility_timeout_is_for_redis_alone() -> None:
    """Others do not know it, and kombu's SQLAlchemy transport refuses to start with it."""
    assert transport_options("redis://h/0")["visibility_timeout"] == 300
    assert transport_options("rediss://h/0")["socket_keepalive"] is True
    for url in ("amqp://h//", "sqla+sqlite:///x", "memory://", embedded.embedded_url(Path("/x")), None):
        assert transport_options(url) == {}


@pytest.mark.parametrize("sending", [False, True])
@pytest.mark.parametrize("transport", ["redis", "rabbitmq", "embedded", "sqla", "memory"])
def test_every_transport_accepts_its_options(
    transport: str, sending: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A real connection is made with them and a queue is looked at."""
    embedded.register()
    fixtures = {"redis": "redis_url", "rabbitmq": "rabbitmq_url"}
    urls = {
        "embedded": embedded.embedded_url(tmp_path),
        "sqla": f"sqla+sqlite:///{tmp_path}/plain.sqlite3",
        "memory": "memory://",
    }
    url = request.getfixturevalue(fixtures[transport]) if transport in fixtures else urls[transport]
    with Connection(url, transport_options=transport_options(url, sending=sending)) as connection:
        connection.ensure_connection(max_retries=1)
        channel: Any = connection.channel()
        if transport == "sqla":  # it leaves its connections open
            channel.session.close()
            channel._open()[0].dispose()
        channel.close()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@cache:6379/1", "redis://:**@cache:6379/1"),
        ("amqp://user:secret@mq//", "amqp://user:**@mq//"),
        ("amqp://a:secret@mq1//;amqp://a:secret@mq2//", "amqp://a:**@mq1//;amqp://a:**@mq2//"),
        ("crosstie+sqlite:////var/x/.crosstie/broker.sqlite3", "embedded file /var/x/.crosstie/broker.sqlite3"),
        ("sqla+postgresql://u:secret@h/d", "sqla+postgresql://u:**@h/d"),
        (None, ""),
    ],
)
def test_a_shown_url_has_no_password(url: str | None, shown: str) -> None:
    """And still says where the broker is."""
    assert shown_url(url) == shown

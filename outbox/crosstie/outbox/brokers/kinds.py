"""The kinds of brokers, by the scheme of their URLs; others come as entry points of the group `crosstie.brokers`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Final, TypeVar

from crosstie.orm.configuration import BrokerSettings
from crosstie.orm.errors import ConfigurationError
from crosstie.outbox.brokers.contract import Broker

__all__ = ["ENTRY_POINTS", "broker_kind", "kind_of"]

ENTRY_POINTS: Final = "crosstie.brokers"

Kind = Callable[[BrokerSettings], Broker]
"""Makes a broker from its settings, without connecting."""
K = TypeVar("K", bound=Kind)

_kinds: dict[str, Kind] = {}


def broker_kind(*schemes: str) -> Callable[[K], K]:
    """Register a class, or a function of the settings, for URLs of these schemes; the latest one wins."""

    def register(kind: K) -> K:
        _kinds.update(dict.fromkeys(schemes, kind))
        return kind

    return register


def kind_of(settings: BrokerSettings) -> Kind:
    """The kind that the URL asks for. Raises ConfigurationError."""
    scheme = settings.scheme
    if scheme not in _kinds:
        _load_ours(scheme)
    if scheme not in _kinds:
        for found in entry_points(group=ENTRY_POINTS, name=scheme):
            _kinds[scheme] = found.load()
    if scheme not in _kinds:
        raise ConfigurationError(
            f"brokers: a URL begins with {scheme}://, and no kind of broker is registered for it. Expected redis, "
            f"rediss, unix, amqp, amqps, or one registered with `broker_kind` or an entry point of {ENTRY_POINTS!r}."
        )
    return _kinds[scheme]


def _load_ours(scheme: str) -> None:
    """Each brings a driver that the other does without."""
    if scheme in {"redis", "rediss", "unix"}:
        from crosstie.outbox.brokers.redis_streams import RedisStreams

        broker_kind("redis", "rediss", "unix")(RedisStreams)
    elif scheme in {"amqp", "amqps", "pyamqp"}:
        from crosstie.outbox.brokers.rabbitmq import RabbitMQ

        broker_kind("amqp", "amqps", "pyamqp")(RabbitMQ)

"""Events on their way to message brokers: at least once, in order for each key, as CloudEvents."""

from crosstie.outbox.brokers.contract import Broker, BrokerUnavailable, Message, MessageRefused
from crosstie.outbox.brokers.forwarding import forward
from crosstie.outbox.brokers.kinds import broker_kind

__all__ = ["Broker", "BrokerUnavailable", "Message", "MessageRefused", "broker_kind", "forward"]

"""The other end of a route to a broker: what has arrived there, read without crosstie."""

from __future__ import annotations

import json
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import kombu

__all__ = ["FarEnd", "Queue", "Stream", "numbers_by_account", "through"]


class FarEnd(Protocol):
    """A stream or a queue."""

    url: str
    name: str

    def events(self) -> list[dict[str, Any]]:
        """Every CloudEvent that has arrived since the test began, in order."""


class Stream:
    """A Redis stream."""

    def __init__(self, url: str, name: str, client: Any) -> None:
        self.url, self.name, self.client = url, name, client

    def entries(self) -> list[dict[str, str]]:
        """The stream's entries, fields as texts."""
        found = self.client.xrange(self.name)
        return [{key.decode(): value.decode() for key, value in entry.items()} for _, entry in found]

    def events(self) -> list[dict[str, Any]]:
        """See FarEnd."""
        return [json.loads(entry["event"]) for entry in self.entries()]


class Queue:
    """A RabbitMQ queue; what was read is kept here."""

    def __init__(self, url: str, name: str, connection: kombu.Connection) -> None:
        self.url, self.name = url, name
        self.channel: Any = connection.channel()
        self.messages: list[Any] = []

    def create(self, **arguments: Any) -> None:
        """Declare the queue."""
        self.channel.queue_declare(self.name, durable=True, auto_delete=False, arguments=arguments or None)

    def remove(self) -> None:
        """Delete the queue."""
        self.channel.queue_delete(self.name)

    def events(self) -> list[dict[str, Any]]:
        """See FarEnd."""
        while (message := self.channel.basic_get(self.name, no_ack=True)) is not None:
            self.messages.append(message)
        return [json.loads(message.body) for message in self.messages]


def through(url: str, port: int) -> str:
    """The URL of a broker, reached by a proxy at this port."""
    parts = urlsplit(url)
    credentials = parts.netloc.rpartition("@")[0]
    place = f"127.0.0.1:{port}"
    return urlunsplit(parts._replace(netloc=f"{credentials}@{place}" if credentials else place))


def numbers_by_account(events: list[dict[str, Any]]) -> dict[str, list[int]]:
    """The numbers of the movements in the order of arrival, each at its first arrival only."""
    found: dict[str, list[int]] = {}
    for event in events:
        numbers = found.setdefault(event["data"]["account"], [])
        if event["data"]["number"] not in numbers:
            numbers.append(event["data"]["number"])
    return found

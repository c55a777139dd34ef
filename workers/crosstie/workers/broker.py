"""Which broker carries the doorbells, and what its transport must be told.

Options mean something to one transport only, and some refuse what they do not know: a visibility timeout given to
kombu's SQLAlchemy transport ends in `create_engine`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from kombu.utils.url import maybe_sanitize_url

from crosstie.orm.configuration import Settings
from crosstie.workers import embedded

__all__ = ["broker_url", "is_embedded", "shown_url", "transport_kind", "transport_options"]

_KINDS: Final = {
    "redis": "redis",
    "rediss": "redis",
    "sentinel": "redis",
    "amqp": "amqp",
    "amqps": "amqp",
    "pyamqp": "amqp",
    embedded.SCHEME: "embedded",
}
_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    # A doorbell is acknowledged when received, so the visibility timeout only bounds what a dead worker had prefetched.
    "redis": {"visibility_timeout": 300, "socket_keepalive": True, "socket_timeout": 10, "health_check_interval": 25},
}
SEND_TIMEOUT_S: Final = 1.0
_SEND_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "redis": {"socket_timeout": SEND_TIMEOUT_S, "socket_connect_timeout": SEND_TIMEOUT_S},
    "amqp": {"read_timeout": SEND_TIMEOUT_S, "write_timeout": SEND_TIMEOUT_S},
    "embedded": {"timeout": SEND_TIMEOUT_S},
}


def broker_url(settings: Settings, folder: Path | None = None) -> str:
    """The configured broker, password included; else the embedded one in `folder`, the working directory by default."""
    if settings.broker_url is not None:
        return settings.broker_url.get_secret_value()
    return embedded.embedded_url(folder or Path.cwd())


def transport_kind(url: str | None) -> str:
    """`redis`, `amqp`, `embedded`, or the empty string for a transport that gets no options from here."""
    return _KINDS.get((url or "").partition("://")[0], "")


def is_embedded(url: str | None) -> bool:
    """Whether no server stands behind the URL."""
    return transport_kind(url) == "embedded"


def transport_options(url: str | None, *, sending: bool = False) -> dict[str, Any]:
    """`broker_transport_options` for this URL; `sending` adds the short timeouts of a connection that only rings."""
    kind = transport_kind(url)
    return _OPTIONS.get(kind, {}) | (_SEND_OPTIONS.get(kind, {}) if sending else {})


def shown_url(url: str | None) -> str:
    """The URL without its password, for logs."""
    if is_embedded(url):
        return f"embedded file {str(url).partition(':///')[2]}"
    return ";".join(str(maybe_sanitize_url(one)) for one in (url or "").split(";"))

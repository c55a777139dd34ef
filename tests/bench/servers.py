"""Which servers the tests may use: found once, skipped loudly where absent, demanded in CI.

A server is looked for at `CROSSTIE_TEST_<KIND>_URL`, else at its standard address on this machine.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NoReturn

import pytest
from sqlalchemy.engine import make_url

__all__ = [
    "MISSING",
    "STANDARD_URLS",
    "Probe",
    "ServerKind",
    "complaint",
    "in_ci",
    "probe",
    "refuse",
    "require",
    "server_url",
    "untested",
]

ServerKind = Literal["postgresql", "mariadb", "redis", "rabbitmq"]

STANDARD_URLS: Final[Mapping[ServerKind, str]] = {
    "postgresql": "postgresql://root@127.0.0.1:5432/postgres",
    "mariadb": "mariadb://root@127.0.0.1:3306/",
    "redis": "redis://127.0.0.1:6379/0",
    "rabbitmq": "amqp://guest:guest@127.0.0.1:5672//",
}
PROBE_TIMEOUT_S = 20
"""A missing server refuses at once; one that is there may be slow while the machine is busy."""
MISSING: Final = "missing server"
"""How the reason of such a skip begins, so that the summary at the end finds it."""


@dataclass(frozen=True)
class Probe:
    """What looking for one server found; `failure` is None where it answered."""

    kind: ServerKind
    address: str
    failure: str | None


def server_url(kind: ServerKind, environment: Mapping[str, str] = os.environ) -> str:
    """The URL to look at, password included."""
    return environment.get(f"CROSSTIE_TEST_{kind.upper()}_URL") or STANDARD_URLS[kind]


def in_ci(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a missing server is a failure."""
    return environment.get("CI", "").lower() in {"1", "true", "yes"}


@functools.cache
def probe(kind: ServerKind) -> Probe:
    """Ask the server for a sign of life, once in this process, for twenty seconds at most."""
    url = server_url(kind)
    return Probe(kind, make_url(url).render_as_string(hide_password=True), _failure(PROBES[kind], url))


def complaint(found: Probe, *, ci: bool) -> tuple[Literal["use", "skip", "fail"], str]:
    """Decide what a test that needs this server does, and why."""
    if found.failure is None:
        return "use", ""
    advice = f"start it or set CROSSTIE_TEST_{found.kind.upper()}_URL"
    return ("fail" if ci else "skip"), f"{MISSING} {found.kind} at {found.address} ({found.failure}): {advice}"


def require(kind: ServerKind) -> str:
    """Return the server's URL; skip the calling test where it is missing, or fail it in CI."""
    verdict, reason = complaint(probe(kind), ci=in_ci())
    if verdict != "use":
        refuse(reason)
    return server_url(kind)


def refuse(reason: str) -> NoReturn:
    """Skip the calling test for want of a server, or fail it in CI."""
    if in_ci():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def untested(skip_reasons: Iterable[str]) -> list[str]:
    """One loud line for each missing server: how many tests did not run for want of it."""
    missing = Counter(reason.partition(MISSING)[2].strip() for reason in skip_reasons if MISSING in reason)
    return [f"NOT TESTED ({count} skipped): {what}" for what, count in sorted(missing.items())]


def _failure(look: Callable[[str], None], url: str) -> str | None:
    try:
        look(url)
    except Exception as error:  # noqa: BLE001 - whatever went wrong, the reason is kept and shown
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return None


def _postgresql(url: str) -> None:
    import psycopg

    psycopg.connect(
        make_url(url).set(drivername="postgresql").render_as_string(hide_password=False),
        connect_timeout=PROBE_TIMEOUT_S,
    ).close()


def _mariadb(url: str) -> None:
    import pymysql

    where = make_url(url)
    pymysql.connect(
        host=where.host or "127.0.0.1",
        port=where.port or 3306,
        user=where.username or "root",
        password=where.password or "",
        connect_timeout=PROBE_TIMEOUT_S,
        read_timeout=PROBE_TIMEOUT_S,
        ssl_disabled=True,
    ).close()


def _redis(url: str) -> None:
    import redis

    with redis.Redis.from_url(url, socket_connect_timeout=PROBE_TIMEOUT_S, socket_timeout=PROBE_TIMEOUT_S) as client:
        client.ping()


def _rabbitmq(url: str) -> None:
    import amqp  # kombu would try again and again
    from kombu.utils.url import parse_url

    where = parse_url(url)
    with amqp.Connection(
        host=f"{where['hostname']}:{where['port'] or 5672}",
        userid=where["userid"],
        password=where["password"],
        virtual_host=where["virtual_host"] or "/",
        connect_timeout=PROBE_TIMEOUT_S,
        read_timeout=PROBE_TIMEOUT_S,
        write_timeout=PROBE_TIMEOUT_S,
    ):
        pass


PROBES: Final[Mapping[ServerKind, Callable[[str], None]]] = {
    "postgresql": _postgresql,
    "mariadb": _mariadb,
    "redis": _redis,
    "rabbitmq": _rabbitmq,
}

"""One pydantic model for everything that can be configured.

Sources, strongest first: arguments to `ConnectionManager.configure`, `CROSSTIE_*` environment variables (`__` goes one
level down: `CROSSTIE_CONNECTIONS__DEFAULT__HOST`), `crosstie.toml`, `[tool.crosstie]` of `pyproject.toml`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    PyprojectTomlConfigSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from crosstie.orm.errors import ConfigurationError

__all__ = [
    "AuditSettings",
    "BrokerSettings",
    "CacheSettings",
    "ConnectionSettings",
    "MetricsSettings",
    "OutboxSettings",
    "RelationSettings",
    "SagaSettings",
    "Settings",
    "load_settings",
    "nearest",
]

Driver = Literal["sqlite", "postgresql", "mysql", "mariadb"]
DEFAULT_PORTS: dict[str, int] = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}
_DRIVER_MODULES = {
    "sqlite": "sqlite+pysqlite",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ConnectionSettings(_Section):
    """How one database is reached; in a mapping, a URL string may stand for the whole of it."""

    driver: Driver
    database: Annotated[str, Field(min_length=1)]
    host: str = "localhost"
    port: Annotated[int, Field(gt=0, lt=65536)] | None = None
    username: str | None = None
    password: SecretStr | None = None
    read_only: bool = False
    pool_size: Annotated[int, Field(ge=1)] = 5
    max_overflow: Annotated[int, Field(ge=0)] = 10
    pool_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 30.0
    pool_recycle_s: Annotated[int, Field(gt=0)] = 1800
    connect_timeout_s: Annotated[int, Field(ge=1)] = 5
    busy_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    lock_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    read_your_writes_s: Annotated[float, Field(ge=0)] = 2.0
    options: dict[str, str | int | float | bool | None] = Field(default_factory=dict, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _from_url(cls, value: object) -> object:
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        if not isinstance(value, str):
            return value
        try:
            url = make_url(value)
        except ArgumentError:
            raise ValueError("expected a URL such as postgresql://user:password@host:5432/name") from None
        parts: dict[str, Any] = {"driver": url.drivername.partition("+")[0], "database": url.database or ""}
        parts |= {
            k: v for k, v in [("host", url.host), ("port", url.port), ("username", url.username)] if v is not None
        }
        if url.password is not None:
            parts["password"] = url.password
        if url.query:
            parts["options"] = dict(url.query)
        return parts

    @model_validator(mode="after")
    def _sqlite_is_a_file(self) -> ConnectionSettings:
        if self.driver == "sqlite" and (self.database == ":memory:" or "mode=memory" in self.database):
            raise ValueError(
                "an in-memory SQLite database is private to one connection, and a pool has several: name a file"
            )
        return self

    def url(self) -> URL:
        """The SQLAlchemy URL, password included; never log it."""
        if self.driver == "sqlite":
            return URL.create(_DRIVER_MODULES["sqlite"], database=str(Path(self.database).expanduser()))
        return URL.create(
            _DRIVER_MODULES[self.driver],
            username=self.username,
            password=self.password.get_secret_value() if self.password else None,
            host=self.host,
            port=self.port or DEFAULT_PORTS[self.driver],
            database=self.database,
        )

    def address(self) -> str:
        """Where the database is, without any secret: for messages."""
        if self.driver == "sqlite":
            return f"sqlite file {self.database}"
        return f"{self.driver} at {self.host}:{self.port or DEFAULT_PORTS[self.driver]}/{self.database}"


class SagaSettings(_Section):
    """Times of the saga protocol; safety rests on none of them.

    A compensation is quarantined after `compensation_attempts` failures; one that has not ended within
    `compensation_lease_s` may be begun again by another worker. A worker runs `step_threads` steps of declared sagas at
    once for each home; a run that has ended is kept for `run_retention_s`.
    """

    expiry_s: Annotated[float, Field(gt=0)] = 30.0
    lock_timeout_s: Annotated[int, Field(ge=1)] = 2
    retention_s: Annotated[float, Field(ge=0)] = 900.0
    undo_row_limit: Annotated[int, Field(ge=1)] = 10_000
    compensation_attempts: Annotated[int, Field(ge=1)] = 20
    compensation_lease_s: Annotated[float, Field(gt=0)] = 60.0
    step_threads: Annotated[int, Field(ge=1, le=100)] = 4
    run_retention_s: Annotated[float, Field(ge=0)] = 7 * 86400.0


class OutboxSettings(_Section):
    """Lanes and leases of the relay, the size of its batches, and when it gives an event up.

    `notify_every_ms`: a process sends NOTIFY with a commit at most so often, and sweepers listen (None: neither).
    `dead_retention_s`: an event that is dead for so long is skipped (None: it waits for an operator for ever).
    """

    lanes: Annotated[int, Field(ge=1, le=4096)] = 64
    sqlite_lanes: Annotated[int, Field(ge=1, le=64)] = 4
    batch_size: Annotated[int, Field(ge=1, le=10_000)] = 1000
    batch_target_s: Annotated[float, Field(gt=0)] = 0.5
    lease_s: Annotated[float, Field(gt=0)] = 30.0
    lanes_per_target: Annotated[int, Field(ge=1)] = 16
    attempts: Annotated[int, Field(ge=1)] = 20
    dead_retention_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    notify_every_ms: Annotated[int, Field(ge=1, le=60_000)] | None = None


class RelationSettings(_Section):
    """Loading of relations; `lazy_loads` for one relation and the records of one query are warned of, None: never."""

    lazy_loads: Annotated[int, Field(ge=2)] | None = None


class CacheSettings(_Section):
    """The Redis that keeps looked-up parents; every process of a deployment has the same one, and the same `prefix`.

    A Redis that does not answer within `timeout_s` is not asked again for `pause_s`.
    """

    redis_url: SecretStr | None = None
    prefix: Annotated[str, Field(min_length=1, max_length=200)] = "crosstie"
    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.25
    pause_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0

    @field_validator("redis_url")
    @classmethod
    def _is_for_redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("expected a URL such as redis://:password@host:6379/0 (or rediss://, unix://)")
        return value


class BrokerSettings(_Section):
    """A message broker that events are forwarded to; in a mapping, a URL may stand for the whole of it.

    `source` is what its CloudEvents say they come from. `exchange` is for RabbitMQ; `stream_length`, for Redis, is
    about how many entries a stream keeps (None: all). No answer is waited for longer than `timeout_s`.
    """

    url: SecretStr
    source: Annotated[str, Field(min_length=1)] | None = None
    exchange: str = ""
    stream_length: Annotated[int, Field(ge=1)] | None = None
    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5.0

    @model_validator(mode="before")
    @classmethod
    def _from_url(cls, value: object) -> object:
        return {"url": value} if isinstance(value, str | SecretStr) else value

    @field_validator("url")
    @classmethod
    def _has_scheme(cls, value: SecretStr) -> SecretStr:
        if "://" not in value.get_secret_value():
            raise ValueError("expected a URL such as redis://host:6379/0 or amqp://user:password@host:5672//")
        return value

    @property
    def scheme(self) -> str:
        """What the URL begins with: the kind of the broker."""
        return self.url.get_secret_value().partition("://")[0]


class MetricsSettings(_Section):
    """Where a worker serves Prometheus metrics; nowhere without a `port`."""

    port: Annotated[int, Field(ge=0, lt=65536)] | None = None
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"


class AuditSettings(_Section):
    """Audits: when, how much at a time, and what they may cost the databases.

    `schedule` is a five-field cron line in `timezone`, or None; `schedules` have lines for single references by name.
    `references` are audited without models: "legacy.orders.user_id -> main.users.id". Values of the columns `unique`
    are to be in one database only: "shop_*.users.email", "{shop_eu, shop_us}.users.email"; `counters` are to be
    numbers of children: "main.users.posts_count = count(legacy.posts.user_id)". With `leftovers`, audits of
    everything look for what sagas have left over. A chunk of a run aims at
    `chunk_s` and is held under a lease of `lease_s`; at most `concurrency` chunks read one database at once, and none
    begins while it has more than `max_running` running statements or a replica of it lags more than `max_lag_s` (None:
    no limit). No statement of an audit or a repair runs longer than `statement_timeout_s` on a server (None: no
    limit). By `changes_schedule` only what has changed is looked at, and everything once that is `full_every_s` ago
    (None: never); by `parts_schedule` the next of about `parts` parts is read. Runs older than `retention_s` are
    forgotten, but for the last one of each reference.
    """

    schedule: str | None = None
    schedules: dict[str, str] = Field(default_factory=dict)
    changes_schedule: str | None = None
    full_every_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 7 * 86_400.0
    parts_schedule: str | None = None
    parts: Annotated[int, Field(ge=1, le=100_000)] = 30
    references: list[str] = Field(default_factory=list)
    unique: list[str] = Field(default_factory=list)
    counters: list[str] = Field(default_factory=list)
    leftovers: bool = True
    timezone: str = "UTC"
    chunk_size: Annotated[int, Field(ge=1, le=1_000_000)] = 50_000
    grace_s: Annotated[float, Field(ge=0)] = 0.0
    retention_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 90 * 86_400.0
    chunk_s: Annotated[float, Field(gt=0, le=3600)] = 0.5
    lease_s: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    concurrency: Annotated[int, Field(ge=1, le=64)] = 2
    statement_timeout_s: Annotated[float, Field(ge=0.001, le=86_400)] | None = 300.0
    max_running: Annotated[int, Field(ge=1)] | None = 100
    max_lag_s: Annotated[float, Field(gt=0)] | None = 30.0

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError("expected the name of a time zone, such as Europe/Berlin or UTC") from None
        return value


class Settings(BaseSettings):
    """The whole configuration; `imports` names the modules that define models and subscribers."""

    model_config = SettingsConfigDict(
        env_prefix="CROSSTIE_",
        env_nested_delimiter="__",
        toml_file="crosstie.toml",
        pyproject_toml_table_header=("tool", "crosstie"),
        extra="forbid",
        frozen=True,
    )

    connections: dict[str, ConnectionSettings] = Field(default_factory=dict)
    imports: list[str] = Field(default_factory=list)
    broker_url: SecretStr | None = None
    queue: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,120}$")] | None = None
    sweep_interval_s: Annotated[float, Field(gt=0)] = 1.0
    relations: RelationSettings = Field(default_factory=RelationSettings)
    saga: SagaSettings = Field(default_factory=SagaSettings)
    outbox: OutboxSettings = Field(default_factory=OutboxSettings)
    audit: AuditSettings = Field(default_factory=AuditSettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    cache: CacheSettings = Field(default_factory=CacheSettings)
    brokers: dict[str, BrokerSettings] = Field(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then files; no dotenv file is read."""
        return (
            init_settings,
            env_settings,
            TomlConfigSettingsSource(settings_cls),
            PyprojectTomlConfigSettingsSource(settings_cls),
        )


def load_settings(connections: Mapping[str, Any] | None = None) -> Settings:
    """Read and validate the configuration; `connections` replaces the connections of every other source.

    Raises ConfigurationError naming each field that is wrong.
    """
    try:
        loaded = Settings()
        if connections is None:
            return loaded
        given = _Connections.model_validate({"connections": dict(connections)})
    except ValidationError as error:
        raise ConfigurationError("\n".join(_complaints(error))) from None
    return loaded.model_copy(update={"connections": given.connections})


class _Connections(_Section):
    connections: dict[str, ConnectionSettings]


def nearest(wrong: str, valid: list[str]) -> str:
    """Return " Did you mean 'x'?" where a valid name is close, else the list of valid names."""
    close = difflib.get_close_matches(wrong, valid, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Expected one of: {', '.join(sorted(valid))}." if valid else ""


def _complaints(error: ValidationError) -> Iterator[str]:
    for item in error.errors(include_input=True, include_url=False):
        place = ".".join(str(part) for part in item["loc"])
        last = str(item["loc"][-1]) if item["loc"] else ""
        if item["type"] == "extra_forbidden":
            yield f"{place}: unknown key.{nearest(last, _valid_keys(item['loc']))}"
        elif item["type"] == "missing":
            yield f"{place}: this key is required and was not given."
        else:
            # A connection's URL is its own input, password included: only short plain fields are echoed.
            echo = last not in {"password", "options", "broker_url", "redis_url", "url"} and len(item["loc"]) != 2
            found = f" (found {item['input']!r})" if echo and isinstance(item["input"], str | int | float) else ""
            yield f"{place}: {item['msg']}{found}."


def _valid_keys(location: tuple[int | str, ...]) -> list[str]:
    sections: dict[str, type[BaseModel]] = {
        "relations": RelationSettings,
        "saga": SagaSettings,
        "outbox": OutboxSettings,
        "audit": AuditSettings,
        "metrics": MetricsSettings,
        "cache": CacheSettings,
    }
    if location[0] == "connections" and len(location) > 2:
        return list(ConnectionSettings.model_fields)
    if location[0] == "brokers" and len(location) > 2:
        return list(BrokerSettings.model_fields)
    if len(location) > 1 and str(location[0]) in sections:
        return list(sections[str(location[0])].model_fields)
    return list(Settings.model_fields)

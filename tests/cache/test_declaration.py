from __future__ import annotations

import math
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar
from uuid import UUID

import pytest

from bench.databases import Pair
from bench.guard import configured_databases
from crosstie.orm import ActiveRecord, ConnectionManager
from crosstie.orm.cache import Cached
from crosstie.orm.errors import ConfigurationError, ModelDefinitionError, ReferenceTypeMismatch
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.relation import BelongsTo


@pytest.mark.parametrize("ttl_s", [0, -1, math.inf, math.nan, 1e300, "60", None, True])
def test_a_time_that_is_none_is_refused(ttl_s: Any) -> None:
    """An entry that never ends would make raw SQL invisible for ever."""
    with pytest.raises(ModelDefinitionError, match="ttl_s"):
        Cached(ttl_s=ttl_s)


@pytest.mark.parametrize("cache", ["yes", 1, None, 60.0])
def test_something_else_than_a_policy_is_refused(cache: Any) -> None:
    """The message says what to write."""
    with pytest.raises(ModelDefinitionError, match=r"Cached\(ttl_s="):
        BelongsTo(foreign_key="a_id", cache=cache)


@pytest.mark.parametrize(
    ("given", "expected"), [(False, None), (True, Cached()), (Cached(ttl_s=5), Cached(ttl_s=5))], ids=str
)
def test_true_is_the_usual_policy(given: Any, expected: Cached | None) -> None:
    """Five minutes."""
    assert BelongsTo(foreign_key="a_id", cache=given).cache == expected
    assert Cached().ttl_s == 300


@pytest.mark.parametrize("kind", [Decimal, datetime, bytes, float])
def test_a_key_that_may_be_written_in_two_ways_is_refused(kind: type) -> None:
    """1.0 and 1.00 are one decimal and two names."""

    class Parent(ActiveRecord):
        __table_name__ = "parents"
        __connection__ = "default"
        __primary_key__ = ("key",)

        key: kind  # type: ignore[valid-type]

    class Child(IntegerPKMixin, ActiveRecord):
        __table_name__ = "children"
        __connection__ = "default"

        parent_key: kind  # type: ignore[valid-type]

        parent: ClassVar[BelongsTo[Parent]] = BelongsTo(foreign_key="parent_key", cache=True)

    with pytest.raises(ModelDefinitionError, match=r"Child\.parent is declared with cache"):
        Child.parent.link(Child)


@pytest.mark.parametrize("kind", [int, str, UUID])
def test_plain_keys_are_taken(kind: type) -> None:
    """Integers, text, UUIDs."""

    class Parent(ActiveRecord):
        __table_name__ = "parents"
        __connection__ = "default"
        __primary_key__ = ("key",)

        key: kind  # type: ignore[valid-type]

    class Child(IntegerPKMixin, ActiveRecord):
        __table_name__ = "children"
        __connection__ = "default"

        parent_key: kind  # type: ignore[valid-type]

        parent: ClassVar[BelongsTo[Parent]] = BelongsTo(foreign_key="parent_key", cache=True)

    assert Child.parent.link(Child).target.model is Parent


def test_a_relation_that_leads_nowhere_hinders_no_write(crash_pair: Pair, prefix: str) -> None:
    """Neither one whose parent is not imported, nor one whose key does not compare; who follows it is told."""

    class Child(IntegerPKMixin, ActiveRecord):
        __table_name__ = "children"
        __connection__ = "default"

        id: int | None = None
        parent_id: int
        name: str = "x"

        parent: ClassVar[BelongsTo[Unknown]] = BelongsTo(foreign_key="parent_id", cache=True)  # type: ignore[name-defined]  # noqa: F821
        namesake: ClassVar[BelongsTo[Child]] = BelongsTo(foreign_key="name", cache=True)

    with configured_databases(crash_pair):
        Child.create_table()
        child = Child(parent_id=1).save().update(name="y")
        with pytest.raises(ModelDefinitionError, match="Unknown"):
            child.parent()
        with pytest.raises(ReferenceTypeMismatch, match="namesake"):
            child.namesake()


@pytest.mark.parametrize("url", ["localhost:6379", "http://cache/0", "", "amqp://u:s3cret@h//"])
def test_a_url_of_something_else_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """By the name of the setting, and without the password."""
    monkeypatch.setenv("CROSSTIE_CACHE__REDIS_URL", url)
    with pytest.raises(ConfigurationError, match=r"cache\.redis_url: .*redis://") as refused:
        ConnectionManager.configure({})
    assert "s3cret" not in str(refused.value)


def test_an_unknown_setting_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in every section."""
    monkeypatch.setenv("CROSSTIE_CACHE__REDIS_URI", "redis://h/0")
    with pytest.raises(ConfigurationError, match=r"cache\.redis_uri: unknown key. Did you mean 'redis_url'"):
        ConnectionManager.configure({})


def test_a_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by the settings nor by an error of Redis."""
    monkeypatch.setenv("CROSSTIE_CACHE__REDIS_URL", "redis://:s3cret@127.0.0.1:9/0")
    ConnectionManager.configure({})
    assert "s3cret" not in repr(ConnectionManager.settings())

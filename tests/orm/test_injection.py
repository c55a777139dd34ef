"""SQL that is smuggled into every public argument of the ORM: a name is refused, a value is bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from pydantic import Field

from bench.databases import TestDatabase
from crosstie.orm import ActiveRecord, any_of, not_, sql
from crosstie.orm.errors import CrosstieError, DatabaseError, InvalidQuery
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.relation import HasMany
from crosstie.orm.statement_log import logged_statements

PAYLOADS = [
    "x' OR '1'='1",
    "x'; DROP TABLE vaults; --",
    'x" OR "1"="1',
    "x`; DROP TABLE vaults; -- ",
    "name; DELETE FROM vaults",
    "1) UNION SELECT secret, 1, 1, 1, 1 FROM vaults --",
    "name) OR (1=1",
    "\\'; DROP TABLE vaults; #",
    "/* */ OR 1=1 /* */",
    "%s %(name)s :name ? {name} $1",
    "naïve\u02bc OR \u02bc1\u02bc=\u02bc1",
]


class Vault(IntegerPKMixin, ActiveRecord):
    __table_name__ = "vaults"
    __connection__ = "default"

    name: str
    code: str = ""
    amount: int = 0
    data: dict[str, Any] = Field(default_factory=dict)

    coins: ClassVar[HasMany[Coin]] = HasMany(foreign_key="vault_id")


class Coin(IntegerPKMixin, ActiveRecord):
    __table_name__ = "coins"
    __connection__ = "default"

    vault_id: int


@pytest.fixture
def vaults(configured_database: TestDatabase) -> Iterator[TestDatabase]:
    """Two vaults, which are there and unchanged after the test."""
    Vault.create_table()
    Coin.create_table()
    Vault.bulk_create([Vault(name="one", code="secret"), Vault(name="two", code="hidden")])
    yield configured_database
    rows = configured_database.rows("SELECT id, name, code, amount FROM vaults WHERE id < 3 ORDER BY id")
    assert rows == [(1, "one", "secret", 0), (2, "two", "hidden", 0)]
    assert configured_database.scalar("SELECT count(*) FROM coins") == 0


NAMED: dict[str, Callable[[str], object]] = {
    "where": lambda name: Vault.find_all().where(**{name: 1}).all(),
    "where with a list": lambda name: Vault.find_all().where(**{name: [1, 2]}).all(),
    "any_of": lambda name: Vault.find_all().where(any_of(**{name: 1})).all(),
    "not_": lambda name: Vault.find_all().where(not_(**{name: 1})).all(),
    "find_by": lambda name: Vault.find_by(**{name: 1}),
    "find_or_create_by": lambda name: Vault.find_or_create_by(**{name: 1}),
    "order_by": lambda name: Vault.find_all().order_by(name).all(),
    "order_by descending": lambda name: Vault.find_all().order_by(f"-{name}").all(),
    "pluck": lambda name: Vault.find_all().pluck(name),
    "distinct pluck": lambda name: Vault.find_all().distinct().pluck("name", name),
    "count": lambda name: Vault.find_all().count(name),
    "sum": lambda name: Vault.find_all().sum(name),
    "avg": lambda name: Vault.find_all().avg(name),
    "min": lambda name: Vault.find_all().min(name),
    "max": lambda name: Vault.find_all().max(name),
    "group_by": lambda name: Vault.find_all().group_by(name).count(),
    "sum of groups": lambda name: Vault.find_all().group_by("name").sum(name),
    "column": lambda name: Vault.find_all().where(Vault.c[name] == 1).all(),
    "with_": lambda name: Vault.find_all().with_(name).all(),
    "with_ a path": lambda name: Vault.find_all().with_(f"coins.{name}").all(),
    "with_count": lambda name: Vault.find_all().with_count(name).all(),
    "where_has": lambda name: Vault.find_all().where_has(name).all(),
    "where_missing": lambda name: Vault.find_all().where_missing(name).all(),
    "join": lambda name: Vault.find_all().join(name).all(),
    "join a path": lambda name: Vault.find_all().join(f"coins.{name}").all(),
    "left_join": lambda name: Vault.find_all().left_join(name).all(),
    "select": lambda name: Vault.find_all().select(name).all(),
    "update_all": lambda name: Vault.find_all().update_all(**{name: 1}),
    "update": lambda name: Vault.find(1).update(**{name: 1}),
    "increment": lambda name: Vault.find(1).increment(**{name: 1}),
    "touch": lambda name: Vault.find(1).touch(name),
    "upsert on": lambda name: Vault(name="x").upsert(on=name),
    "upsert update": lambda name: Vault(id=1, name="x").upsert(on="id", update=[name]),
    "limit": lambda name: Vault.find_all().limit(name),  # type: ignore[arg-type]
    "offset": lambda name: Vault.find_all().offset(name),  # type: ignore[arg-type]
    "page": lambda name: Vault.find_all().paginate(1, name),  # type: ignore[arg-type]
    "batches": lambda name: Vault.find_all().in_batches(name),  # type: ignore[arg-type]
    "find": Vault.find,
    "where a number": lambda name: Vault.find_all().where(id=name).all(),
    "increment by": lambda name: Vault.find(1).increment(amount=name),
    "sql alone": lambda name: Vault.find_all().where(name),  # type: ignore[call-overload]
    "name of a bound value": lambda name: Vault.find_all().where("id = :id", {"id": 1, name: 1}).all(),
}


@pytest.mark.turns("database")
@pytest.mark.parametrize("argument", NAMED)
def test_a_name_is_that_of_a_field_or_is_refused(vaults: TestDatabase, argument: str) -> None:
    """Whatever it contains; no statement carries any of it."""
    for payload in PAYLOADS:
        with logged_statements() as log, pytest.raises(CrosstieError):
            NAMED[argument](payload)
        assert not any(payload in statement.sql for statement in log.statements)


def _all(**equal: Any) -> list[Vault]:
    return Vault.find_all().where(**equal).all()


VALUED: dict[str, Callable[[str], object]] = {
    "where": lambda value: _all(name=value),
    "where with a list": lambda value: _all(name=[value, value + "2"]),
    "where with a long list": lambda value: _all(name=[f"{value}{number}" for number in range(700)]),
    "any_of": lambda value: Vault.find_all().where(any_of(name=value, code=value)).all(),
    "all but": lambda value: Vault.find_all().where(not_(not_(name=value))).all(),
    "find_by": lambda value: [] if Vault.find_by(name=value) is None else [1],
    "expression": lambda value: Vault.find_all().where(Vault.c.name == value).all(),
    "expression on a joined table": lambda value: (
        Vault.find_all().left_join("coins").where(sa.cast(Coin.c.id, sa.String(50)) == value).all()
    ),
    "sql": lambda value: Vault.find_all().where("name = :value", {"value": value}).all(),
    "sql with a list": lambda value: Vault.find_all().where("name IN :values", {"values": [value]}).all(),
    "sql in a group": lambda value: (
        Vault.find_all().group_by("name").having("max(code) = :value", {"value": value}).count()
    ),
    "having": lambda value: Vault.find_all().group_by("name").having(sa.func.max(Vault.c.code) == value).count(),
    "key of a document": lambda value: Vault.find_all().where(Vault.c.data[value].as_string() == "x").all(),
    "keys into a document": lambda value: Vault.find_all().where(Vault.c.data["a"][value].as_string() == "x").all(),
    "value in a document": lambda value: Vault.find_all().where(Vault.c.data["a"].as_string() == value).all(),
    "joined sql": lambda value: (
        Vault.find_all().where(any_of(sql("code = :value", {"value": value}), name=value)).all()
    ),
}


@pytest.mark.parametrize("argument", VALUED)
def test_a_value_is_compared_and_never_read_as_sql(vaults: TestDatabase, argument: str) -> None:
    """It finds nothing, since nothing has it; the statement does not contain it."""
    for payload in PAYLOADS:
        with logged_statements() as log:
            assert not VALUED[argument](payload), payload
        assert log.statements
        assert not any(payload in statement.sql for statement in log.statements)


def test_a_path_into_a_document_is_bound(vaults: TestDatabase) -> None:
    """PostgreSQL's syntax of paths may refuse one, as a value that it cannot read; the statement has none of it."""
    for payload in PAYLOADS:
        with logged_statements() as log, suppress(DatabaseError):
            assert not Vault.find_all().where(Vault.c.data[("a", payload)].as_string() == "x").all()
        assert log.statements
        assert not any(payload in statement.sql for statement in log.statements)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_value_is_written_as_it_is(vaults: TestDatabase, payload: str) -> None:
    """By every way to write, into text and into documents, keys of documents too."""
    document = {payload: [payload, {payload: payload}]}
    written = [
        Vault(name=payload, code=payload, data=document).save(),
        Vault.create(name="x", code=payload).update(name=payload, data=document),
        *Vault.bulk_create([Vault(name=payload, data=document), Vault(name=payload, data=document)]),
        Vault(id=50, name=payload, data=document).upsert(on="id"),
        Vault.find_or_create_by({"data": document}, name=payload, code=f"{payload}!"),
    ]
    Vault(id=50, name=payload, code=payload).upsert(on="id", update=["code"])
    changed = Vault.create(name="x", data=document)
    changed.name = payload
    Vault.bulk_update([changed])
    Vault.find_all().where(id=written[2].id).update_all(code=payload)
    keys = [record.id for record in (*written, changed)]
    found = Vault.find_all().where(id=keys).all()
    assert len(found) == 7
    assert all(vault.name == payload and vault.data == document for vault in found)
    assert Vault.find(50).code == Vault.find(written[2].id).code == payload
    assert Vault.find_all().where(name=payload).count() == 7
    assert Vault.find_all().where(name=payload).group_by("name").count() == {payload: 7}
    assert Vault.find_all().where(name=payload).delete_all() == 7


def test_sql_with_a_value_put_into_it_is_what_the_author_made_it(vaults: TestDatabase) -> None:
    """A text needs its mapping of values, so that forgetting to bind is noticed: names and values must be the same."""
    name = "x' OR '1'='1"
    with pytest.raises(InvalidQuery):
        Vault.find_all().where(f"name = '{name}'")  # type: ignore[call-overload]
    with pytest.raises(InvalidQuery):
        Vault.find_all().where(f"name = '{name}'", {"name": name})

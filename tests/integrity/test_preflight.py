"""Keys that cannot be compared are refused: INCOMPLETE with a reason, never OK."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from bench.databases import Pair
from crosstie.orm.integrity import AuditedReference, AuditState, Endpoint
from crosstie.orm.integrity.catalog import ColumnFacts
from crosstie.orm.integrity.preflight import key_kind
from crosstie.orm.integrity.storage import KeyKind
from integrity.tables import INTEGER_TYPES, TEXT_TYPES, UUID_TYPES, linked

MARIADB_PARENT = pytest.mark.parametrize(
    "pair", [("sqlite", "mariadb"), ("postgresql", "mariadb")], indirect=True, ids="-".join
)
SQLITE_CHILD = pytest.mark.parametrize("pair", [("sqlite", "postgresql")], indirect=True, ids="-".join)
DATES = {"sqlite": "DATE", "postgresql": "DATE", "mariadb": "DATE"}


@pytest.mark.parametrize(
    ("child_type", "parent_type"),
    [
        (TEXT_TYPES, INTEGER_TYPES),
        (INTEGER_TYPES, TEXT_TYPES),
        (UUID_TYPES, INTEGER_TYPES),
        (INTEGER_TYPES, DATES),
        (DATES, DATES),
    ],
    ids=["text-integer", "integer-text", "uuid-integer", "integer-date", "date-date"],
)
def test_mismatched_types_are_refused(
    configured: Pair, child_type: dict[str, str], parent_type: dict[str, str]
) -> None:
    """MariaDB would say that '5abc' = 5; the message names both columns and their types."""
    world = linked(configured, child_type, parent_type)
    result = world.audit()
    assert result.state is AuditState.INCOMPLETE
    assert "keys of one kind" in (result.reason or "")
    assert "default.posts.user_id" in (result.reason or "")


def test_the_table_counts_not_the_model(configured: Pair) -> None:
    """A model that calls a text column an integer does not make it one."""
    world = linked(configured, TEXT_TYPES, INTEGER_TYPES, declared=sa.BigInteger)
    world.post([(1, "5abc")])
    world.register([5])
    assert world.audit().state is AuditState.INCOMPLETE


def test_a_missing_table_is_incomplete(configured: Pair) -> None:
    """No table, no OK; the message says which and where."""
    world = linked(configured)
    configured.second.execute("DROP TABLE users")
    result = world.audit()
    assert result.state is AuditState.INCOMPLETE
    assert "'users'" in (result.reason or "")


def test_a_child_without_primary_key_is_refused(configured: Pair) -> None:
    """Its rows could not be told apart while they are confirmed."""
    world = linked(configured)
    keyless = sa.Table("posts", sa.MetaData(), sa.Column("user_id", sa.BigInteger))
    world.reference = AuditedReference.between(Endpoint("default", keyless, keyless.c.user_id), world.reference.parent)
    result = world.audit()
    assert result.state is AuditState.INCOMPLETE
    assert "primary key" in (result.reason or "")


@MARIADB_PARENT
def test_an_unsigned_parent_has_negative_keys_nowhere(configured: Pair) -> None:
    """A negative key cannot be in an unsigned column; comparing it there must not wrap around."""
    world = linked(configured, INTEGER_TYPES, "BIGINT UNSIGNED")
    world.register([1, 2**64 - 1, 2**63])
    world.post([(1, -1), (2, 1), (3, -(2**63))])
    result = world.audit(chunk_size=1)
    assert (result.reason, result.orphan_keys) == (None, 2)


def test_a_narrow_parent_is_asked_about_wide_keys(configured: Pair) -> None:
    """INTEGER against BIGINT: a key that does not fit is an orphan, not an error."""
    world = linked(configured, INTEGER_TYPES, "INTEGER", declared=sa.Integer)
    world.register([1])
    world.post([(1, 1), (2, 2**40), (3, -(2**40))])
    result = world.audit(chunk_size=1)
    assert (result.reason, result.orphan_keys) == (None, 2)


@pytest.mark.parametrize("pair", [("mariadb", "postgresql")], indirect=True, ids="-".join)
@pytest.mark.parametrize("parent_type", ["NUMERIC", "NUMERIC(20, 2)", "TEXT"])
def test_a_parent_of_unsigned_keys_has_no_fractions(configured: Pair, parent_type: str) -> None:
    """What may be 5 or 5.00, or is text, is refused; the message names both columns and the way out."""
    result = linked(configured, "BIGINT UNSIGNED", parent_type).audit()
    assert result.state is AuditState.INCOMPLETE
    reason = result.reason or ""
    assert all(end in reason for end in ("default.posts.user_id", "secondary.users.id"))
    assert ("NUMERIC(20, 0)" in reason) is (parent_type != "TEXT")


@SQLITE_CHILD
@pytest.mark.parametrize("value", ["'abc'", "5.5", "x'05'"])
def test_sqlite_values_of_another_type_are_refused(configured: Pair, value: str) -> None:
    """SQLite keeps text in an INTEGER column; such a value is not silently cut to a number."""
    world = linked(configured)
    world.register([5, 1, 9])
    world.post([(1, 1), (3, 9)])
    configured.first.execute(f"INSERT INTO posts VALUES (2, {value})")
    result = world.audit()
    assert result.state is AuditState.INCOMPLETE
    assert "expected integer keys" in (result.reason or "")


@pytest.mark.parametrize(
    ("dialect", "type_name", "kind"),
    [
        ("sqlite", "integer", KeyKind.INTEGER),
        ("sqlite", "varchar", KeyKind.TEXT),
        ("sqlite", "numeric", None),
        ("sqlite", "", None),
        ("postgresql", "int8", KeyKind.INTEGER),
        ("postgresql", "numeric", None),
        ("postgresql", "bytea", None),
        ("postgresql", "uuid", KeyKind.UUID),
        ("mariadb", "mediumint", KeyKind.INTEGER),
        ("mysql", "binary", None),
        ("mysql", "enum", None),
        ("mariadb", "uuid", KeyKind.UUID),
    ],
)
def test_kinds_of_types(dialect: str, type_name: str, kind: KeyKind | None) -> None:
    """Each server's name of a type says which keys it holds; an unknown one says nothing."""
    assert key_kind(ColumnFacts(dialect, type_name)) is kind

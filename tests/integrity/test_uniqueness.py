"""Values that are to be in one of several databases only."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from bench.databases import Pair, Trio
from crosstie.orm import ActiveRecord, ConnectionManager
from crosstie.orm.errors import NoSuchTable
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.integrity import AuditScope, AuditState
from crosstie.orm.integrity.uniqueness import UniquenessResult, audit_uniqueness
from crosstie.sagas import saga, sweep_sagas
from crosstie.workers.audit import run_audit
from crosstie.workers.audit_page import audit_page
from crosstie.workers.audit_unique import unique_column
from crosstie.workers.cli import main
from crosstie.workers.errors import UnknownColumn

ALL = "{default, secondary, tertiary}.users.email"
BOTH = "{default, secondary}.users.email"
FEW = pytest.mark.parametrize(
    "pair", [("sqlite", "sqlite"), ("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join
)
ONE = pytest.mark.parametrize("pair", [("sqlite", "postgresql")], indirect=True, ids="-".join)


def fill(databases: Any, *values: list[Any], kind: str = "VARCHAR(60)") -> None:
    """Users of each database, by the column that is to be unique; numbered from 1."""
    for database, own in zip(databases.databases, values, strict=True):
        database.execute(f"CREATE TABLE users (id INTEGER PRIMARY KEY, email {kind})")
        database.execute("CREATE INDEX users_email ON users (email)")
        database.execute_many("INSERT INTO users (id, email) VALUES (%s, %s)", enumerate(own, 1))


def run(text: str, **options: Any) -> UniquenessResult:
    """Audit this column alone."""
    (result,) = run_audit([], unique=[text], **options).unique
    return result


def found(result: UniquenessResult) -> dict[Any, dict[str, list[int]]]:
    """Value → connection → ids."""
    return {one.key: {name: [row["id"] for row in rows] for name, rows in one.rows.items()} for one in result.findings}


def test_a_value_in_two_databases_is_found_with_its_rows(configured_trio: Trio) -> None:
    """Each two are compared; NULL is no value, and a value twice in one database is for a unique index."""
    fill(configured_trio, ["a", "b", None, "c", "c"], ["b", "d", None, "e"], ["f", "d", None])
    result = run(ALL)
    assert {key: set(rows) for key, rows in found(result).items()} == {
        "b": {"default", "secondary"},
        "d": {"secondary", "tertiary"},
    }
    assert found(result)["b"] == {"default": [2], "secondary": [1]}
    assert (result.state, result.duplicates, result.deferred) == (AuditState.FINDINGS, 2, 0)
    configured_trio.second.execute("DELETE FROM users WHERE email IN ('b', 'd')")
    assert run(ALL, chunk_size=1).state is AuditState.OK


@FEW
def test_integers_by_pages_as_by_a_set(configured: Pair) -> None:
    """Negative and huge ones too."""
    first, second = [-5, 0, 1, 2, 2**62, 77], [77, 2**62, 3, -6, 1]
    fill(configured, first, second, kind="BIGINT")
    for size in (1, 2, 100):
        assert set(found(run(BOTH, chunk_size=size))) == set(first) & set(second)


@pytest.mark.parametrize("pair", [("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join)
def test_the_wider_equality_decides(configured: Pair) -> None:
    """For MariaDB's collation these are one, whichever of the databases is named first."""
    fill(configured, ["Ada@x.org", "bob@x.org"], ["ada@x.org", "eve@x.org"])
    result = run(BOTH)
    assert list(found(result).values()) == [{"default": [1], "secondary": [1]}]


@FEW
def test_a_row_that_a_saga_moves_is_deferred(configured: Pair, no_models: None) -> None:
    """Written to one database and not yet deleted from the other, or the other way round; judged once it is settled."""

    class Here(IntegerPKMixin, ActiveRecord):
        __table_name__ = "users"
        __connection__ = "default"

        id: int | None = None
        email: str

    class There(IntegerPKMixin, ActiveRecord):
        __table_name__ = "users"
        __connection__ = "secondary"

        id: int | None = None
        email: str

    for model in (Here, There):
        model.create_table()
    Here(email="stays").save()
    There(email="stays").save()
    with saga("copy", home="default"):
        Here(email="moves").save()
        There(email="moves").save()
    result = run(BOTH)
    assert (set(found(result)), result.deferred) == ({"stays"}, 1)
    sweep_sagas("secondary")
    assert set(found(run(BOTH))) == {"stays", "moves"}


@ONE
def test_with_a_grace_it_is_looked_at_once_more(configured: Pair) -> None:
    """For writers outside of sagas, whose rows are in two databases for a moment."""
    fill(configured, ["a", "b"], ["a", "b"])

    def pass_by(_: float) -> None:
        configured.second.execute("DELETE FROM users WHERE email = 'a'")

    result = audit_uniqueness(unique_column(BOTH), grace_s=5, wait=pass_by)
    assert set(found(result)) == {"b"}


@ONE
def test_what_was_not_read_is_incomplete(configured: Pair) -> None:
    """A table that is missing, types that cannot be compared, a name that means nothing; each has its reason."""
    fill(configured, ["a"], ["a"])
    configured.second.execute("ALTER TABLE users RENAME TO away")
    result = run(BOTH)
    assert (result.state, "'secondary'" in (result.reason or "")) == (AuditState.INCOMPLETE, True)
    with pytest.raises(NoSuchTable):
        unique_column(BOTH)
    configured.second.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, email BIGINT)")
    result = run(BOTH)
    assert "expected keys of one kind" in (result.reason or "")
    for text in ("default.users.email", "none_*.users.email"):
        with pytest.raises(UnknownColumn, match="two databases at least"):
            unique_column(text)
        assert run(text).state is AuditState.INCOMPLETE


@ONE
def test_columns_of_the_settings_belong_to_every_audit_of_everything(
    configured: Pair, no_models: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a pattern, which no read_only connection fits; not to audits of changes, nor of one reference."""
    fill(configured, ["a"], ["a"])
    monkeypatch.setenv("CROSSTIE_AUDIT__UNIQUE", json.dumps(["*.users.email"]))
    copy = configured.first.config | {"read_only": True}
    ConnectionManager.configure(configured.configuration | {"copy": copy})
    report = run_audit()
    assert (report.state, report.unique[0].name, report.unique[0].duplicates) == (
        AuditState.FINDINGS,
        "*.users.email",
        1,
    )
    assert "1 of 1 values are in two databases" in audit_page(report, {}, sample=5)
    assert run_audit(scope=AuditScope.CHANGES).unique == ()
    assert run_audit([]).unique == ()


@ONE
def test_the_command_shows_values_and_rows(
    configured: Pair,
    no_models: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Any,
) -> None:
    """A line for each value, one document for programs, and the exit status of any audit."""
    fill(configured, ["a", "b"], ["b", "c"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("CROSSTIE_IMPORTS", "[]")
    monkeypatch.setenv("CROSSTIE_CONNECTIONS", json.dumps(configured.configuration))
    for arguments, status in ((["--unique", BOTH], 1), (["--unique", BOTH, "--json"], 1), (["--unique", "x.y.z"], 2)):
        with pytest.raises(SystemExit) as ended:
            main(["audit", *arguments])
        assert ended.value.code == status
        out = capsys.readouterr().out
        if arguments[-1] == "--json":
            (told,) = json.loads(out)["unique"]
            assert (told["column"], told["duplicates"]) == (BOTH, 1)
            assert told["findings"] == [{"value": "b", "rows": {"default": [{"id": 2}], "secondary": [{"id": 1}]}}]
        elif status == 1:
            assert "b: secondary id=1, default id=2" in out
            assert "decide which row keeps each of these values" in out

"""Audits of systems that have no models: references as text, in the settings, or found by looking."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from bench.databases import Pair
from crosstie.orm import ConnectionManager
from crosstie.orm.errors import NoSuchTable, UnknownConnection
from crosstie.orm.integrity import UnknownReference
from crosstie.workers.audit import run_audit
from crosstie.workers.audit_discovery import Column, candidates, discover, singular
from crosstie.workers.audit_references import known_reference, reflected_reference, select_references
from crosstie.workers.repair import Cap, Outcome, repair_reference
from integrity.blog import Blog

REFERENCE = "default.orders.user_id -> secondary.users.id"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def legacy(configured: Pair, no_models: None) -> Pair:
    """Orders of three users, one of whom never was; and columns that only look like references."""
    child, parent = configured.first, configured.second
    child.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, user_id BIGINT, tree_id BIGINT, grid VARCHAR(20))")
    child.execute_many(
        "INSERT INTO orders (id, user_id, tree_id) VALUES (%s, %s, %s)",
        [(1, 1, 70), (2, 2, 71), (3, 9, 72), (4, None, 73)],
    )
    parent.execute("CREATE TABLE users (id BIGINT NOT NULL PRIMARY KEY)")
    parent.execute("CREATE TABLE trees (id BIGINT NOT NULL PRIMARY KEY)")
    parent.execute_many("INSERT INTO users (id) VALUES (%s)", [(1,), (2,), (3,)])
    parent.execute("INSERT INTO trees (id) VALUES (1)")
    return configured


def test_a_reference_needs_no_model(legacy: Pair) -> None:
    """Its tables are read from the databases; its run is recorded like any other."""
    (result,) = run_audit([reflected_reference("default.orders.user_id->secondary.users.id")]).results
    assert (result.reference, result.orphan_rows, result.child_rows) == (REFERENCE, 1, 3)
    assert [one.child_key for one in result.findings] == [{"id": 3}]
    assert legacy.first.rows("SELECT reference, state FROM crosstie_audit_run") == [(REFERENCE, "findings")]


def test_references_of_the_settings_are_audited_and_repaired(legacy: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """By every worker too, and under short names."""
    monkeypatch.setenv("CROSSTIE_AUDIT__REFERENCES", json.dumps([REFERENCE]))
    ConnectionManager.configure(legacy.configuration)
    assert [one.name for one in select_references()] == [REFERENCE]
    assert [one.name for one in select_references(["orders.user_id"])] == [REFERENCE]
    assert known_reference(REFERENCE) is not None
    report = repair_reference("orders.user_id", "quarantine", apply=True, cap=Cap(percent=50))
    assert report.count(Outcome.REPAIRED) == 1
    assert legacy.first.rows("SELECT id FROM orders ORDER BY id") == [(1,), (2,), (4,)]


@pytest.mark.parametrize("pair", [("sqlite", "sqlite")], indirect=True, ids="-".join)
@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("default.orders.user_id", UnknownReference, "without '->'"),
        ("orders.user_id -> users.id", UnknownReference, "expected connection.table.column .* found 'orders.user_id'"),
        ("legacy.orders.user_id -> secondary.users.id", UnknownConnection, "legacy"),
        ("default.order.user_id -> secondary.users.id", NoSuchTable, "expected a table 'order'"),
        ("default.orders.userid -> secondary.users.id", NoSuchTable, "Did you mean 'user_id'"),
    ],
)
def test_a_text_that_is_no_reference_is_refused(legacy: Pair, text: str, error: type[Exception], message: str) -> None:
    """With what was expected and what is near."""
    with pytest.raises(error, match=message):
        reflected_reference(text)


def test_undeclared_references_are_found_by_name_and_values(legacy: Pair) -> None:
    """`tree_id` fits a table by its name, but holds none of its keys."""
    found = discover()
    assert [(one.reference, one.sampled, one.found) for one in found.suggestions] == [(REFERENCE, 3, 2)]
    assert found.errors == {}


@pytest.mark.parametrize("pair", [("sqlite", "sqlite")], indirect=True, ids="-".join)
def test_what_is_declared_is_not_suggested(blog: Blog, configured: Pair) -> None:
    """And what is within one database only when asked for."""
    assert discover().suggestions == ()
    blog.comment.drop_table()
    configured.second.execute("CREATE TABLE comments (id INTEGER PRIMARY KEY, the_post_id INTEGER)")
    assert discover().suggestions == ()
    assert [one.reference for one in discover(include_local=True).suggestions] == [
        "secondary.comments.the_post_id -> secondary.posts.id"
    ]


def test_names_are_matched_by_their_stems() -> None:
    """Plurals, roles before the name, prefixes of tables; never a table's own key."""
    assert [singular(name) for name in ("users", "Companies", "boxes", "addresses", "class", "branches")] == [
        "user",
        "company",
        "box",
        "address",
        "class",
        "branch",
    ]
    keys = [Column("b", table, "id", True) for table in ("users", "app_companies", "ids")]
    columns = [
        Column("a", "orders", name) for name in ("user_id", "author_user_id", "companyid", "userid", "paid", "id")
    ]
    pairs = {(child.name, parent.table) for child, parent in candidates([*keys, *columns])}
    assert pairs == {
        ("user_id", "users"),
        ("author_user_id", "users"),
        ("userid", "users"),
        ("companyid", "app_companies"),
    }


@pytest.mark.parametrize("pair", [("sqlite", "sqlite")], indirect=True, ids="-".join)
def test_the_command_takes_and_suggests_them(audit: Command, legacy: Pair) -> None:
    """The suggestion is what the settings take."""
    status, out, _ = audit("--discover")
    assert (status, f'  "{REFERENCE}",' in out, "2 of 3" in out) == (0, True, True)
    assert json.loads(audit("--discover", "--json")[1])["suggestions"][0]["reference"] == REFERENCE
    status, out, _ = audit("--from-sql", REFERENCE, "--json")
    assert (status, json.loads(out)["references"][0]["orphan_rows"]) == (1, 1)
    status, _, err = audit("--from-sql", "orders")
    assert (status, "without '->'" in err) == (2, True)

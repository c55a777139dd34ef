"""The examples of docs/sagas.md run, and do what the page says."""

from __future__ import annotations

from types import ModuleType

import pytest

from bench.databases import Pair
from bench.documents import run_document
from bench.faults import crash_at
from crosstie.sagas import SagaAborted
from sagas.shop import saga_states


@pytest.fixture
def page(configured: Pair) -> ModuleType:
    """The module of the examples, with a free seat."""
    module = run_document("docs/sagas.md", name="sagas_page")
    module.Payment.create_table()
    module.Seat.create_table()
    module.Seat(number="1A").save()
    return module


def test_a_booking_is_in_both_databases(page: ModuleType, configured: Pair) -> None:
    """The payment in one, and the seat that it is for in the other."""
    assert page.book_or_explain("1A") == "booked"

    paid = configured.first.scalar("SELECT id FROM payments")
    assert configured.second.rows("SELECT taken_by, asked_for FROM seats") == [(paid, 1)]


def test_a_booking_that_fails_between_the_commits_is_explained_and_undone(page: ModuleType, configured: Pair) -> None:
    """The caller is told that there is no booking, and there is none."""
    with crash_at("saga.branch-committed"):
        assert page.book_or_explain("1A").startswith("not booked: saga 'book-seat'")

    assert configured.first.scalar("SELECT count(*) FROM payments") == 0
    assert configured.second.rows("SELECT taken_by, asked_for FROM seats") == [(None, 0)]


def test_raw_sql_makes_its_database_home(page: ModuleType, configured: Pair) -> None:
    """The database that was written by SQL decides."""
    page.book_with_sql("1A")

    assert configured.second.scalar("SELECT asked_for FROM seats") == 1
    assert saga_states(configured.by_name) == {"default": ["applied"], "secondary": ["committed"]}


def test_a_session_of_sqlalchemy_is_undone_too(page: ModuleType, configured: Pair) -> None:
    """What it wrote in the branch is taken back, and stays where the saga commits."""
    with crash_at("saga.branch-committed"), pytest.raises(SagaAborted):
        page.ask_for("1A")
    assert configured.second.scalar("SELECT asked_for FROM seats") == 0

    page.ask_for("1A")
    assert configured.second.scalar("SELECT asked_for FROM seats") == 1

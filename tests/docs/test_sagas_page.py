"""The examples of docs/sagas.md run, and do what the page says."""

from __future__ import annotations

from decimal import Decimal
from types import ModuleType
from unittest.mock import Mock, call

import pytest

from bench.databases import Pair
from bench.documents import run_document
from bench.faults import crash_at
from crosstie.orm.faults import armed
from crosstie.sagas import SagaAborted
from crosstie.testing import run_until_quiet
from sagas.shop import saga_states


@pytest.fixture
def page(configured: Pair) -> ModuleType:
    """The module of the examples, with a free seat."""
    module = run_document("docs/sagas.md", name="sagas_page")
    module.Payment.create_table()
    module.Seat.create_table()
    module.Ticket.create_table()
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


def test_a_seat_that_is_not_there_is_left_out(page: ModuleType, configured: Pair) -> None:
    """The inner saga's payment is taken back, and the bookings of the others stand."""
    page.Seat(number="1C").save()

    assert page.book_what_is_free(["1A", "1B", "1C"], Decimal("9.00")) == ["1A", "1C"]

    payments = [number for (number,) in configured.first.rows("SELECT id FROM payments ORDER BY id")]
    assert len(payments) == 2
    assert [row[0] for row in configured.second.rows("SELECT taken_by FROM seats ORDER BY id")] == payments


def test_a_payment_is_taken_back_unless_the_booking_commits(page: ModuleType, configured: Pair) -> None:
    """By its key."""
    payments = page.__dict__["payments"] = Mock()
    with crash_at("saga.branch-committed"), pytest.raises(SagaAborted) as caught:
        page.book_and_pay("1A", "card")
    key = f"{caught.value.saga_id}:1"
    assert payments.mock_calls == [call.charge("card", 2000, key=key), call.refund_if_charged(key=key)]
    payments.reset_mock()
    page.book_and_pay("1A", "card")
    assert len(payments.mock_calls) == 1
    assert configured.second.scalar("SELECT taken_by FROM seats") == configured.first.scalar("SELECT id FROM payments")


def test_a_seat_is_taken_under_its_lock(page: ModuleType, configured: Pair) -> None:
    """Whoever comes second finds it taken."""
    first, second = (page.Payment(amount=Decimal(1)).save() for _ in range(2))

    assert page.take("1A", first).taken_by == first.id
    assert page.take("1A", second).taken_by == first.id
    assert configured.second.scalar("SELECT count(*) FROM crosstie_saga_lock") == 0


def test_a_ticket_is_owed_to_whoever_has_paid(page: ModuleType, configured: Pair) -> None:
    """Home has the payment; a worker issues the ticket that a crash has kept back."""
    page.issue("1A", Decimal("20.00"))
    assert configured.second.scalar("SELECT count(*) FROM tickets") == 1

    def die() -> None:
        raise KeyboardInterrupt

    with armed("forward.home-committed", die), pytest.raises(KeyboardInterrupt):
        page.issue("1A", Decimal("20.00"))
    assert configured.second.scalar("SELECT count(*) FROM tickets") == 1
    assert not run_until_quiet()

    paid = configured.first.rows("SELECT id FROM payments ORDER BY id")
    assert sorted(configured.second.rows("SELECT payment_id FROM tickets")) == paid
    assert configured.second.scalar("SELECT asked_for FROM seats") == 2

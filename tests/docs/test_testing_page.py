"""The examples of docs/testing.md run, and pass."""

from __future__ import annotations

from decimal import Decimal
from types import ModuleType

import pytest

from bench.databases import Pair
from bench.documents import run_document
from crosstie.testing import VirtualTime
from crosstie.testing.plugin import crosstie_time

__all__ = ["crosstie_time"]


@pytest.fixture
def page(configured_crash_pair: Pair) -> ModuleType:
    """The module of the examples, with a budget of 10."""
    module = run_document("docs/testing.md", name="testing_page")
    module.Invoice.create_table()
    module.Budget.create_table()
    module.Budget(left=Decimal(10)).save()
    return module


def test_the_tests_of_the_page_pass(page: ModuleType, crosstie_time: VirtualTime) -> None:
    """One after the other: each leaves the budget as it was."""
    page.test_a_bill_that_fails_between_the_commits_is_taken_back()
    page.test_a_worker_finishes_what_a_dead_process_left()
    page.test_a_slow_bill_is_refused(crosstie_time)
    page.test_a_bill_can_be_undone()

    assert page.Budget.find(1).left == 10

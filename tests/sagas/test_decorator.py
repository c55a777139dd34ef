"""`@saga` on a function: each call is a saga of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from decimal import Decimal

import pytest

from bench.databases import Pair
from crosstie.orm.transaction import active_unit
from crosstie.sagas import SagaBlock, SagaError, saga
from sagas.shop import SKUS, Order, Stock, contents, create_shop


class Refused(Exception):
    """What a function fails with."""


def _order(sku: str) -> None:
    Order(sku=sku, amount=Decimal(1)).save()


def _skus(pair: Pair) -> dict[str, list[object]]:
    return {name: [row[1] for row in rows if row[1] not in SKUS] for name, rows in contents(pair.by_name).items()}


def test_a_saga_can_be_a_decorator(configured_crash_pair: Pair) -> None:
    """Each call of the function is a saga of its own; inside another saga it is part of that one."""
    create_shop(configured_crash_pair.by_name)
    seen: list[object] = []

    @saga("order")
    def place(sku: str, *, amount: int = 1) -> str:
        """Place an order."""
        unit = active_unit()
        assert isinstance(unit, SagaBlock)
        seen.append(unit.saga_id)
        Order(sku=sku, amount=Decimal(amount)).save()
        Stock(sku=sku).save()
        return sku

    assert (place("a"), place("b", amount=2)) == ("a", "b")
    with saga("outer") as outer:
        place("c")

    assert (place.__name__, place.__doc__) == ("place", "Place an order.")
    assert len(set(seen)) == 3
    assert seen[2] == outer.saga_id
    assert _skus(configured_crash_pair) == {"default": ["a", "b", "c"], "secondary": ["a", "b", "c"]}


def test_a_decorated_function_may_call_itself(configured_crash_pair: Pair) -> None:
    """The state of a call is the call's own."""
    create_shop(configured_crash_pair.by_name)

    @saga("countdown")
    def count_down(number: int) -> None:
        _order(str(number))
        if number:
            count_down(number - 1)
        if number == 1:
            raise Refused

    with suppress(Refused):
        count_down(1)
    count_down(0)

    assert _skus(configured_crash_pair)["default"] == ["0"]


def test_functions_whose_body_runs_later_are_refused() -> None:
    """The saga would have ended before their first statement."""

    async def later() -> None:
        """Never run."""

    async def series() -> AsyncIterator[int]:
        yield 1

    def generated() -> Iterator[int]:
        yield 1

    for function in (later, series, generated):
        with pytest.raises(SagaError, match=rf"@saga on .*{function.__name__}.*after the call"):
            saga("late")(function)

"""What may be called in a saga, and with what: a call that no worker could take back is refused before it is made."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from bench.databases import Pair
from crosstie.sagas import EffectInvalid, compensation, saga
from sagas import till
from sagas.till import charge, refund

pytestmark = pytest.mark.usefixtures("own_till")


REFUSED_ARGUMENTS: list[tuple[tuple[Any, ...], str]] = [
    ((Decimal(1),), "Decimal"),
    (((1, 2),), "tuple"),
    (({1: 2},), "key of a dict"),
    ((float("nan"),), "JSON"),
    ((1, 2), "too many"),
    ((), "missing"),
]


def test_what_cannot_be_compensated_is_not_called(configured_crash_pair: Pair) -> None:
    """Arguments that no worker could be given, an unknown compensation, a coroutine function, no home."""

    async def later() -> None: ...

    for arguments, message in REFUSED_ARGUMENTS:
        with pytest.raises(EffectInvalid, match=message), saga("order", home="default") as s:
            s.call(lambda *_: pytest.fail("called"), *arguments, compensate=refund)

    refused: list[tuple[Callable[..., object], str | Callable[..., object], str]] = [
        (charge, "unknown", "till.refund"),
        (charge, charge, "@compensation"),
        (later, refund, "coroutine"),
    ]
    for function, compensate, message in refused:
        with pytest.raises(EffectInvalid, match=message), saga("order", home="default") as s:
            s.call(function, 5, compensate=compensate)
    with pytest.raises(EffectInvalid, match="leave it out"), saga("order", home="default") as s:
        s.compensate_with("till.any", 5, idempotency_key="mine")
    with pytest.raises(EffectInvalid, match="home="), saga("order") as s:
        s.call(charge, 5, compensate=refund)
    assert till.lines() == []
    assert configured_crash_pair.first.scalar("SELECT count(*) FROM crosstie_effect") == 0


@compensation("till.any")
def anything(*args: Any, **kwargs: Any) -> None:
    """Takes every argument."""


def test_a_name_belongs_to_one_function() -> None:
    """A module that is loaded again replaces its own."""
    assert compensation("till.any")(anything) is anything
    with pytest.raises(EffectInvalid, match="already"):
        compensation("till.any")(lambda: None)
    for name in ("", "x" * 201):
        with pytest.raises(EffectInvalid, match="200"):
            compensation(name)


def test_a_function_without_a_parameter_for_the_key_gets_none(configured_crash_pair: Pair) -> None:
    """Nor does one that takes any keyword."""
    given: list[dict[str, Any]] = []
    with saga("order", home="default") as s:
        s.call(lambda **kwargs: given.append(kwargs), a=1, compensate=anything)
        assert s.call(len, [1, 2], compensate=anything) == 2
    assert given == [{"a": 1}]
    kept = configured_crash_pair.first.scalar("SELECT arguments FROM crosstie_effect WHERE step = 1")
    assert json.loads(str(kept))["kwargs"] == {"a": 1}

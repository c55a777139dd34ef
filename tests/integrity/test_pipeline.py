"""Reads that overlap: how far ahead they go, and what is left of them when the caller stops."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from bench.waiting import eventually
from crosstie.orm.integrity.pipeline import read_ahead


def test_so_many_are_read_before_they_are_wanted() -> None:
    """And one more for each that is taken; in the end all of them have come, in their order."""
    begun: list[int] = []

    def items() -> Iterator[int]:
        for number in range(6):
            begun.append(number)
            yield number

    with read_ahead(items(), 3) as ahead:
        eventually(lambda: len(begun) == 3)
        assert next(ahead) == 0
        eventually(lambda: len(begun) == 4)
        assert list(ahead) == [1, 2, 3, 4, 5]


def test_what_a_read_raises_comes_in_its_place() -> None:
    """Behind what was read before it."""

    def items() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError

    with read_ahead(items(), 3) as ahead:
        assert next(ahead) == 1
        with pytest.raises(ZeroDivisionError):
            next(ahead)


def test_the_read_under_way_is_waited_for_and_no_other_begins() -> None:
    """Where the caller leaves by an error."""
    entered, allowed = threading.Event(), threading.Event()
    begun: list[int] = []
    ended: list[int] = []

    def items() -> Iterator[int]:
        for number in range(5):
            begun.append(number)
            entered.set()
            assert allowed.wait(60)
            ended.append(number)
            yield number

    with pytest.raises(ZeroDivisionError), read_ahead(items(), 3):
        assert entered.wait(60)
        threading.Timer(0.05, allowed.set).start()
        raise ZeroDivisionError
    assert begun == ended == [0]

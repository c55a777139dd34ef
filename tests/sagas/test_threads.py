"""Threads that write to three databases at once: nothing is lost, and nothing of one ends with another."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from bench.databases import Trio
from bench.guard import configured_databases
from crosstie.orm import ActiveRecord, open_transactions, transaction
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.transaction import active_unit
from crosstie.sagas import saga

THREADS, TURNS = 8, 9


class Interrupted(Exception):
    """What a block is left with."""


class Entry(IntegerPKMixin, ActiveRecord):
    __connection__ = "default"

    label: str


class Total(IntegerPKMixin, ActiveRecord):
    __connection__ = "default"

    number: int = 0


class DefaultEntry(Entry):
    __table_name__ = "entries"


class DefaultTotal(Total):
    __table_name__ = "totals"


class SecondaryEntry(Entry):
    __table_name__ = "entries"
    __connection__ = "secondary"


class SecondaryTotal(Total):
    __table_name__ = "totals"
    __connection__ = "secondary"


class TertiaryEntry(Entry):
    __table_name__ = "entries"
    __connection__ = "tertiary"


class TertiaryTotal(Total):
    __table_name__ = "totals"
    __connection__ = "tertiary"


MODELS: dict[str, tuple[type[Entry], type[Total]]] = {
    "default": (DefaultEntry, DefaultTotal),
    "secondary": (SecondaryEntry, SecondaryTotal),
    "tertiary": (TertiaryEntry, TertiaryTotal),
}


def write(name: str, label: str) -> None:
    """A row of this label, and one more in the total that all threads count up."""
    entry, total = MODELS[name]
    entry(label=label).save()
    total.find(1).increment(number=1)


def turn(number: int, nth: int, chance: random.Random) -> Counter[tuple[str, str]]:
    """A statement alone, a transaction or a saga; returns what it has committed."""
    # In one order everywhere: no database sees a deadlock that goes over two of them.
    names = sorted(chance.sample(sorted(MODELS), chance.randint(1, 3)))
    label, fails, kind = f"{number}.{nth}", chance.random() < 0.4, nth % 3
    try:
        if kind == 0:
            write(names[0], label)
            return Counter([(names[0], label)])
        if kind == 1:
            with transaction(names[0]):
                write(names[0], label)
                with pytest.raises(Interrupted), transaction(names[0]):
                    write(names[0], f"{label} taken back")
                    raise Interrupted
                assert list(open_transactions()) == [names[0]]
                if fails:
                    raise Interrupted
            return Counter([(names[0], label)])
        with saga(f"saga {label}"):
            for name in names:
                write(name, label)
            assert list(open_transactions()) == names
            if fails:
                raise Interrupted
        return Counter((name, label) for name in names)
    except Interrupted:
        return Counter()
    finally:
        assert not open_transactions()
        assert active_unit() is None


def test_eight_threads_hammering_three_databases_lose_and_mix_nothing(trio: Trio) -> None:
    """Statements, transactions, savepoints and sagas, many of which fail: exactly what was committed is there."""
    for database in trio.databases:
        database.config.update({"busy_timeout_s": 60} if database.kind == "sqlite" else {})
    with configured_databases(trio):
        for entry, total in MODELS.values():
            entry.create_table()
            total.create_table()
            total().save()
        start = threading.Barrier(THREADS)

        def work(number: int) -> Counter[tuple[str, str]]:
            chance = random.Random(number)
            start.wait(timeout=60)
            return sum((turn(number, nth, chance) for nth in range(TURNS)), Counter())

        with ThreadPoolExecutor(THREADS) as pool:
            committed = sum(pool.map(work, range(THREADS)), Counter())

        for name, database in trio.by_name.items():
            expected = sorted(label for place, label in committed.elements() if place == name)
            assert len(expected) > THREADS
            assert sorted(label for (label,) in database.rows("SELECT label FROM entries")) == expected
            assert database.scalar("SELECT number FROM totals") == len(expected)
            unfinished = "SELECT count(*) FROM crosstie_saga WHERE role = 'branch' AND state NOT IN ('applied', 'done')"
            assert database.scalar(unfinished) == 0

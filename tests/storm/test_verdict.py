"""The verdict on a storm finds each fault that is planted, and no other: else a calm storm would prove nothing."""

from __future__ import annotations

import random

import pytest

from storm.verdict import Step, Verdict, judge

WRITTEN: list[Step] = [(stream, number) for stream in "abc" for number in range(1, 41)]


def arrivals(seed: int) -> list[Step]:
    """All of them, each stream in order, the streams mixed."""
    choose = random.Random(seed)
    left = {stream: [step for step in WRITTEN if step[0] == stream] for stream in "abc"}
    mixed: list[Step] = []
    while any(left.values()):
        mixed.append(left[choose.choice([stream for stream in left if left[stream]])].pop(0))
    return mixed


def found(verdict: Verdict) -> dict[str, set[Step]]:
    """What is wrong, by its name."""
    return {name: set(steps) for name, steps in vars(verdict).items() if steps}


@pytest.mark.parametrize("seed", range(5))
class TestVerdict:
    def test_all_events_once_and_in_order_are_right(self, seed: int) -> None:
        """However the streams are mixed, and however what was written is listed."""
        verdict = judge(random.Random(seed).sample(WRITTEN, len(WRITTEN)), arrivals(seed))
        assert (verdict.is_right, found(verdict)) == (True, {})

    def test_a_lost_event_is_found(self, seed: int) -> None:
        """A gap in a stream, or its missing end."""
        lost = random.Random(seed).choice(WRITTEN)
        verdict = judge(WRITTEN, [step for step in arrivals(seed) if step != lost])
        assert (verdict.is_right, found(verdict)) == (False, {"lost": {lost}})

    def test_a_doubled_event_is_found(self, seed: int) -> None:
        """Whenever it comes again; that it comes late is not called overtaken."""
        choose = random.Random(seed)
        applied = arrivals(seed)
        place = choose.randrange(len(applied))
        applied.insert(choose.randint(place + 1, len(applied)), applied[place])
        verdict = judge(WRITTEN, applied)
        assert (verdict.is_right, found(verdict)) == (False, {"doubled": {applied[place]}})

    def test_an_overtaken_event_is_found(self, seed: int) -> None:
        """Behind one of its own stream; behind those of others is no fault."""
        applied = arrivals(seed)
        late = ("b", random.Random(seed).randint(1, 39))
        applied.remove(late)
        applied.insert(applied.index(("b", late[1] + 1)) + 1, late)
        verdict = judge(WRITTEN, applied)
        assert (verdict.is_right, found(verdict)) == (False, {"overtaken": {late}})

    def test_an_invented_event_is_found(self, seed: int) -> None:
        """One that was rolled back, and arrives all the same."""
        verdict = judge(WRITTEN, [*arrivals(seed), ("c", 41)])
        assert (verdict.is_right, found(verdict)) == (False, {"invented": {("c", 41)}})

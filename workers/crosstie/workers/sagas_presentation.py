"""How `crosstie sagas …` shows sagas: as a table, as lines, or as plain values for JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.table import Table

from crosstie.sagas.inspection import EffectState, RecordState, SagaState
from crosstie.workers import presentation

__all__ = ["saga_document", "saga_lines", "sagas_table"]


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(abs(seconds))))


def sagas_table(found: Sequence[SagaState]) -> Table:
    """A line for each saga."""
    table = presentation.table(
        "saga", "name", "mode", "age", "home", "decision", "records", "attempts", numbers=("age",)
    )
    for one in found:
        states = ", ".join(
            f"{record.participant}: {'quarantined' if record.quarantined else record.state}" for record in one.records
        )
        if one.owed:
            states = f"{states}, owed to {', '.join(one.owed)}"
        if one.effects:
            counted = Counter(effect.effect.state for effect in one.effects)
            states = ", ".join(filter(None, [states, *(f"effects {state}: {n}" for state, n in counted.items())]))
        attempts = max([record.attempts for record in one.records] + [each.effect.attempts for each in one.effects])
        header = one.header
        age = _time(one.age_s)
        table.add_row(
            header.saga_id, header.name, header.mode.value, age, header.home, one.decision, states, f"{attempts}"
        )
    return table


def saga_lines(one: SagaState, *, values: bool) -> Iterator[str]:
    """A saga in full."""
    header = one.header
    yield f"saga {header.saga_id} ({header.name!r}): {one.decision}"
    yield f"  {header.mode.value}, home {header.home}, participants {', '.join(header.participants)}"
    if one.owed:
        yield f"  owed to {', '.join(one.owed)}"
    for record in sorted(one.records, key=lambda record: -record.age_s):
        yield from _record_lines(record, values=values)
    for effect in one.effects:
        yield from _effect_lines(effect, values=values)
    for name in header.participants:
        if name not in one.errors and not any(record.participant == name for record in one.records):
            yield f"  {name}: no record"
    for name, error in one.errors.items():
        yield f"  {name}: could not be asked: {error}"


def _record_lines(record: RecordState, *, values: bool) -> Iterator[str]:
    yield (
        f"  {record.participant} ({record.role}): {record.state} for {_time(record.changed_s)}, written "
        f"{_time(record.age_s)} ago"
    )
    if record.state in {"applied", "owed", "prepared"}:
        when = "expired" if record.expires_in_s < 0 else "expires in"
        yield f"    {when} {_time(record.expires_in_s)}{' ago' if record.expires_in_s < 0 else ''}"
    if record.attempts:
        due = f"next in {_time(record.next_in_s)}" if record.next_in_s > 0 else "due"
        yield f"    {record.attempts} attempt(s) to end it, {due}"
    if record.conflict is not None:
        yield f"    quarantined: {record.conflict['conflict']}"
        for conflict in record.conflict.get("branches", {"": record.conflict}).values() if values else ():
            for image in ("expected", "found"):
                yield f"      {image}: {conflict.get(image)}"
    for entry in record.undo:
        if entry["op"] == "events":
            yield "    undo: its events are deleted"
            continue
        if entry["op"] == "locks":
            yield "    rows are locked until it is settled or undone"
            continue
        if entry["op"] == "publish":
            yield f"    redo in {entry['in']}: {len(entry['events'])} event(s) are published"
            continue
        key = presentation.row_text(entry["key"])
        way = f"redo in {entry['in']}:" if "in" in entry else "undo"
        yield f"    {way} {entry['op']} of {entry['table']} ({key}){_images(entry) if values else ''}"


def _effect_lines(one: EffectState, *, values: bool) -> Iterator[str]:
    effect = one.effect
    yield (
        f"  effect {effect.step}: {effect.state} for {_time(one.changed_s)}, compensated by {effect.compensation!r}, "
        f"key {effect.idempotency_key}"
    )
    if values:
        yield f"    arguments: {effect.arguments}"
    if effect.state == "open":
        yield f"    {'expired' if one.expires_in_s < 0 else 'expires in'} {_time(one.expires_in_s)}"
    if effect.attempts:
        due = f", next in {_time(one.next_in_s)}" if effect.state == "due" and one.next_in_s > 0 else ""
        yield f"    {effect.attempts} attempt(s) to compensate it{due}"
    if one.error is not None:
        yield f"    {one.error}"


def _images(entry: dict[str, Any] | Any) -> str:
    shown = (f"{name} {entry[name]}" for name in ("before", "after", "deltas") if name in entry)
    return ": " + "; ".join(shown)


def saga_document(one: SagaState, *, values: bool) -> dict[str, Any]:
    """For programs; times in seconds. Without `values`, what is in the rows stays out, but for their keys."""
    header = one.header
    return {
        "id": header.saga_id,
        "name": header.name,
        "mode": header.mode.value,
        "home": header.home,
        "participants": list(header.participants),
        "decision": one.decision,
        "owed": list(one.owed),
        "quarantined": one.quarantined,
        "records": [_record_document(record, values=values) for record in one.records],
        "effects": [_effect_document(effect, values=values) for effect in one.effects],
        "errors": dict(one.errors),
    }


def _record_document(record: RecordState, *, values: bool) -> dict[str, Any]:
    hidden = set() if values else {"before", "after", "deltas", "scales", "expected", "found", "events"}
    return {
        "participant": record.participant,
        "role": record.role,
        "state": record.state,
        "age_s": record.age_s,
        "changed_s": record.changed_s,
        "expires_in_s": record.expires_in_s,
        "next_in_s": record.next_in_s,
        "attempts": record.attempts,
        "conflict": None if record.conflict is None else _without(hidden, record.conflict),
        "undo": [_without(hidden, entry) for entry in record.undo],
    }


def _without(hidden: set[str], found: Mapping[str, Any]) -> dict[str, Any]:
    """What is left of a conflict or an entry, and of the conflicts of each branch in it."""
    return {
        name: {branch: _without(hidden, one) for branch, one in value.items()} if name == "branches" else value
        for name, value in found.items()
        if name not in hidden
    }


def _effect_document(one: EffectState, *, values: bool) -> dict[str, Any]:
    effect = one.effect
    return {
        "step": effect.step,
        "state": effect.state,
        "compensation": effect.compensation,
        "idempotency_key": effect.idempotency_key,
        "attempts": effect.attempts,
        "age_s": one.age_s,
        "changed_s": one.changed_s,
        "expires_in_s": one.expires_in_s,
        "next_in_s": one.next_in_s,
        "error": one.error,
    } | ({"arguments": json.loads(effect.arguments)} if values else {})

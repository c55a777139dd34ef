"""How `crosstie sagas …` shows sagas: as a table, as lines, or as plain values for JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from rich.table import Table

from crosstie.sagas.inspection import RecordState, SagaState
from crosstie.workers import presentation

__all__ = ["saga_document", "saga_lines", "sagas_table"]


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(abs(seconds))))


def _age(one: SagaState) -> float:
    return max(record.age_s for record in one.records)


def sagas_table(found: Sequence[SagaState]) -> Table:
    """A line for each saga."""
    table = presentation.table("saga", "name", "age", "home", "decision", "records", "attempts", numbers=("age",))
    for one in found:
        states = ", ".join(
            f"{record.participant}: {'quarantined' if record.quarantined else record.state}" for record in one.records
        )
        attempts = max(record.attempts for record in one.records)
        header = one.header
        table.add_row(header.saga_id, header.name, _time(_age(one)), header.home, one.decision, states, f"{attempts}")
    return table


def saga_lines(one: SagaState, *, values: bool) -> Iterator[str]:
    """A saga in full."""
    header = one.header
    yield f"saga {header.saga_id} ({header.name!r}): {one.decision}"
    yield f"  home {header.home}, participants {', '.join(header.participants)}"
    for record in sorted(one.records, key=lambda record: -record.age_s):
        yield from _record_lines(record, values=values)
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
    if record.state == "applied":
        when = "expired" if record.expires_in_s < 0 else "expires in"
        yield f"    {when} {_time(record.expires_in_s)}{' ago' if record.expires_in_s < 0 else ''}"
    if record.attempts:
        due = f"next in {_time(record.next_in_s)}" if record.next_in_s > 0 else "due"
        yield f"    {record.attempts} attempt(s) to end it, {due}"
    if record.conflict is not None:
        yield f"    quarantined: {record.conflict['conflict']}"
        if values:
            for image in ("expected", "found"):
                yield f"      {image}: {record.conflict.get(image)}"
    for entry in record.undo:
        if entry["op"] == "events":
            yield "    undo: its events are deleted"
            continue
        key = ", ".join(f"{name}={value}" for name, value in entry["key"].items())
        yield f"    undo {entry['op']} of {entry['table']} ({key}){_images(entry) if values else ''}"


def _images(entry: dict[str, Any] | Any) -> str:
    shown = (f"{name} {entry[name]}" for name in ("before", "after", "deltas") if name in entry)
    return ": " + "; ".join(shown)


def saga_document(one: SagaState, *, values: bool) -> dict[str, Any]:
    """For programs; times in seconds. Without `values`, what is in the rows stays out, but for their keys."""
    header = one.header
    return {
        "id": header.saga_id,
        "name": header.name,
        "home": header.home,
        "participants": list(header.participants),
        "decision": one.decision,
        "quarantined": one.quarantined,
        "records": [_record_document(record, values=values) for record in one.records],
        "errors": dict(one.errors),
    }


def _record_document(record: RecordState, *, values: bool) -> dict[str, Any]:
    hidden = set() if values else {"before", "after", "deltas", "scales", "expected", "found"}
    conflict = record.conflict
    return {
        "participant": record.participant,
        "role": record.role,
        "state": record.state,
        "age_s": record.age_s,
        "changed_s": record.changed_s,
        "expires_in_s": record.expires_in_s,
        "next_in_s": record.next_in_s,
        "attempts": record.attempts,
        "conflict": None if conflict is None else {k: v for k, v in conflict.items() if k not in hidden},
        "undo": [{k: v for k, v in entry.items() if k not in hidden} for entry in record.undo],
    }

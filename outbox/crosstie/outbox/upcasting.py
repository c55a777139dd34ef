"""Upcasters: stored events of older versions, raised step by step to the version that the class has now."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from crosstie.outbox.errors import EventDefinitionError, EventUnreadable

__all__ = ["Upcasters"]

F = TypeVar("F", bound=Callable[[dict[str, Any]], dict[str, Any]])


class Upcasters:
    """Those of one event class, by the version that each of them reads; it writes the next one."""

    def __init__(self, event_type: str, version: int) -> None:
        self._type = event_type
        self._version = version
        self._by_version: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}

    def add(self, from_version: int, function: F) -> F:
        """Declare one. Raises EventDefinitionError."""
        if not 0 < from_version < self._version:
            raise EventDefinitionError(
                f"an upcaster of event type {self._type!r} reads version {from_version}: expected 1 to "
                f"{self._version - 1}, since the class has __schema_version__ {self._version}."
            )
        if from_version in self._by_version:
            raise EventDefinitionError(
                f"event type {self._type!r} has two upcasters from version {from_version}: "
                f"{self._by_version[from_version].__qualname__} and {function.__qualname__}. Keep one."
            )
        self._by_version[from_version] = function
        return function

    def require_complete(self) -> None:
        """Raise EventDefinitionError where a version between the oldest one that is read and the class's has none."""
        missing = self._missing_from(min(self._by_version, default=self._version))
        if missing is not None:
            raise EventDefinitionError(
                f"event type {self._type!r} has version {self._version} and no upcaster from version {missing}, so its "
                f"upcasters lead nowhere. Declare one: @….upcast(from_version={missing})."
            )

    def raise_up(self, payload: str, version: int) -> str:
        """The payload of an older version as the class's own version has it. Raises EventUnreadable.

        Where no upcasters are declared, old events are read as they are.
        """
        if version >= self._version or not self._by_version:
            return payload
        missing = self._missing_from(version)
        if missing is not None:
            raise EventUnreadable(
                f"event type {self._type!r}: found schema version {version}, and no upcaster leads from {missing} to "
                f"{missing + 1}; the class has version {self._version}. Declare the upcaster."
            )
        fields: dict[str, Any] = json.loads(payload)
        for step in range(version, self._version):
            fields = self._apply(step, fields)
        return json.dumps(fields)

    def _missing_from(self, version: int) -> int | None:
        return next((step for step in range(version, self._version) if step not in self._by_version), None)

    def _apply(self, step: int, fields: dict[str, Any]) -> dict[str, Any]:
        function = self._by_version[step]
        where = f"event type {self._type!r}: upcaster {function.__qualname__} from version {step} to {step + 1}"
        try:
            raised: object = function(fields)
            json.dumps(raised)
        except Exception as error:
            # What the exception says may quote the event; this text is stored and shown.
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise EventUnreadable(
                f"{where} raised {type(error).__qualname__} at {Path(frame.filename).name}, line {frame.lineno}."
            ) from error
        if not isinstance(raised, Mapping):
            raise EventUnreadable(f"{where} returned {type(raised).__qualname__}: expected the dict of the fields.")
        return dict(raised)

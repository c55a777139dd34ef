"""The trace that an event belongs to: W3C `traceparent` and `tracestate` among its headers.

OpenTelemetry is an option: a process that has not imported it has no trace, and is not made to import it here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["trace_of", "traced"]


def traced(headers: Mapping[str, str]) -> Mapping[str, str]:
    """The headers, with those that name the span in which the caller runs unless they name one already."""
    if "opentelemetry.trace" not in sys.modules or "traceparent" in headers:
        return headers
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return {**carrier, **headers} if carrier else headers


def trace_of(headers: Mapping[str, str]) -> AbstractContextManager[None]:
    """Run a block in the trace that an event's headers name, so that its spans are children of the publisher's."""
    if "opentelemetry.trace" not in sys.modules or "traceparent" not in headers:
        return nullcontext()
    return _attached(headers)


@contextmanager
def _attached(headers: Mapping[str, str]) -> Iterator[None]:
    from opentelemetry import context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    token = context.attach(TraceContextTextMapPropagator().extract(headers))
    try:
        yield
    finally:
        context.detach(token)

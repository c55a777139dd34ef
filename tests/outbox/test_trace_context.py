"""An event belongs to the trace in which it was published, and its subscribers run in that trace."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from bench.databases import Pair
from bench.processes import child_environment
from crosstie.orm.transaction import transaction
from crosstie.outbox import Envelope, publish, subscriber
from crosstie.sagas import saga
from outbox import bank
from outbox.bank import Moved

SPAN = SpanContext(
    trace_id=0x0AF7651916CD43DD8448EB211C80319C,
    span_id=0xB7AD6B7169203331,
    is_remote=False,
    trace_flags=TraceFlags(TraceFlags.SAMPLED),
    trace_state=TraceState([("vendor", "x")]),
)
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_the_headers_name_the_span_of_the_publisher() -> None:
    """Those that were given by hand come first."""
    event = Moved(account="a", number=1)
    assert Envelope.of(event).headers == {}
    with trace.use_span(NonRecordingSpan(SPAN)):
        assert Envelope.of(event).headers == {"traceparent": PARENT, "tracestate": "vendor=x"}
        assert Envelope.of(event.with_headers({"traceparent": "mine"})).headers == {"traceparent": "mine"}
        assert Envelope.of(event.with_headers({"tenant": "t"})).headers["tenant"] == "t"


def test_a_subscriber_runs_in_the_trace_of_the_publisher(configured_crash_pair: Pair) -> None:
    """However the event was published; afterwards the relay is in no trace."""
    seen: list[tuple[int, int, bool]] = []

    def receive(event: Moved) -> None:
        found = trace.get_current_span().get_span_context()
        seen.append((found.trace_id, found.span_id, found.is_remote))

    subscriber(Moved, database="secondary")(receive)
    bank.open_bank()
    Moved(account="a", number=0).publish("default")
    with transaction("default") as tx:
        with trace.use_span(NonRecordingSpan(SPAN)):
            Moved(account="b", number=1).publish()
            publish(Moved(account="b", number=2), tx.connection)
        assert not trace.get_current_span().get_span_context().is_valid
    with saga("traced") as block:
        block.transaction("default").mark_written()
        with trace.use_span(NonRecordingSpan(SPAN)):
            Moved(account="b", number=3).publish()
    assert bank.drain_all() == 4
    assert sorted(seen) == [(0, 0, False)] + [(SPAN.trace_id, SPAN.span_id, True)] * 3
    assert not trace.get_current_span().get_span_context().is_valid


def test_an_unreadable_trace_hurts_nobody(configured_crash_pair: Pair) -> None:
    """Headers may be anybody's."""
    bank.open_bank()
    Moved(account="a", number=1).with_headers({"traceparent": "nonsense"}).publish("default")
    assert bank.drain_all() == 1


@pytest.mark.parametrize("module", ["crosstie.outbox", "crosstie.sagas"])
def test_opentelemetry_is_not_imported_by_us(module: str) -> None:
    """It is an option, and takes its time."""
    code = f"import sys, {module}; sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=child_environment({}), check=False).returncode == 0

"""Traces across processes: from who enqueued a job to each of its runs. Without the extra `telemetry` this does nothing, at no cost.

What is not configured is not traced: spans go where the SDK of the process sends them, or, where the standard variable
OTEL_EXPORTER_OTLP_ENDPOINT is set and no SDK was set up, to that address.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from celery import signals

from services.jobs.claims import Claim

try:
    from opentelemetry import propagate, trace
    from opentelemetry.trace import ProxyTracerProvider, SpanKind, StatusCode
except ImportError:
    AVAILABLE = False
else:
    AVAILABLE = True

# How long a process that ends waits for its last spans to be sent.
FLUSH_MILLISECONDS = 2000


def carrier() -> dict[str, str] | None:
    """Return the trace that the caller is in as W3C headers, or None outside of one."""
    if not AVAILABLE:
        return None
    headers: dict[str, str] = {}
    propagate.inject(headers)
    # Baggage may hold anything; the ledger keeps the trace only.
    return {name: headers[name] for name in ("traceparent", "tracestate") if name in headers} or None


@contextmanager
def run_span(claim: Claim, *, queue: str) -> Iterator[Callable[[str], None]]:
    """Open the span of one run, a child of the enqueuer's; call what this gives with the outcome."""
    if not AVAILABLE:
        yield _ignore
        return
    attributes: dict[str, str | int] = {
        "nightshift.job.id": str(claim.job_id),
        "nightshift.job.kind": claim.kind,
        "nightshift.job.queue": queue,
        "nightshift.job.attempt": claim.attempt,
    }
    # An exception's message may hold an address or a token, and a span leaves the house: its type must do.
    options: dict[str, Any] = {"record_exception": False, "set_status_on_exception": False}
    context = propagate.extract(claim.trace or {})
    with _tracer().start_as_current_span(claim.kind, context, SpanKind.CONSUMER, attributes, **options) as span:
        try:
            yield lambda outcome: span.set_attribute("nightshift.job.outcome", outcome)
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(StatusCode.ERROR, type(error).__name__)
            raise


def _ignore(_outcome: str) -> None:
    """Take an outcome that nobody asked for."""


@cache
def _tracer() -> "trace.Tracer":
    # With the first run, so in the process that runs it: a sender's thread would not survive the fork.
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") and isinstance(trace.get_tracer_provider(), ProxyTracerProvider):
        _send_spans()
    return trace.get_tracer("nightshift")


def _send_spans() -> None:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - only where it is asked for
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    # OTEL_SERVICE_NAME wins over the name given here.
    provider = TracerProvider(resource=Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "nightshift")}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)

    def flush(**_: Any) -> None:
        provider.force_flush(FLUSH_MILLISECONDS)

    # A child of the pool ends without running what `atexit` knows.
    signals.worker_process_shutdown.connect(flush, weak=False)

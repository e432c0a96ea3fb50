"""Traces across processes: from the caller that enqueues a job to each of the job's runs.

Without the extra `telemetry` this does nothing, at no cost. Spans go where the process has told its
OpenTelemetry SDK to send them; where it has not, to OTEL_EXPORTER_OTLP_ENDPOINT; where that is not
set, nowhere.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from celery import signals

from nightshift.jobs.claims import Claim

try:
    from opentelemetry import propagate, trace
    from opentelemetry.trace import ProxyTracerProvider, SpanKind, StatusCode
except ImportError:
    AVAILABLE = False
else:
    AVAILABLE = True

# How long a process that ends waits for its last spans to be sent.
FLUSH_MILLISECONDS = 2000


def read_trace_headers() -> dict[str, str] | None:
    """Return the caller's trace as W3C headers, or None where the caller is not traced."""
    if not AVAILABLE:
        return None
    headers: dict[str, str] = {}
    propagate.inject(headers)
    # Not the baggage, which may hold secrets.
    return {
        name: headers[name] for name in ("traceparent", "tracestate") if name in headers
    } or None


@contextmanager
def run_span(claim: Claim, *, queue: str, service: str) -> Iterator[Callable[[str], None]]:
    """Open the span of one run, a child of the span in which the job was enqueued.

    `service` is the process's name in traces, unless OTEL_SERVICE_NAME gives another. Yield a
    function, which the caller calls with the outcome.
    """
    if not AVAILABLE:
        yield lambda _outcome: None
        return
    attributes: dict[str, str | int] = {
        "nightshift.job.id": str(claim.job_id),
        "nightshift.job.kind": claim.kind,
        "nightshift.job.queue": queue,
        "nightshift.job.attempt": claim.attempt,
    }
    with _tracer(service).start_as_current_span(
        claim.kind,
        propagate.extract(claim.trace or {}),
        SpanKind.CONSUMER,
        attributes,
        # Spans go to another system, and an exception's message may hold an address or a token:
        # only the exception's type is sent.
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield lambda outcome: span.set_attribute("nightshift.job.outcome", outcome)
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(StatusCode.ERROR, type(error).__name__)
            raise


@cache
def _tracer(service: str) -> "trace.Tracer":
    # At the first run, so in the child that runs jobs: the thread that sends spans would not
    # survive the fork.
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") and isinstance(
        trace.get_tracer_provider(), ProxyTracerProvider
    ):
        _send_spans(service)
    return trace.get_tracer("nightshift")


def _send_spans(service: str) -> None:
    # PLC0415: an extra, imported only where it is used.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    # OTEL_SERVICE_NAME wins over the name given here.
    provider = TracerProvider(
        resource=Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", service)})
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)

    def flush(**_: Any) -> None:
        provider.force_flush(FLUSH_MILLISECONDS)

    # A child of the pool ends without calling the functions registered with `atexit`.
    signals.worker_process_shutdown.connect(flush, weak=False)

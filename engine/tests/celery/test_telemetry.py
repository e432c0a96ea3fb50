"""Traces from the enqueuing caller to the job's runs."""

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import probe_app
import pytest
from nightshift.celery import telemetry
from nightshift.celery.app import App
from nightshift.celery.task import job
from nightshift.component import Component, Composition
from nightshift.database import Session
from nightshift.errors import PermanentError
from nightshift.jobs import JobArgs, Run, enqueue, enqueue_many
from nightshift.jobs.models import Job
from nightshift.testing import run_due
from sqlalchemy import select

HERE = Path(__file__).parent.parent


class Traced(JobArgs, kind="probe.traced"):
    spawn: bool = False
    fail: bool = False


@job(Traced)
def traced(session: Session, args: Traced, run: Run) -> None:
    if args.fail:
        raise PermanentError("mail to jane@example.org was refused")
    if args.spawn:
        enqueue(session, Traced(), now=run.now)


OURS = Component(name="traced", kinds=(Traced,))


@pytest.fixture(scope="module")
def project_app():
    """Return the probe's app with the kinds of this module."""
    composition = Composition([*probe_app.app.composition.components, OURS])
    return App("probe_app", composition, _env_file=None)


@pytest.fixture(scope="module")
def exporter():
    if not telemetry.AVAILABLE:
        pytest.skip("OPENTELEMETRY IS NOT INSTALLED: pip install 'celery-nightshift[telemetry]'")
    pytest.importorskip(
        "opentelemetry.sdk",
        reason="OPENTELEMETRY'S SDK IS NOT INSTALLED: pip install 'celery-nightshift[telemetry]'",
    )
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(exporter):
    exporter.clear()
    return exporter.get_finished_spans


def request(app, args):
    """Enqueue as a web request would, inside a span of its own, and return that span's context."""
    from opentelemetry import trace

    with (
        trace.get_tracer("test").start_as_current_span("request") as span,
        app.runtime.unit_of_work() as session,
    ):
        enqueue(session, args, now=app.runtime.now())
    return span.get_span_context()


def test_run_is_a_child_of_the_span_that_enqueued_it(job_app, spans):
    origin = request(job_app, Traced())
    with job_app.runtime.read_only() as session:
        row = session.execute(select(Job)).scalar_one()
    assert list(row.trace) == ["traceparent"]
    assert row.trace["traceparent"].startswith(f"00-{origin.trace_id:032x}-{origin.span_id:016x}-")
    run_due(job_app)
    _, run = spans()
    assert (run.name, run.context.trace_id, run.parent.span_id) == (
        "probe.traced",
        origin.trace_id,
        origin.span_id,
    )
    assert dict(run.attributes) == {
        "nightshift.job.id": str(row.id),
        "nightshift.job.kind": "probe.traced",
        "nightshift.job.queue": "default",
        "nightshift.job.attempt": 1,
        "nightshift.job.outcome": "succeeded",
    }


def test_job_of_a_job_continues_the_trace(job_app, spans):
    origin = request(job_app, Traced(spawn=True))
    run_due(job_app)
    _, first, second = spans()
    assert {first.context.trace_id, second.context.trace_id} == {origin.trace_id}
    assert second.parent.span_id == first.context.span_id


def test_failure_is_named_by_its_type_only(job_app, spans):
    request(job_app, Traced(fail=True))
    run_due(job_app)
    run = spans()[-1]
    assert (run.attributes["nightshift.job.outcome"], run.attributes["error.type"]) == (
        "failed",
        "PermanentError",
    )
    assert (run.status.is_ok, run.status.description) == (False, "PermanentError")
    assert "jane" not in run.to_json()


def test_jobs_enqueued_outside_of_a_trace_begin_their_own(job_app, spans):
    with job_app.runtime.unit_of_work() as session:
        enqueue_many(session, [Traced(), Traced()], now=job_app.runtime.now())
        assert set(session.execute(select(Job.trace)).scalars()) == {None}
    run_due(job_app)
    assert [span.parent for span in spans()] == [None, None]


def test_nothing_happens_without_the_extra():
    program = """
import sys
sys.modules["opentelemetry"] = None
from nightshift.celery import telemetry
from nightshift.jobs.session import get_carried
from probe_app import app
assert not telemetry.AVAILABLE and telemetry.read_trace_headers() is None
with telemetry.run_span(None, queue="default", service="shop") as ended:
    ended("finished")
with app.runtime.unit_of_work() as session:
    assert get_carried(session).trace() is None
"""
    environment = {**os.environ, "DATABASE_URL": "sqlite://", "PYTHONPATH": str(HERE)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)


@pytest.mark.usefixtures("exporter")
def test_spans_are_sent_where_the_standard_variable_says():
    pytest.importorskip(
        "opentelemetry.exporter.otlp.proto.http", reason="THE OTLP EXPORTER IS NOT INSTALLED"
    )
    got = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    program = """
from datetime import UTC, datetime
from uuid import uuid4
from celery import signals
from nightshift.celery import telemetry
from nightshift.jobs.claims import Claim
now = datetime.now(UTC)
claim = Claim(uuid4(), uuid4(), "probe.sent", {}, 1, 1, now, now, None, False, None)
with telemetry.run_span(claim, queue="default", service="shop") as ended:
    ended("finished")
signals.worker_process_shutdown.send(sender=None)
import os
os._exit(0)
"""
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        environment = {
            **os.environ,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        }
        subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
        thread.join(100)
    assert [path for path, _ in got] == ["/v1/traces"]
    assert b"probe.sent" in got[0][1]
    assert b"nightshift" in got[0][1]

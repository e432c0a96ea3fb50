"""The ledger's and the components' numbers for Prometheus, read at each scrape.

docs/metrics.md says what they mean and which alerts are worth having.
"""

from collections.abc import Iterable, Iterator
from datetime import timedelta

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeHistogramMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from nightshift.component import SEVERITY, Composition, Gauge
from nightshift.database import Session
from nightshift.jobs import statistics
from nightshift.jobs.models import JobState
from nightshift.jobs.schedule import find_last_good
from nightshift.observe.probes import run_probes
from nightshift.runtime import Runtime

# Waiting and running times are of jobs that ended within this span: long enough for two scrapes,
# short enough that an alert ends soon.
LATELY = timedelta(minutes=5)


class LedgerCollector(Collector):
    """Reads the ledger at each scrape.

    When the database is away it raises, so that the scrape fails and `up` is 0.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._entries = runtime[Composition].schedule(runtime)

    def describe(self) -> Iterable[Metric]:
        """Return nothing: otherwise the registration would read the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, all read in one transaction."""
        with self._runtime.read_only() as session:
            gauges = [*self._ledger(session)]
            for read in self._runtime[Composition].metrics:
                gauges += read(self._runtime, session)
            timings = statistics.read_timings(session, over=LATELY)
        gauges.append(self._probes())
        prefix = self._runtime.settings.project_name.replace("-", "_")
        yield from (_make_gauge(prefix, gauge) for gauge in gauges)
        waits = {kind: wait for kind, (wait, _) in timings.items()}
        runs = {kind: run for kind, (_, run) in timings.items()}
        ended = "of jobs that ended in the last 5 minutes."
        yield _make_histogram(f"{prefix}_job_wait_seconds", f"From due to started, {ended}", waits)
        yield _make_histogram(f"{prefix}_job_run_seconds", f"From started to ended, {ended}", runs)

    def _ledger(self, session: Session) -> Iterator[Gauge]:
        kinds, queues = self._runtime.kinds.values(), self._runtime[Composition].queues
        # Every kind has a series from the start: a series that begins with the first failure has no
        # increase to alert on.
        jobs = {
            (kind.policy.kind, kind.policy.queue, state.value): 0
            for kind in kinds
            for state in JobState
        }
        jobs |= statistics.count_jobs(session)
        living = statistics.count_workers(
            session, silent_after=self._runtime.settings.worker_silent_after
        )
        ages = {
            queue: age.total_seconds() for queue, age in statistics.read_oldest_due(session).items()
        }
        good = {entry.job.policy.kind: find_last_good(session, entry) for entry in self._entries}
        times = {(kind,): at.timestamp() for kind, at in good.items() if at is not None}
        none = dict.fromkeys(queues, 0.0)
        yield Gauge("jobs", "Jobs in the ledger.", ("kind", "queue", "state"), jobs)
        yield Gauge(
            "oldest_due_job_seconds",
            "Seconds that the oldest due job has waited.",
            ("queue",),
            {(queue,): age for queue, age in (none | ages).items()},
        )
        workers = {(queue,): number for queue, number in (none | living).items()}
        yield Gauge("workers", "Living workers.", ("queue",), workers)
        yield Gauge(
            "last_success_timestamp_seconds",
            "When the last good run of a recurring job ended.",
            ("kind",),
            times,
        )

    def _probes(self) -> Gauge:
        # Without the probes of the broker and the machine: a scrape must not wait for a broker.
        probes = [one for one in self._runtime[Composition].probes if one.ledger]
        found = run_probes(self._runtime, probes, self._runtime.read_only)
        values = {(one.probe,): SEVERITY[one.status] for one in found}
        return Gauge("probe", "What doctor says: 0 ok, 1 warning, 2 failure.", ("probe",), values)


def _make_gauge(prefix: str, gauge: Gauge) -> Metric:
    family = GaugeMetricFamily(f"{prefix}_{gauge.name}", gauge.text, labels=gauge.labels)
    for labels, value in sorted(gauge.values.items()):
        family.add_metric(list(labels), value)
    return family


def _make_histogram(name: str, text: str, values: dict[str, statistics.Distribution]) -> Metric:
    # A gauge histogram: a job is counted for five minutes only, so rate() does not apply.
    family = GaugeHistogramMetricFamily(name, text, labels=("kind",))
    for kind, found in sorted(values.items()):
        bounds = [*map(str, statistics.BUCKETS), "+Inf"]
        buckets = list(zip(bounds, [*found.at_most, found.count], strict=True))
        family.add_metric([kind], buckets, found.total)
    return family


def render_metrics(runtime: Runtime) -> bytes:
    """Return the metrics in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(LedgerCollector(runtime))
    return generate_latest(registry)

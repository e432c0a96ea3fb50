"""The ledger's numbers for Prometheus, read at each scrape. docs/metrics.md says what they mean and which alerts are worth having."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeHistogramMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from project.bootstrap import Bootstrap
from project.celery import app
from project.celeryconfig import QUEUES
from project.schedule import entries
from services.calendars import feeds
from services.calendars.models import FeedKind
from services.jobs import metrics
from services.jobs.args import KINDS
from services.jobs.models import JobState
from services.mail import outbox
from services.mail.models import MailState

# What waiting and running times are taken over: long enough for two scrapes, short enough that an alert ends soon.
LATELY = timedelta(minutes=5)


class LedgerCollector(Collector):
    """Reads the ledger when it is scraped. An unreachable database raises, so that the scrape fails and `up` is 0."""

    def __init__(self, boot: Bootstrap) -> None:
        self._boot = boot
        # Every known kind has a series from the start: one that appears with its first failure has no increase to alert on.
        app.loader.import_default_modules()
        self._recurring = sorted({entry.job.policy.kind for entry in entries(boot.settings)})

    def describe(self) -> Iterable[Metric]:
        """Name nothing beforehand, or registering would read the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Give every metric, all read in one transaction."""
        known = {(job.policy.kind, job.policy.queue, state.value): 0 for job in KINDS.values() for state in JobState}
        with self._boot.read_only() as session:
            jobs = known | metrics.jobs(session)
            timings = metrics.timings(session, over=LATELY)
            oldest = {queue: age.total_seconds() for queue, age in metrics.oldest_due(session).items()}
            successes = metrics.last_successes(session, self._recurring)
            calendars = dict.fromkeys(FeedKind, (0, 0)) | feeds.counts(session)
            workers = metrics.workers(session, silent_after=self._boot.settings.worker_silent_after)
            mails = {(kind, state.value): 0 for kind, _ in outbox.counts(session) for state in MailState} | outbox.counts(session)
            oldest_mail, now, repeats = outbox.oldest_due(session), self._boot.now(), outbox.repeats(session)
            failing = {server.name: (now - (server.failing_since or now)).total_seconds() for server in outbox.failing(session)}
        nothing_due = dict.fromkeys(QUEUES, 0.0)
        times = {kind: moment.timestamp() for kind, moment in successes.items() if moment is not None}
        yield _gauge("nightshift_jobs", "Jobs in the ledger.", ("kind", "queue", "state"), jobs)
        yield _gauge("nightshift_oldest_due_job_seconds", "Since when the oldest due job waits.", ("queue",), nothing_due | oldest)
        yield _gauge("nightshift_workers", "Living workers.", ("queue",), dict.fromkeys(QUEUES, 0) | workers)
        yield _gauge("nightshift_last_success_timestamp_seconds", "When a recurring job last succeeded.", ("kind",), times)
        for at, name, text in ((0, "feeds", "Calendar feeds."), (1, "failed_feeds", "Those whose last build failed.")):
            yield _gauge(f"nightshift_{name}", text, ("kind",), {kind: found[at] for kind, found in calendars.items()})
        waiting = {(): (now - oldest_mail).total_seconds() if oldest_mail else 0.0}
        yield _gauge("nightshift_mails", "Messages in the outbox.", ("kind", "state"), mails)
        yield _gauge("nightshift_oldest_due_mail_seconds", "Since when the oldest due message waits.", (), waiting)
        yield _gauge("nightshift_mail_server_failing_seconds", "Since when a mail server takes no mail.", ("server",), failing)
        yield _gauge("nightshift_mail_repeats", "Messages sent again that may have been sent before.", (), {(): repeats})
        waits = {kind: wait for kind, (wait, _) in timings.items()}
        runs = {kind: run for kind, (_, run) in timings.items()}
        yield _histogram("nightshift_job_wait_seconds", "From due to started, of jobs that ended in the last 5 minutes.", waits)
        yield _histogram("nightshift_job_run_seconds", "From started to ended, of jobs that ended in the last 5 minutes.", runs)


def _gauge(name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric([key] if isinstance(key, str) else list(key), value)
    return family


def _histogram(name: str, text: str, values: dict[str, metrics.Distribution]) -> Metric:
    # A gauge histogram: what is counted leaves again after five minutes, so it takes no rate().
    family = GaugeHistogramMetricFamily(name, text, labels=("kind",))
    for kind, found in sorted(values.items()):
        bounds = [*map(str, metrics.BUCKETS), "+Inf"]
        family.add_metric([kind], list(zip(bounds, [*found.at_most, found.count], strict=True)), found.total)
    return family


def exposition(boot: Bootstrap) -> bytes:
    """Return the ledger's metrics in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(LedgerCollector(boot))
    return generate_latest(registry)

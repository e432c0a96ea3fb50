"""An app with a queue beside the default one: `celery -A two_queues jobs list`."""

from datetime import UTC, timedelta

from nightshift.celery.app import App
from nightshift.celery.task import job
from nightshift.component import Component, Composition
from nightshift.database import Session
from nightshift.jobs import JobArgs, Run
from nightshift.jobs.schedule import Entry
from nightshift.ledger import ledger
from nightshift.runtime import Runtime
from probe_app import probe


class Post(JobArgs, kind="post.send", queue="post", unique_by=()):
    """Send what lies in the tray."""


class Interrupt(JobArgs, kind="post.interrupt"):
    """Be interrupted by Ctrl-C in the first attempt."""


@job(Post)
def send(session: Session, args: Post, run: Run) -> None:
    """Send nothing. A second run does the same."""


@job(Interrupt)
def interrupt(session: Session, args: Interrupt, run: Run) -> None:
    """Interrupt the process. A second run succeeds."""
    if run.attempt == 1:
        raise KeyboardInterrupt


def make_schedule(_runtime: Runtime) -> list[Entry]:
    return [Entry("post.send", Post(), timedelta(hours=6), UTC, missed="all")]


post = Component(
    name="post", kinds=(Post, Interrupt), tasks=("two_queues",), schedule=make_schedule
)
app = App("two_queues", Composition([ledger, probe, post]))

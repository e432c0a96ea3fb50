"""The arguments of the mail's own jobs. A leaf: any module may import it."""

from datetime import timedelta

from nightshift.jobs.args import Backoff, JobArgs


class DeliverMail(
    JobArgs,
    kind="mail.deliver",
    queue="mail",
    unique_by=("lane",),
    backoff=Backoff(first=timedelta(seconds=2), cap=timedelta(minutes=1)),
    # A message that kills its process uses up the message's attempts, and the lane goes on.
    max_attempts=100,
    # A slice takes a minute at most; then one message may still wait for a slow server's answers.
    time_limit=timedelta(minutes=5),
):
    """Send a slice of the messages that are due.

    There are as many lanes as there may be connections at a time. Lane 0 starts the others.
    """

    lane: int = 0


class SweepMail(JobArgs, kind="mail.sweep", queue="mail", unique_by=()):
    """Release messages of dead senders, end those past their deadline, and start the delivery."""


class PruneMail(
    JobArgs, kind="mail.prune", queue="mail", unique_by=(), time_limit=timedelta(minutes=10)
):
    """Delete messages that ended long ago."""


class ReadBounces(
    JobArgs, kind="mail.read_bounces", queue="mail", unique_by=(), time_limit=timedelta(minutes=3)
):
    """Read what other servers report of messages that they took."""

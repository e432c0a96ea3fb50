"""The arguments of the mail's own jobs. A leaf: anyone may import it."""

from datetime import date, timedelta
from typing import Literal
from uuid import UUID

from services.jobs.args import Backoff, JobArgs
from services.school.models import KeyPurpose


class DeliverMail(
    JobArgs,
    kind="mail.deliver",
    queue="mail",
    unique_by=("lane",),
    backoff=Backoff(first=timedelta(seconds=2), cap=timedelta(minutes=1)),
    # A message that kills its process uses up its own attempts; the lane goes on with the next.
    max_attempts=100,
    # A slice takes a minute at most, and then one message may still wait for each of a slow server's answers.
    time_limit=timedelta(minutes=5),
):
    """Send a slice of what is due. There are as many lanes as connections at a time; lane 0 starts the others."""

    lane: int = 0


class SweepMail(JobArgs, kind="mail.sweep", queue="mail", unique_by=()):
    """See to what no lane has seen to."""


class PruneMail(JobArgs, kind="mail.prune", queue="mail", unique_by=(), time_limit=timedelta(minutes=10)):
    """Delete messages that ended long ago."""


class SendWelcome(JobArgs, kind="mail.send_welcome", queue="mail", unique_by=("user_id",)):
    """Welcome a user."""

    user_id: int


class SendKey(JobArgs, kind="mail.send_key", queue="mail", unique_by=("user_id", "purpose")):
    """Send a user a new key. It is made by the job, so that no argument ever holds one."""

    user_id: int
    purpose: KeyPurpose


# What happens to an event within so long becomes one mail.
SETTLED = timedelta(minutes=3)


class NoticeEvent(JobArgs, kind="mail.notice_event", queue="mail", unique_by=("event_id",), unique_until="started"):
    """Tell whom it concerns what became of an event since they were told last."""

    event_id: UUID


class QueueNotices(JobArgs, kind="mail.queue_notices", queue="mail", max_attempts=10):
    """Queue one version's notices to some of its readers."""

    event_id: UUID
    version: int
    user_ids: tuple[int, ...]


class NoticeReview(JobArgs, kind="mail.notice_review", queue="mail"):
    """Tell the reviewers that a review is requested, or the author how it ended."""

    event_id: UUID
    step: Literal["requested", "accepted", "refused"]


class SendDigests(JobArgs, kind="mail.send_digests", queue="mail", unique_by=()):
    """Send next week's events to those who asked for them."""


class QueueDigests(JobArgs, kind="mail.queue_digests", queue="mail", max_attempts=10):
    """Queue the digests of some users for the week that begins on a day."""

    week: date
    user_ids: tuple[int, ...]

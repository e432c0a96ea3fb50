"""The arguments of the letters' jobs. A leaf: any service may import it.

The kinds' names begin with `mail.`, because rows of earlier releases have these names: letters were
part of the mail then.
"""

from datetime import date, timedelta
from typing import Literal
from uuid import UUID

from nightshift.jobs.args import JobArgs

from services.school.models import KeyPurpose


class SendWelcome(JobArgs, kind="mail.send_welcome", queue="mail", unique_by=("user_id",)):
    """Welcome a user."""

    user_id: int


class SendKey(JobArgs, kind="mail.send_key", queue="mail", unique_by=("user_id", "purpose")):
    """Send a user a new key. The job makes it, so that no argument ever holds a key."""

    user_id: int
    purpose: KeyPurpose


# Changes of an event within this time become one mail.
SETTLED = timedelta(minutes=3)


class NoticeEvent(
    JobArgs,
    kind="mail.notice_event",
    queue="mail",
    unique_by=("event_id",),
    unique_until="started",
):
    """Tell the readers of an event what has changed since the last notice."""

    event_id: UUID


class QueueNotices(JobArgs, kind="mail.queue_notices", queue="mail", max_attempts=10):
    """Queue the notices that some readers of an event need since a version."""

    event_id: UUID
    version: int
    user_ids: tuple[int, ...]


# Steps of a review within this time become one mail, about the last.
REVIEW_SETTLED = timedelta(seconds=1)


class NoticeReview(
    JobArgs,
    kind="mail.notice_review",
    queue="mail",
    unique_by=("event_id", "user_ids"),
    unique_until="started",
):
    """Tell the reviewers that a review is requested, or tell the author how it ended.

    The mail is about the step that the event is at when the job runs; `step` is read only by
    workers of the release before. With `user_ids` only these users are told.
    """

    event_id: UUID
    step: Literal["requested", "accepted", "refused"]
    user_ids: tuple[int, ...] = ()


class SendDigests(JobArgs, kind="mail.send_digests", queue="mail", unique_by=()):
    """Send this week's events to the users who want a digest."""


class QueueDigests(JobArgs, kind="mail.queue_digests", queue="mail", max_attempts=10):
    """Queue the digests of some users for the week that begins on `week`."""

    week: date
    user_ids: tuple[int, ...]

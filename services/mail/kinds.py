"""Every kind of mail there is, and how it is sent."""

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Kind:
    """How mail of one kind is sent.

    After `lasts` it is not sent any more; None: when the event that it is about has passed. With `resend` it is sent again when nobody
    knows whether it was sent. What a `sensitive` one says is shown to nobody and erased once it is sent. `wanted_by` is the flag of
    a User who wants such mail; it then carries a link to turn it off.
    """

    lasts: timedelta | None
    resend: bool = True
    sensitive: bool = False
    wanted_by: str | None = None


KINDS = {
    # The address of a calendar is as good as a password to it.
    "welcome": Kind(timedelta(days=7), sensitive=True),
    "verify_address": Kind(timedelta(days=1), resend=False, sensitive=True),
    "reset_password": Kind(timedelta(hours=1), resend=False, sensitive=True),
    "event_published": Kind(None, wanted_by="mail_events"),
    "event_changed": Kind(None, wanted_by="mail_events"),
    "event_cancelled": Kind(None, wanted_by="mail_events"),
    "review_requested": Kind(timedelta(days=7), wanted_by="mail_reviews"),
    "review_accepted": Kind(timedelta(days=7)),
    "review_refused": Kind(timedelta(days=7)),
    "digest": Kind(timedelta(days=2), wanted_by="mail_digest"),
    "invitation": Kind(None),
    "invitation_cancelled": Kind(None),
}

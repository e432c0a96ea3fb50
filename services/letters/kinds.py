"""Every kind of letter, and how it is sent."""

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Kind:
    """How letters of one kind are sent.

    A letter is not sent after `lasts`; None: after its event is over. `resend`: send it again when
    it is unknown whether it was sent. The text of a `sensitive` letter is never shown, and is
    erased once it is sent. `wanted_by` is the flag of a User who wants such letters; the letter
    then carries a link that turns the flag off. Mail programs show `threaded` letters about one
    thing together.
    """

    lasts: timedelta | None
    resend: bool = True
    sensitive: bool = False
    wanted_by: str | None = None
    threaded: bool = False


LETTERS = {
    # Anyone who has the address of a calendar can read it.
    "welcome": Kind(timedelta(days=7), sensitive=True),
    "verify_address": Kind(timedelta(days=1), resend=False, sensitive=True),
    "reset_password": Kind(timedelta(hours=1), resend=False, sensitive=True),
    "event_published": Kind(None, wanted_by="mail_events", threaded=True),
    "event_changed": Kind(None, wanted_by="mail_events", threaded=True),
    "event_cancelled": Kind(None, wanted_by="mail_events", threaded=True),
    "review_requested": Kind(timedelta(days=7), wanted_by="mail_reviews", threaded=True),
    "review_accepted": Kind(timedelta(days=7), threaded=True),
    "review_refused": Kind(timedelta(days=7), threaded=True),
    "digest": Kind(timedelta(days=2), wanted_by="mail_digest"),
    "invitation": Kind(None, threaded=True),
    "invitation_cancelled": Kind(None, threaded=True),
}

"""Send an alert: by mail through the outbox, or to a webhook."""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.message import EmailMessage
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from nightshift.database import Session
from nightshift.errors import TransientError

from services.alerts.jobs import SendAlert
from services.mail import outbox

TIMEOUT = 10.0
# An alert that could not be sent for a day says nothing any more.
LASTS = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class AlertTerms:
    """Where alerts go: one of `address` and `webhook`. `name` is the installation's."""

    name: str
    sender: str
    address: str = ""
    webhook: str = ""


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_args: object, **_options: object) -> None:
        """Refuse: the address may hold a secret, which is for one host."""


def make_text(alert: SendAlert) -> str:
    """Return what an alert says, a line for each thing."""
    return "\n".join([*alert.lines, "", "`celery -A project doctor` says what to do."])


def queue_mail(session: Session, alert: SendAlert, terms: AlertTerms, *, now: datetime) -> None:
    """Queue an alert's mail. A second run queues no other."""
    content = EmailMessage()
    content["From"] = terms.sender
    content["Subject"] = f"{terms.name}: {_summarise(alert)}"
    content.set_content(make_text(alert) + "\n")
    message = outbox.Message(
        kind="alert",
        dedupe_key=f"alert:{alert.after}:{alert.until.isoformat()}",
        recipient=terms.address,
        content=content,
        expires_at=now + LASTS,
        priority=9,
    )
    outbox.queue(session, message, now=now)


def post(alert: SendAlert, terms: AlertTerms) -> None:
    """Post an alert to the webhook as JSON; `text` is what chat programs show.

    Raises TransientError when it is not taken. A second run posts it again.
    """
    said = {
        "project": terms.name,
        "text": f"{terms.name}: {make_text(alert)}",
        "lines": alert.lines,
        "failing": alert.failing,
        "after": alert.after,
    }
    request = Request(  # noqa: S310 - the settings allow http and https only
        terms.webhook, json.dumps(said).encode(), {"content-type": "application/json"}
    )
    try:
        with build_opener(_NoRedirects).open(request, timeout=TIMEOUT):
            return
    except HTTPError as error:
        # It is the answer, too.
        error.close()
        raise TransientError(f"the webhook answers {error.code}") from error
    except OSError as error:
        # Not its text, which may hold the address.
        raise TransientError(f"the webhook does not answer: {type(error).__name__}") from error


def _summarise(alert: SendAlert) -> str:
    """Return a subject: what fails, or that nothing does any more."""
    if alert.failing:
        return f"{', '.join(alert.failing)[:100]} fails"
    return "jobs failed" if "failed for good" in alert.lines[-1] else "nothing fails any more"

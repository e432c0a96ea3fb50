"""The alerts' job."""

from nightshift.celery.task import job
from nightshift.jobs import Run

from services.alerts import sending
from services.alerts.jobs import SendAlert
from services.alerts.sending import AlertTerms


@job(SendAlert, own_transactions=True)
def send_alert(args: SendAlert, run: Run) -> None:
    """Send an alert. A second run queues no other mail, and posts to a webhook again."""
    terms = run.runtime[AlertTerms]
    if terms.webhook:
        sending.post(args, terms)
    elif terms.address:
        with run.unit_of_work() as session:
            sending.queue_mail(session, args, terms, now=run.now)

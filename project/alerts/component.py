"""What the alerts contribute: each keeper looks for what is to be told, and a job tells it."""

from datetime import timedelta

from nightshift.component import Component, Composition, Duty, Status
from nightshift.jobs import enqueue
from nightshift.observe.probes import run_probes
from nightshift.runtime import Runtime

from project.alerts.settings import AlertSettings
from project.mail.settings import MailSettings
from services.alerts import news
from services.alerts.jobs import SendAlert
from services.alerts.sending import AlertTerms

LOOK_EVERY = timedelta(seconds=20)


def make_terms(runtime: Runtime) -> AlertTerms:
    """Return where alerts go, by the settings."""
    to = runtime[AlertSettings].alerts_to.get_secret_value()
    address = to.removeprefix("mailto:") if to.startswith("mailto:") else ""
    return AlertTerms(
        name=runtime.settings.project_name,
        sender=runtime[MailSettings].mail_from,
        address=address,
        webhook="" if address else to,
    )


def look(runtime: Runtime) -> None:
    """Enqueue an alert where something turned. Of several keepers' alerts one is sent."""
    if not runtime[AlertSettings].alerts_to.get_secret_value():
        return
    # Not the broker's: a look must not wait for it, and without it no alert is sent.
    probes = [probe for probe in runtime[Composition].probes if not probe.broker]
    found = run_probes(runtime, probes, runtime.read_only)
    failing = {one.probe: one.detail for one in found if one.status is Status.FAIL}
    with runtime.unit_of_work() as session:
        alert = news.find(session, failing, now=runtime.now())
        if alert is not None:
            enqueue(session, alert, now=runtime.now())


alerts = Component(
    name="alerts",
    kinds=(SendAlert,),
    tasks=("tasks.alerts",),
    settings=AlertSettings,
    provides={AlertTerms: make_terms},
    duties=(Duty("alerts", look, every=LOOK_EVERY),),
)

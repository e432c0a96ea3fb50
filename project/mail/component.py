"""What the mail contributes: the outbox, its delivery, and the commands that manage both."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, timedelta
from functools import partial

from nightshift.component import Answer, Component, Gauge, Probe, Status
from nightshift.database import Session
from nightshift.jobs import Backoff
from nightshift.jobs.schedule import Entry
from nightshift.observe.checks import OVERDUE_AFTER, show_time
from nightshift.runtime import Runtime

from project.mail.settings import MailSettings
from services.mail import bounces, outbox
from services.mail.bounces import Complaints, make_return_path
from services.mail.delivery import Terms
from services.mail.jobs import DeliverMail, PruneMail, ReadBounces, SweepMail
from services.mail.mailbox import open_mailbox
from services.mail.models import MailState
from services.mail.outbox import MailCheck
from services.mail.runtime import BounceDesk, Mailer, MailRetention
from services.mail.transport import open_transport


def make_mailer(runtime: Runtime) -> Mailer:
    """Return where mail is sent, by the settings. It connects when it first sends."""
    settings = runtime[MailSettings]
    password = settings.mail_password.get_secret_value()
    transport = open_transport(settings.mail_url, password=password)
    first = settings.mail_retry_after
    terms = Terms(
        server=transport.name,
        sender=settings.mail_sender,
        concurrency=settings.mail_concurrency,
        rate=settings.mail_rate,
        backoff=Backoff(first=first),
        # All messages wait for a server that is away, so it is asked sooner and more often than for
        # a message that it put off.
        away=Backoff(first=first / 12, cap=first * 5),
        sign=_find_signer(settings),
    )
    return Mailer(transport, terms, runtime.find(MailCheck))


def _find_signer(settings: MailSettings) -> Callable[[int], str] | None:
    if not settings.bounce_address:
        return None
    secret = settings.bounce_secret.get_secret_value()
    return partial(make_return_path, settings.bounce_address, secret)


def make_bounce_desk(runtime: Runtime) -> BounceDesk:
    """Return where reports of undelivered mail arrive, by the settings."""
    settings = runtime[MailSettings]
    password = settings.bounce_mailbox_password.get_secret_value()
    box = settings.bounce_mailbox
    return BounceDesk(
        settings.bounce_secret.get_secret_value(),
        open_mailbox(box, password=password) if box else None,
        runtime.find(Complaints),
    )


def make_retention(runtime: Runtime) -> MailRetention:
    """Return how long messages are kept, by the settings."""
    settings = runtime[MailSettings]
    return MailRetention(sent=settings.mail_keep_sent, others=settings.mail_keep_failed)


def make_schedule(runtime: Runtime) -> Sequence[Entry]:
    """Return the mail's recurring jobs."""
    reading = Entry("mail.bounces", ReadBounces(), timedelta(minutes=5), UTC, missed="latest")
    return [
        *([reading] if runtime[MailSettings].bounce_mailbox else []),
        # A safety net: queueing a message, and a lane that ends, enqueue the next job themselves.
        Entry("mail.sweep", SweepMail(), timedelta(minutes=5), UTC, missed="latest"),
        Entry("mail.prune", PruneMail(), "27 3 * * *", UTC, missed="latest"),
    ]


def check_mail(runtime: Runtime, session: Session) -> Answer:
    """Fail while a server takes no mail; warn of overdue messages and of undecided ones."""
    for server in outbox.find_failing_servers(session):
        since = show_time(server.failing_since or runtime.now())
        return Status.FAIL, f"{server.name} takes no mail since {since}: {server.error}"
    undecided, oldest = outbox.count_undecided(session), outbox.find_oldest_due(session)
    said = "none waits for a person"
    if undecided:
        said = f"{undecided} may have been sent, and wait for `celery -A project mail retry ID`"
    if oldest is not None and runtime.now() - oldest > OVERDUE_AFTER:
        return Status.WARN, f"one is due since {show_time(oldest)}; {said}"
    return Status.WARN if undecided else Status.OK, said


def read_metrics(runtime: Runtime, session: Session) -> Iterator[Gauge]:
    """Yield the outbox's numbers."""
    now, counts = runtime.now(), outbox.count_mails(session)
    states = {(kind, state.value): 0 for kind, _ in counts for state in MailState}
    oldest = outbox.find_oldest_due(session)
    waited = (now - oldest).total_seconds() if oldest else 0.0
    failing = {
        (server.name,): (now - (server.failing_since or now)).total_seconds()
        for server in outbox.find_failing_servers(session)
    }
    yield Gauge("mails", "Messages in the outbox.", ("kind", "state"), states | counts)
    yield Gauge(
        "oldest_due_mail_seconds",
        "Seconds that the oldest due message has waited.",
        (),
        {(): waited},
    )
    yield Gauge(
        "mail_server_failing_seconds",
        "Seconds since a mail server last took mail.",
        ("server",),
        failing,
    )
    yield Gauge(
        "mail_bounces",
        "Reports of other servers on messages that they took.",
        ("kind", "ours"),
        bounces.count_bounces(session),
    )
    yield Gauge(
        "mail_repeats",
        "Messages sent again that may have been sent before.",
        (),
        {(): outbox.count_repeats(session)},
    )


mail = Component(
    name="mail",
    models=("services.mail.models",),
    migrations="mail",
    kinds=(DeliverMail, SweepMail, PruneMail, ReadBounces),
    tasks=("tasks.mail",),
    settings=MailSettings,
    schedule=make_schedule,
    provides={
        Mailer: make_mailer,
        MailRetention: make_retention,
        BounceDesk: make_bounce_desk,
    },
    probes=(
        Probe(
            "mail",
            check_mail,
            "fix what it names, or MAIL_URL; waiting mail is then sent by itself."
            " `celery -A project mail list` shows messages",
        ),
    ),
    metrics=(read_metrics,),
    routes="project.mail.routes:make_routes",
    front="project.mail.routes:show_mails",
    desk="project.mail.desk:make_part",
    commands={"mail": "project.mail.cli:mail"},
)

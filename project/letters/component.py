"""What the letters contribute: the school's mails, and the pages that they link to."""

from collections.abc import Sequence
from email.headerregistry import Address

from nightshift.component import Component
from nightshift.jobs.schedule import Entry
from nightshift.runtime import Runtime

from project.letters.settings import LetterSettings
from project.mail.settings import MailSettings
from project.school.settings import SchoolSettings
from services.calendars.agendas import make_reader
from services.calendars.sync import Rules
from services.letters.checks import make_check
from services.letters.jobs import (
    NoticeEvent,
    NoticeReview,
    QueueDigests,
    QueueNotices,
    SendDigests,
    SendKey,
    SendWelcome,
)
from services.letters.rules import LetterRules
from services.letters.unsubscribe import turn_off_after_complaint
from services.mail.bounces import Complaints
from services.mail.outbox import MailCheck


def make_rules(runtime: Runtime) -> LetterRules:
    """Return the school's settings that letters are made by."""
    school, mail = runtime[SchoolSettings], runtime[MailSettings]
    sender = mail.mail_from
    if sender == MailSettings.model_fields["mail_from"].default:
        # MAIL_FROM was not changed: the school is the sender.
        sender = str(Address(school.school_name, addr_spec=mail.mail_sender))
    return LetterRules(
        sender=sender,
        school_name=school.school_name,
        public_url=runtime.settings.public_url.rstrip("/"),
        zone=school.school_timezone,
        link_secret=runtime[LetterSettings].link_secret.get_secret_value(),
    )


def provide_check(runtime: Runtime) -> MailCheck:
    """Return what is looked at right before a letter is sent."""
    return make_check(runtime[LetterRules], make_reader(runtime[Rules], runtime.now))


def provide_complaints(_runtime: Runtime) -> Complaints:
    """Return what a reader's complaint about a letter does."""
    return Complaints(turn_off_after_complaint)


def make_schedule(runtime: Runtime) -> Sequence[Entry]:
    """Return the weekly digest."""
    zone = runtime[SchoolSettings].school_timezone
    return [Entry("mail.digest", SendDigests(), "0 6 * * mon", zone, missed="latest")]


letters = Component(
    name="letters",
    models=("services.letters.models",),
    migrations="school",
    kinds=(
        SendWelcome,
        SendKey,
        NoticeEvent,
        QueueNotices,
        NoticeReview,
        SendDigests,
        QueueDigests,
    ),
    # They wait with the mails that they make.
    shared_queues=("mail",),
    tasks=("tasks.letters",),
    settings=LetterSettings,
    schedule=make_schedule,
    provides={LetterRules: make_rules, MailCheck: provide_check, Complaints: provide_complaints},
    needs={"worker": ("link_secret",), "web": ("link_secret",)},
    routes="project.letters.routes:make_routes",
    commands={"letters": "project.letters.cli:letters"},
)

"""What the letters' component makes of the settings."""

from zoneinfo import ZoneInfo

from project.settings import NAME
from services.letters.rules import LetterRules
from tests.conftest import make_runtime


def test_rules_are_those_of_the_settings():
    runtime = make_runtime(
        mail_from="School <office@school.example>",
        school_name="Kantonsschule Seefeld",
        public_url="https://calendar.school.example/",
        school_timezone="Europe/Paris",
        link_secret="one of our own",
    )

    assert runtime[LetterRules] == LetterRules(
        sender="School <office@school.example>",
        school_name="Kantonsschule Seefeld",
        public_url="https://calendar.school.example",
        zone=ZoneInfo("Europe/Paris"),
        link_secret="one of our own",
    )


def test_letters_come_from_the_school_until_a_sender_is_named():
    rules = make_runtime(school_name="Kantonsschule, Seefeld")[LetterRules]

    assert rules.sender == f'"Kantonsschule, Seefeld" <noreply@{NAME}.example>'


def test_digest_is_sent_on_monday_by_the_clock_of_the_school(job_app):
    entries = {entry.name: entry for entry in job_app.composition.schedule(job_app.runtime)}

    digest = entries["mail.digest"]
    assert (digest.when, digest.missed, str(digest.zone)) == (
        "0 6 * * mon",
        "latest",
        "Europe/Zurich",
    )


def test_letters_wait_on_the_queue_of_the_mail(job_app):
    queues = {kind.policy.queue for kind in job_app.composition.kinds.values()}

    assert queues == {"default", "calendars", "mail"}

"""A school whose events are told by mail, and what a worker would do for it."""

from collections import Counter
from datetime import date, time
from email import message_from_bytes
from email.policy import default
from functools import partial
from uuid import uuid4

import pytest
from nightshift.database import Session
from nightshift.jobs import Run, claims, enqueue
from nightshift.jobs.models import Job
from nightshift.jobs.session import get_carried
from sqlalchemy import delete, select, update

from services.calendars import audience, revisions
from services.letters import notices
from services.letters.jobs import NoticeEvent, QueueNotices
from services.letters.rules import LetterRules
from services.mail.models import Mail, MailState
from services.school import events
from services.school.models import (
    Lesson,
    LessonClass,
    LessonTeacher,
    Role,
    SchoolClass,
    Semester,
    User,
)
from services.translation import Locale
from tests.conftest import NOW, ZONE
from tests.one_session import OneSession
from tests.reading import read_bodies

RULES = LetterRules(
    "Gymnasium <noreply@school.example>",
    "Gymnasium",
    "https://calendar.school.example",
    ZONE,
    "a secret",
)
DOMAIN = "school.example"


class School:
    """A school of two classes.

    In 27Ga are ann, off (who wants no mail) and fred, in 27Gb is bob. There are a teacher of both,
    two administrators, of whom quiet wants no mail about reviews, and a guest.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        first, second = SchoolClass(name="27Ga"), SchoolClass(name="27Gb")
        session.add_all([first, second])
        session.flush()
        self.ids = {
            name: self.add(name, role, class_id=class_id, **flags)
            for name, role, class_id, flags in (
                ("ann", Role.STUDENT, first.id, {}),
                ("off", Role.STUDENT, first.id, {"mail_events": False}),
                ("fred", Role.STUDENT, first.id, {"locale": Locale.FRENCH}),
                ("bob", Role.STUDENT, second.id, {}),
                ("teacher", Role.TEACHER, None, {}),
                ("admin", Role.ADMIN, None, {}),
                ("quiet", Role.ADMIN, None, {"mail_reviews": False}),
                ("guest", Role.TEACHER, None, {}),
            )
        }
        semester = Semester(name="autumn", starts_on=date(2026, 8, 1), ends_on=date(2027, 1, 31))
        session.add(semester)
        session.flush()
        # On Tuesdays: the events below are on one.
        lesson = Lesson(
            key="1",
            semester_id=semester.id,
            weekday=2,
            starts=time(8),
            ends=time(9),
            subject="Maths",
        )
        session.add(lesson)
        session.flush()
        session.add_all(
            LessonClass(lesson_id=lesson.id, class_id=one.id) for one in (first, second)
        )
        session.add(LessonTeacher(lesson_id=lesson.id, user_id=self.ids["teacher"]))
        session.flush()
        # Whose calendars show every event.
        self.shown = list(self.ids.values())
        self.names = {user_id: name for name, user_id in self.ids.items()}

    def add(self, name: str, role: Role, **values: object) -> int:
        user = User(
            email=f"{name}@school.example",
            first_name=name.title(),
            last_name="Muster",
            role=role,
            created_at=NOW,
        )
        for field, value in ({"locale": Locale.ENGLISH} | values).items():
            setattr(user, field, value)
        self.session.add(user)
        self.session.flush()
        return user.id

    def draft(self, **values: object):
        said = {
            "title": "Trip",
            "starts": "2026-12-01T08:00",
            "ends": "2026-12-01T12:00",
            "classes": ("27Ga",),
        } | values
        author = said.pop("author", None)
        return events.create(
            self.session, events.read_details(said, zone=ZONE), author=author, zone=ZONE, now=NOW
        )

    def published(self, **values: object):
        event = self.draft(**values)
        events.submit(self.session, event.id, now=NOW)
        return events.publish(self.session, event.id, now=NOW)

    def change(self, event, **changes: object) -> None:
        version = events.edit(self.session, event.id, changes, zone=ZONE, now=NOW)
        events.submit(self.session, version.id, now=NOW)
        events.publish(self.session, version.id, now=NOW)

    def run(self, args, *, now=NOW) -> Run:
        """Begin a job as a worker would, after deleting the others."""
        self.session.execute(delete(Job))
        return self.begin(self.session, args, now=now)

    @staticmethod
    def begin(session: Session, args, *, now=NOW) -> Run:
        # As in a session of a Runtime, its body may spawn.
        get_carried(session).guarded = True
        job_id = enqueue(session, args, now=now)
        claim = claims.Claim(
            job_id, uuid4(), args.policy.kind, {}, 1, 5, now, now, None, counted=False, trace=None
        )
        return Run(claim, OneSession(session))

    @staticmethod
    def notice(session: Session, run: Run, event_id):
        affected = partial(audience.find_affected, zone=ZONE)
        revise = partial(revisions.revise, domain=DOMAIN, zone=ZONE)
        return notices.write_notice(
            session, run, event_id, affected=affected, revise=revise, rules=RULES
        )

    def spawned(self, kind) -> list:
        """Return the arguments of the jobs of a kind that wait, in order."""
        rows = self.session.execute(select(Job.args).where(Job.kind == kind.policy.kind)).scalars()
        return sorted((kind.from_row(args) for args in rows), key=lambda args: args.user_ids)

    def plan(self, event, *, now=NOW) -> list[QueueNotices]:
        self.notice(self.session, self.run(NoticeEvent(event_id=event.id), now=now), event.id)
        self.session.flush()
        return self.spawned(QueueNotices)

    def queue(self, event, *, now=NOW) -> dict[str, str]:
        """Do all jobs of a notice, and return the kind of mail for each person, by name.

        That one person gets two is a mistake.
        """
        before = set(self.session.execute(select(Mail.id)).scalars())
        for args in self.plan(event, now=now):
            self.queue_some(args, now=now)
        return self.since(before)

    def queue_some(self, args, *, now=NOW):
        return notices.queue_notices(
            self.session, args, RULES, shown=lambda *_: set(self.shown), now=now
        )

    def tell(self, event, *, now=NOW) -> dict[str, str]:
        """Do the same, and let the server take all mails that wait."""
        queued = self.queue(event, now=now)
        self.deliver()
        return queued

    def deliver(self) -> None:
        waiting = update(Mail).where(Mail.state == MailState.QUEUED)
        self.session.execute(waiting.values(state=MailState.SENT, ended_at=NOW))

    def since(self, before: set[int]) -> dict[str, str]:
        rows = self.session.execute(
            select(Mail.recipient, Mail.kind).where(Mail.id.not_in(before))
        ).all()
        assert max(Counter(address for address, _ in rows).values(), default=1) == 1
        return {address.partition("@")[0]: kind for address, kind in rows}

    def mail(self, name: str):
        """Return the last mail to a person, parsed."""
        query = (
            select(Mail.body)
            .where(Mail.recipient == f"{name}@school.example")
            .order_by(Mail.id.desc())
            .limit(1)
        )
        return message_from_bytes(self.session.execute(query).scalar_one(), policy=default)

    def text(self, name: str) -> str:
        return read_bodies(self.mail(name))[0].partition("\n-- \n")[0]


@pytest.fixture
def school(session: Session) -> School:
    return School(session)

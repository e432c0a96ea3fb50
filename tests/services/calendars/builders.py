"""A small school, and a way to build its feeds: for the tests of the calendars."""

from datetime import UTC, date, datetime, time, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from icalendar import Calendar
from nightshift.database import Session
from sqlalchemy import select

from services.calendars import feeds, revisions
from services.calendars.models import Feed, FeedKind
from services.calendars.store import FeedStore
from services.calendars.window import Window
from services.school.models import (
    Audience,
    Department,
    Event,
    EventClass,
    EventState,
    Lesson,
    LessonChange,
    LessonChangeTeacher,
    Role,
    SchoolClass,
    Subscription,
    User,
)
from services.translation import Locale

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ZONE = ZoneInfo("Europe/Zurich")
WINDOW = Window.around(NOW, ZONE, days_past=31, days_ahead=465)
SCHOOL_NAME, DOMAIN = "Kantonsschule", "school.example"
RUN, NEXT_RUN = UUID(int=1), UUID(int=2)


def person(name: str, role: Role, **values: Any) -> User:
    return User(
        email=f"{name.lower()}@school.example",
        first_name=name,
        last_name="Muster",
        role=role,
        created_at=NOW,
        **values,
    )


def published(**values: Any) -> dict[str, Any]:
    return {"state": EventState.PUBLISHED, "created_at": NOW} | values


def timed(number: int, **values: Any) -> Event:
    starts = datetime(2026, 12, 1, 8, tzinfo=UTC)
    return Event(
        **{"id": UUID(int=number), "starts_at": starts, "ends_at": starts + timedelta(hours=1)}
        | published(**values)
    )


def revise(session: Session, now: datetime = NOW) -> int:
    session.flush()
    return record(session, list(revisions.find_outdated(session, WINDOW, domain=DOMAIN)), now)


def record(session: Session, found: list[revisions.OutdatedEvent], now: datetime) -> int:
    ids = [change.event_id for change in found]
    return revisions.record(session, WINDOW, found, domain=DOMAIN, now=now, event_ids=ids)


def build(
    session: Session,
    store: FeedStore,
    *,
    now: datetime = NOW,
    run_id: UUID = RUN,
    name: str = SCHOOL_NAME,
) -> dict[str, Any]:
    """Bring everything up to date, as a run does."""
    revise(session, now)
    feeds.add_missing(session)
    ids = session.scalars(select(Feed.id).order_by(Feed.id)).all()
    return feeds.build(
        session, WINDOW, store, school_name=name, feed_ids=ids, run_id=run_id, now=now
    )


def row(session: Session, kind: FeedKind, owner_id: int) -> Feed:
    query = (
        select(Feed)
        .where(Feed.kind == kind, Feed.owner_id == owner_id)
        .execution_options(populate_existing=True)
    )
    return session.execute(query).scalar_one()


def titles(data: bytes | None) -> list[str]:
    assert data is not None
    return [str(component["SUMMARY"]) for component in Calendar.from_ical(data).walk("VEVENT")]


def counts(built: int, unchanged: int, failed: int = 0) -> dict[str, Any]:
    return {"built": built, "unchanged": unchanged, "failed": failed, "errors": []}


def change_lessons(session: Session) -> None:
    """Change lessons of the example school on a Monday: cancelled, moved, by a substitute."""
    day = date(2026, 11, 30)
    ids = dict(session.execute(select(Lesson.key, Lesson.id)).all())
    teachers = session.scalars(select(User.id).where(User.role == Role.TEACHER).order_by(User.id))
    *_, substitute = teachers
    session.add_all(
        [
            LessonChange(lesson_id=ids["H26-001"], taken_on=day, cancelled=True),
            LessonChange(
                lesson_id=ids["H26-002"],
                taken_on=day,
                moved_to=date(2026, 12, 1),
                starts=time(8),
                ends=time(9),
            ),
            taught := LessonChange(lesson_id=ids["H26-004"], taken_on=day, substituted=True),
        ]
    )
    session.flush()
    session.add(LessonChangeTeacher(change_id=taught.id, user_id=substitute))
    session.flush()


def make_school(session: Session) -> SimpleNamespace:
    """Add two departments, two classes, four people and two events, one for the whole school.

    Kim is entitled to no calendar.
    """
    gymnasium = Department(name="Gymnasium")
    bilingue = Department(name="Filière bilingue", locale=Locale.FRENCH)
    session.add_all([gymnasium, bilingue])
    session.flush()
    class_ga = SchoolClass(name="27Ga", department_id=gymnasium.id)
    class_ba = SchoolClass(name="28Ba", display_name="Maturité bilingue", department_id=bilingue.id)
    session.add_all([class_ga, class_ba])
    session.flush()
    anna = person("Anna", Role.STUDENT, untis_id="S1", class_id=class_ga.id, locale=Locale.ENGLISH)
    juerg = person("Jürg", Role.TEACHER, untis_id="MÜL")
    peter, kim = person("Peter", Role.TEACHER), person("Kim", Role.STUDENT)
    trip = Event(
        id=UUID(int=11),
        title="Studienreise",
        location="Wien",
        starts_on=date(2026, 12, 7),
        ends_on=date(2026, 12, 11),
        **published(),
    )
    assembly = timed(12, title="Versammlung", audience=Audience.ALL)
    session.add_all([anna, juerg, peter, kim, trip, assembly])
    session.flush()
    session.add_all(
        [Subscription(user_id=peter.id), EventClass(event_id=trip.id, class_id=class_ga.id)]
    )
    session.flush()
    return SimpleNamespace(**{name: value for name, value in locals().items() if name != "session"})

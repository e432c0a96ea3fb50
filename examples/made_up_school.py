"""Make up a believable Swiss school of any size: `python examples/made_up_school.py --users 500`.

It fills the database that the settings name, which must have its tables and no school yet. The same
seed makes the same school on the same day. Run it in the project's folder; in the containers:
`docker compose exec worker python examples/made_up_school.py`.
"""

from bisect import bisect
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from itertools import accumulate, count
from random import Random
from typing import Any, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import click
from nightshift.celery.app import App
from nightshift.cli.output import refusals
from nightshift.component import Composition
from nightshift.database import Base, Session
from nightshift.errors import Conflict, InvalidInput
from sqlalchemy import Table, insert, select

from project.app import COMPONENTS
from project.school.settings import SchoolSettings
from services.school.models import (
    CLASS_GROUP_LENGTH,
    Audience,
    Department,
    Event,
    EventClass,
    EventClassGroup,
    EventDepartment,
    EventState,
    EventUser,
    IgnoredEvent,
    Lesson,
    LessonClass,
    LessonTeacher,
    Role,
    SchoolClass,
    Semester,
    SubscribedClass,
    SubscribedDepartment,
    Subscription,
    TeachingAffected,
    User,
)
from services.translation import Locale

__all__ = ["generate"]

# What this makes in memory at once.
SIZE = click.IntRange(1, 1_000_000)

LESSONS_A_WEEK = 20
JULY = 7
PERIODS = [
    time(7, 45),
    time(8, 35),
    time(9, 40),
    time(10, 30),
    time(11, 20),
    time(13, 10),
    time(14, 0),
    time(14, 55),
    time(15, 45),
]
PERIOD = timedelta(minutes=45)
SLOTS = [(weekday, starts) for weekday in range(1, 6) for starts in PERIODS]
ENDS = {starts: (datetime.combine(date.min, starts) + PERIOD).time() for starts in PERIODS}
FIRST_DAY, LAST_DAY = -31, 465
BLOCK = 10_000

FIELDS = [
    "Gymnasium",
    "Wirtschaft",
    "Informatik",
    "Gestaltung",
    "Pädagogik",
    "Technik",
    "Gesundheit",
    "Français",
    "Musik",
    "Sport",
]
FIRST_NAMES = [
    "Anna", "Beat", "Chloé", "Daniela", "Élodie", "Fabian", "Giulia", "Hanspeter", "Ivana",
    "Jérôme", "Köbi", "Lea", "Mélanie", "Nino", "Özlem", "Pascal", "Quirin", "Rahel", "Sören",
    "Zoé", "Jürg", "Käthi", "François",
]  # fmt: skip
LAST_NAMES = [
    "Müller", "Meier", "Schmid", "Keller", "Weber", "Huber", "Steiner", "Gerber", "Frei", "Moser",
    "Wyss", "Bühler", "Lüthi", "Favre", "Rochat", "Dubois", "Bernasconi", "Aebischer", "Zürcher",
    "Krähenbühl", "Çelik", "Petrović", "Nguyen", "da Silva",
]  # fmt: skip
ASCII = str.maketrans(
    {
        "ü": "ue",
        "ö": "oe",
        "Ö": "Oe",
        "ä": "ae",
        "é": "e",
        "É": "E",
        "ô": "o",
        "ç": "c",
        "Ç": "C",
        "ć": "c",
        " ": "",
    }
)
SUBJECTS = [
    "Deutsch", "Mathematik", "Französisch", "Englisch", "Physik", "Chemie", "Biologie",
    "Geschichte", "Geografie", "Musik", "Sport", "Informatik",
]  # fmt: skip
CLASS_TITLES = [
    "Exkursion ins Technorama",
    "Prüfung Mathematik",
    "Théâtre: répétition générale",
    "Elternabend",
    "Skilager",
    "Klassenfoto",
]
SCHOOL_TITLES = [
    "Sporttag",
    "Tag der offenen Tür",
    "Weiterbildung Kollegium",
    "Konzert im Münster",
    "Fête d'été",
    "Notenkonvent",
]
DESCRIPTIONS = [
    "",
    "Bitte pünktlich erscheinen.",
    "Mitnehmen: Znüni, Regenschutz; gute Laune.\nRückkehr gegen Abend.",
]
PLACES = ["Aula", "Turnhalle", "Zimmer 204", "Café Bühlmann, Zürich", "Salle Jaccard", ""]
# The states of a hundred events.
STATES = {
    EventState.PUBLISHED: 94,
    EventState.DRAFT: 3,
    EventState.REVIEW: 2,
    EventState.REFUSED: 1,
}


@dataclass
class _School:
    """The ids of the rows that exist already, which later rows name."""

    departments: list[int] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    class_groups: list[str] = field(default_factory=list)
    teachers: list[int] = field(default_factory=list)
    people: list[int] = field(default_factory=list)
    events: list[UUID] = field(default_factory=list)


@dataclass(frozen=True)
class _Scope:
    """Whom some events name: up to `most` of `population`; with 0, the whole school.

    `weight` is the share of these events among all.
    """

    weight: float
    model: type[Base]
    column: str
    population: list[Any]
    most: int


def generate(
    session: Session,
    *,
    users: int,
    classes: int,
    departments: int,
    events: int,
    seed: int,
    zone: ZoneInfo,
    now: datetime,
    today: date,
) -> dict[str, int]:
    """Fill an empty database with a school, and return the number of rows of each kind.

    A tenth of the users teach, a few are admins, the others are students. Events begin at the
    earliest 31 days before `today` and at the latest 465 days after it. With 5,000 users, 200
    classes, 20 departments and 2,000 events, a user's calendar holds about 120 events.

    Raises:
        Conflict: The database holds a school already.
        InvalidInput: A number is below one.
    """
    if min(users, classes, departments, events) < 1:
        raise InvalidInput(
            "a school has at least one user, class, department and event; give numbers above 0"
        )
    for model in (User, SchoolClass, Department, Semester, Event):
        if session.execute(select(model).limit(1)).first():
            raise Conflict(
                f"the database holds a school already ({_table(model).name} is not empty); use an"
                " empty one for the made-up school"
            )
    rng = Random(seed)
    school = _School()
    _departments(session, school, departments)
    _classes(session, school, classes, today)
    _users(session, school, rng, users, now)
    lessons = _lessons(session, school, rng, today)
    _events(session, school, rng, events, zone=zone, now=now, today=today)
    subscriptions = _subscriptions(session, school, rng)
    counts = {"departments": departments, "classes": classes, "users": users, "semesters": 2}
    return counts | {"lessons": lessons, "events": events, "subscriptions": subscriptions}


def _table(model: type[Base]) -> Table:
    return cast("Table", model.__table__)


def _add(session: Session, model: type[Base], rows: list[dict[str, Any]]) -> None:
    if rows:
        session.execute(insert(_table(model)), rows)


def _chance(rng: Random, share: float) -> bool:
    return rng.random() < share


def _letters(alphabet: str) -> Iterator[str]:
    """Yield a to z, then aa, ab and so on."""
    for number in count():
        text, rest = "", number
        while rest >= 0:
            rest, digit = divmod(rest, len(alphabet))
            text, rest = alphabet[digit] + text, rest - 1
        yield text


def _department_letters(number: int) -> list[str]:
    letters = _letters("GWIBPTHFMSACDEJKLNOQRUVXYZ")
    return [next(letters) for _ in range(number)]


def _departments(session: Session, school: _School, number: int) -> None:
    rows = []
    for index, letter in enumerate(_department_letters(number)):
        name = FIELDS[index % len(FIELDS)] + (
            f" {index // len(FIELDS) + 1}" if index >= len(FIELDS) else ""
        )
        locale = Locale.FRENCH if name.startswith("Français") else Locale.GERMAN
        rows.append(
            {
                "name": name,
                "letter": letter,
                "colour": f"#{index * 2654435 % 0xFFFFFF:06x}",
                "locale": locale,
            }
        )
    _add(session, Department, rows)
    ids = dict(session.execute(select(Department.letter, Department.id)).all())
    school.departments = [ids[row["letter"]] for row in rows]


def _classes(session: Session, school: _School, number: int, today: date) -> None:
    """Make classes for every department and four graduation years.

    The first of a department and a year is 27Ga, the second 27Gb.
    """
    graduating = today.year + (today.month > JULY)
    letters = _department_letters(len(school.departments))
    suffixes: dict[tuple[int, str], Iterator[str]] = {}
    rows: list[dict[str, Any]] = []
    for index in range(number):
        department, year = index % len(letters), graduating + index // len(letters) % 4
        suffix = next(
            suffixes.setdefault((year, letters[department]), _letters("abcdefghijklmnopqrstuvwxyz"))
        )
        name = f"{year % 100:02}{letters[department]}{suffix}"
        rows.append(
            {
                "name": name,
                "display_name": f"Klasse {name}",
                "graduation_year": year,
                "department_id": school.departments[department],
            }
        )
    _add(session, SchoolClass, rows)
    ids = dict(session.execute(select(SchoolClass.name, SchoolClass.id)).all())
    school.classes = [ids[row["name"]] for row in rows]
    school.class_groups = list(dict.fromkeys(row["name"][:CLASS_GROUP_LENGTH] for row in rows))


def _users(session: Session, school: _School, rng: Random, number: int, now: datetime) -> None:
    admins, teachers = 1 + number // 1000, number // 10
    taken: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    for index in range(number):
        if index < admins:
            role = Role.ADMIN
        else:
            role = Role.TEACHER if index < admins + teachers else Role.STUDENT
        class_id = school.classes[index % len(school.classes)]
        first, last = rng.choice(FIRST_NAMES), rng.choice(LAST_NAMES)
        address = f"{first}.{last}".translate(ASCII).lower()
        taken[address] = taken.get(address, 0) + 1
        again = taken[address] if taken[address] > 1 else ""
        rows.append(
            {
                "email": f"{address}{again}@schule.example",
                "first_name": first,
                "last_name": last,
                "locale": Locale.FRENCH if _chance(rng, 0.15) else Locale.GERMAN,
                "role": role,
                "class_id": class_id if role is Role.STUDENT else None,
                # An admin without an untis_id has no feed, unless they subscribe.
                "untis_id": None if role is Role.ADMIN else f"{role.value[0].upper()}{index:07}",
                "mail_digest": _chance(rng, 0.2),
                "created_at": now,
            }
        )
    _add(session, User, rows)
    ids = dict(session.execute(select(User.email, User.id)).all())
    school.people = [ids[row["email"]] for row in rows]
    school.teachers = school.people[admins : admins + teachers]


def _semesters(session: Session, today: date) -> dict[int, str]:
    """Make the two semesters of the current school year, and return their names by id."""
    year = today.year - (today.month <= JULY)
    rows = [
        {"name": f"Herbst {year}", "starts_on": date(year, 8, 1), "ends_on": date(year + 1, 1, 31)},
        {
            "name": f"Frühling {year + 1}",
            "starts_on": date(year + 1, 2, 1),
            "ends_on": date(year + 1, 7, 31),
        },
    ]
    _add(session, Semester, rows)
    return dict(
        session.execute(select(Semester.id, Semester.name).order_by(Semester.starts_on)).all()
    )


@dataclass(frozen=True)
class _Taught:
    """A lesson of a week, with the teacher and the classes that it has in both semesters."""

    values: dict[str, Any]
    teacher: int
    classes: list[int]


def _lessons(session: Session, school: _School, rng: Random, today: date) -> int:
    """Make the lessons, the same week in both semesters, and return how many rows that are."""
    week = [
        taught
        for index, teacher in enumerate(school.teachers)
        for taught in _week_of(school, rng, index, teacher)
    ]
    for semester, name in _semesters(session, today).items():
        for start in range(0, len(week), BLOCK):
            block = week[start : start + BLOCK]
            keys = [f"{name}/{start + number:07}" for number in range(len(block))]
            rows = [
                {"key": key, "semester_id": semester, **taught.values}
                for key, taught in zip(keys, block, strict=True)
            ]
            _add(session, Lesson, rows)
            query = select(Lesson.id).where(Lesson.key.between(keys[0], keys[-1]))
            ids = session.scalars(query.order_by(Lesson.key)).all()
            pairs = list(zip(ids, block, strict=True))
            teachers = [{"lesson_id": id_, "user_id": taught.teacher} for id_, taught in pairs]
            _add(session, LessonTeacher, teachers)
            classes = [
                {"lesson_id": id_, "class_id": one}
                for id_, taught in pairs
                for one in taught.classes
            ]
            _add(session, LessonClass, classes)
    return 2 * len(week)


def _week_of(school: _School, rng: Random, index: int, teacher: int) -> Iterator[_Taught]:
    """Yield a teacher's lessons with a few classes of their own, and with those that they lead."""
    stride = max(1, len(school.departments))
    # Classes of one department stand `stride` apart, so a teacher mostly stays within theirs.
    own = [school.classes[(index + step * stride) % len(school.classes)] for step in range(3)]
    own.append(rng.choice(school.classes))
    led = school.classes[index :: len(school.teachers)]
    subject = rng.choice(SUBJECTS)
    for number, (weekday, starts) in enumerate(rng.sample(SLOTS, LESSONS_A_WEEK)):
        leads = number < len(led)
        values = {
            "weekday": weekday,
            "starts": starts,
            "ends": ENDS[starts],
            "subject": "Klassenstunde" if leads else subject,
            "room": f"{rng.randrange(1, 5)}{rng.randrange(1, 30):02}",
            "is_class_teachers": leads,
        }
        if leads:
            classes = [led[number]]
        else:
            classes = list(dict.fromkeys(rng.choices(own, k=2 if _chance(rng, 0.1) else 1)))
        yield _Taught(values, teacher, classes)


def _events(
    session: Session,
    school: _School,
    rng: Random,
    number: int,
    *,
    zone: ZoneInfo,
    now: datetime,
    today: date,
) -> None:
    rows: list[dict[str, Any]] = []
    links: dict[type[Base], list[dict[str, Any]]] = defaultdict(list)
    for scope, audience in _mix(school, rng, number):
        identity = UUID(int=rng.getrandbits(128), version=4)
        chosen = _few(rng, scope.population, scope.most) if scope.most else []
        links[scope.model] += [{"event_id": identity, scope.column: one} for one in chosen]
        state = rng.choices(list(STATES), list(STATES.values()))[0]
        of_classes = scope.model in (EventClassGroup, EventClass)
        title = rng.choice(CLASS_TITLES if of_classes else SCHOOL_TITLES)
        row = {
            "id": identity,
            "author_id": rng.choice(school.teachers) if school.teachers else None,
            "state": state,
            "title": f"{title} {rng.randrange(1, 100)}",
            "description": rng.choice(DESCRIPTIONS),
            "location": rng.choice(PLACES),
            **_span(rng, zone, today),
            "audience": audience,
            "addressed": bool(chosen),
            "teaching_affected": rng.choices(list(TeachingAffected), [3, 2, 5])[0],
            "created_at": now,
        }
        cancelled = state is EventState.PUBLISHED and _chance(rng, 0.03)
        rows.append(row | {"cancelled_at": now if cancelled else None})
    _add(session, Event, rows)
    for model, pairs in links.items():
        _add(session, model, pairs)
    school.events = [row["id"] for row in rows]


def _mix(school: _School, rng: Random, number: int) -> list[tuple[_Scope, Audience]]:
    """Return the scope and the audience of each of `number` events, shuffled.

    Their shares are exact. If each event drew its own, the mean size of a calendar would differ by
    a fifth from seed to seed.
    """
    # These weights, and those of the audience, make the mean that generate() promises.
    scopes = [
        _Scope(4.8, EventUser, "user_id", [], 0),
        _Scope(20, EventDepartment, "department_id", school.departments, 2),
        _Scope(25, EventClassGroup, "class_group", school.class_groups, 2),
        _Scope(42.5, EventClass, "class_id", school.classes, 3),
        _Scope(8, EventUser, "user_id", school.people, 12),
    ]
    audiences = dict(zip(Audience, [12, 6, 42, 40], strict=True))
    kinds = [(scope, audience) for scope in scopes for audience in audiences]
    bounds = list(accumulate(scope.weight * audiences[audience] for scope, audience in kinds))
    dealt = [kinds[bisect(bounds, (index + 0.5) / number * bounds[-1])] for index in range(number)]
    rng.shuffle(dealt)
    return dealt


def _few(rng: Random, population: list[Any], most: int) -> list[Any]:
    return rng.sample(population, min(len(population), rng.randint(1, most)))


def _span(rng: Random, zone: ZoneInfo, today: date) -> dict[str, Any]:
    """Choose when an event is: two thirds within a school day, the others on one or more days."""
    span: dict[str, Any] = dict.fromkeys(("starts_at", "ends_at", "starts_on", "ends_on"))
    day = today + timedelta(days=rng.randint(FIRST_DAY, LAST_DAY))
    if _chance(rng, 0.65):
        starts = datetime.combine(day, rng.choice(PERIODS), zone)
        # A few are deadlines, which have no length.
        return span | {
            "starts_at": starts,
            "ends_at": starts + timedelta(minutes=rng.choice([0, 45, 45, 90, 90, 180, 360])),
        }
    return span | {
        "starts_on": day,
        "ends_on": day + timedelta(days=rng.choice([0, 0, 0, 1, 2, 4, 11])),
    }


def _subscriptions(session: Session, school: _School, rng: Random) -> int:
    """Subscribe a tenth of the users, and return how many that are.

    Most subscribe to a class or two, some to a department; some ignore an event.
    """
    subscribers = sorted(rng.sample(school.people, max(1, len(school.people) // 10)))
    _add(
        session,
        Subscription,
        [{"user_id": user, "follows_me": _chance(rng, 0.9)} for user in subscribers],
    )
    kinds: list[tuple[type[Base], str, list[Any], float]] = [
        (SubscribedClass, "class_id", school.classes, 0.7),
        (SubscribedDepartment, "department_id", school.departments, 0.3),
        (IgnoredEvent, "event_id", school.events, 0.3),
    ]
    for model, column, population, share in kinds:
        pairs = [
            {"user_id": user, column: one}
            for user in subscribers
            if _chance(rng, share)
            for one in _few(rng, population, 2)
        ]
        _add(session, model, pairs)
    return len(subscribers)


@click.command()
@click.option("--users", default=500, show_default=True, type=SIZE)
@click.option("--classes", default=20, show_default=True, type=SIZE)
@click.option("--departments", default=4, show_default=True, type=SIZE)
@click.option("--events", default=2000, show_default=True, type=SIZE)
@click.option(
    "--seed",
    default=1,
    show_default=True,
    help="The same seed makes the same school (on the same day).",
)
def main(users: int, classes: int, departments: int, events: int, seed: int) -> None:
    """Fill an empty database with a made-up school around today."""
    with refusals():
        runtime = App("project.celery", Composition(COMPONENTS)).runtime
        zone, now = runtime[SchoolSettings].school_timezone, runtime.now()
        with runtime.unit_of_work() as session:
            counts = generate(
                session,
                users=users,
                classes=classes,
                departments=departments,
                events=events,
                seed=seed,
                zone=zone,
                now=now,
                today=now.astimezone(zone).date(),
            )
    for kind, number in counts.items():
        click.echo(f"{kind:<14}{number:>10,}")


if __name__ == "__main__":
    main()

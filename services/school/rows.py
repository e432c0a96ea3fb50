"""What a row of each of a school's CSV files may hold. docs/school-csv.md tells it to users."""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time
from functools import cache
from typing import Annotated, Any, ClassVar, cast
from uuid import UUID, uuid5
from zoneinfo import ZoneInfo

from email_validator import EmailNotValidError, validate_email
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationInfo, field_validator

from services.school.models import (
    CLASS_GROUP_LENGTH,
    Audience,
    DateState,
    EventState,
    Role,
    TeachingAffected,
)
from services.school.recurrences import make_date_id, read_rule
from services.school.texts import LONGEST_DESCRIPTION, LONGEST_LINE
from services.translation import Locale

SEPARATOR = ";"
YEARS = range(1900, 2200)
# Never change it: the ids of loaded events depend on it, and they are UIDs in calendars.
EVENT_NAMESPACE = UUID("6f0b0b9e-3c0a-5d0e-9f43-7a51c1d5e2b8")

RowKey = str | UUID


def make_event_id(key: str) -> UUID:
    """Return the event's id, which never changes: a UUID as it is, other text by its hash."""
    try:
        given = UUID(key)
    except ValueError:
        return uuid5(EVENT_NAMESPACE, key)
    # UUID() also reads braces, URNs and bare hexadecimal. Only the usual form surely means a UUID.
    return given if str(given) == key.lower() else uuid5(EVENT_NAMESPACE, key)


def split(cell: str | Iterable[str]) -> tuple[str, ...]:
    """Split a list cell at its semicolons, without empty and repeated members."""
    members = cell.split(SEPARATOR) if isinstance(cell, str) else cell
    return tuple(dict.fromkeys(filter(None, (member.strip() for member in members))))


def _key(cell: str) -> str:
    if re.search(rf"[{SEPARATOR}\n\t]", cell):
        raise ValueError(
            f"a name that others refer to cannot contain '{SEPARATOR}', a line break or a tab"
        )
    return cell


def _email(cell: str) -> str:
    """Return an address that mail can be sent to: the outbox has the same rule."""
    if not re.fullmatch(r"[^\s@;,<>]+@[^\s@;,<>]+", cell):
        raise ValueError(f"{cell!r} is no address; write it as anna.muster@schule.example")
    try:
        validate_email(cell, check_deliverability=False)
    except EmailNotValidError as error:
        raise ValueError(f"{cell!r} is no address that mail can be sent to: {error}") from error
    return cell.lower()


def _class_groups(cell: str | Iterable[str]) -> tuple[str, ...]:
    groups = split(cell)
    for group in groups:
        if len(group) != CLASS_GROUP_LENGTH:
            raise ValueError(
                f"{group!r} is no class group; write the first {CLASS_GROUP_LENGTH} characters of"
                " its classes, as 27G"
            )
    return groups


def _yes_or_no(cell: str) -> bool:
    if cell.lower() not in ("yes", "no"):
        raise ValueError(f"must be yes or no, not {cell!r}")
    return cell.lower() == "yes"


def _weekday(cell: str) -> int:
    names = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    if cell.lower() in names:
        return names.index(cell.lower()) + 1
    if not re.fullmatch("[1-7]", cell):
        raise ValueError(f"must be 1 (Monday) to 7 or {', '.join(names)}, not {cell!r}")
    return int(cell)


def _clock(cell: str) -> time:
    # Spreadsheet programs write seconds, too.
    parts = re.fullmatch(r"(([01]?[0-9]|2[0-3]):[0-5][0-9])(:00)?", cell)
    if not parts:
        raise ValueError(f"must be a time such as 08:15, not {cell!r}")
    return time.fromisoformat(parts[1].zfill(5))


def _as_iso(cell: str) -> str:
    """Return a date as Excel writes it here, 4.5.2026 8:15, in the form of ISO 8601.

    Not with slashes: 4/5/2026 is another day in another country.
    """
    parts = re.fullmatch(r"([0-9]{1,2})\.([0-9]{1,2})\.([0-9]{4})( +([0-9]{1,2}:.+))?", cell)
    if not parts:
        return cell
    day, month, year, _, clock = parts.groups(default="")
    iso = f"{year}-{month:0>2}-{day:0>2}"
    return f"{iso}T{clock if clock[2] == ':' else f'0{clock}'}" if clock else iso


def _day(cell: str) -> date:
    cell = _as_iso(cell)
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", cell):
        raise ValueError(f"must be a date such as 2026-05-04, not {cell!r}")
    try:
        day = date.fromisoformat(cell)
    except ValueError as error:
        raise ValueError(f"{cell} is not in the calendar ({error})") from error
    if day.year not in YEARS:
        raise ValueError(f"{cell}: the year must lie between {YEARS[0]} and {YEARS[-1]}")
    return day


def _last_day(cell: str, info: ValidationInfo) -> date:
    ends = _day(cell)
    if "starts" in info.data and ends < info.data["starts"]:
        raise ValueError(f"is before starts ({ends} < {info.data['starts']})")
    return ends


def _instant(cell: str, info: ValidationInfo) -> datetime:
    cell = _as_iso(cell)
    parts = re.fullmatch(
        r"(\S{10})[T ]([0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?)(Z|[+-][0-9]{2}:[0-9]{2})?",
        cell,
    )
    if not parts:
        raise ValueError(
            f"must be a time such as 2026-05-04T08:15 or 2026-05-04T08:15+02:00, not {cell!r}"
        )
    day, clock, offset = parts.groups(default="")
    _day(day)
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}{offset}")
    except ValueError as error:
        raise ValueError(f"{cell} is no time of day ({error})") from error
    return (moment if offset else _in_zone(moment, _zone(info))).astimezone(UTC)


def _in_zone(local: datetime, zone: ZoneInfo) -> datetime:
    """Return the instant of a wall-clock time.

    A time that the clocks skip or show twice is refused, since it does not name one instant.
    """
    first, second = (local.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
    if first.utcoffset() == second.utcoffset():
        return first
    skipped = first.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != local
    choices = " or ".join(
        sorted(moment.isoformat(timespec="minutes") for moment in (first, second))
    )
    reason = (
        "does not exist, the clocks skip it" if skipped else "happens twice, the clocks go back"
    )
    raise ValueError(
        f"{local.isoformat(timespec='minutes')} {reason} in {zone.key}; write it with an offset:"
        f" {choices}"
    )


def _zone(info: ValidationInfo) -> ZoneInfo:
    return cast("ZoneInfo", info.context)


def _date_or_instant(
    cell: str | date | datetime | None, info: ValidationInfo
) -> date | datetime | None:
    if isinstance(cell, str):
        return _instant(cell, info) if ":" in cell else _day(cell)
    if isinstance(cell, datetime) and cell.tzinfo is None:
        raise ValueError(f"{cell.isoformat()} needs a time zone")
    return cell


def _rule(cell: str, info: ValidationInfo) -> str:
    starts, ends = info.data.get("starts"), info.data.get("ends")
    if not cell or starts is None or ends is None:
        return cell  # Those are refused themselves.
    return read_rule(cell, starts, ends, _zone(info))


Key = Annotated[str, PlainValidator(_key)]
Email = Annotated[str, PlainValidator(_email), Field(max_length=320)]
List = Annotated[tuple[str, ...], PlainValidator(split)]
Flag = Annotated[bool, PlainValidator(_yes_or_no)]
Day = Annotated[date, PlainValidator(_day)]
# In a row with `starts`.
LastDay = Annotated[date, PlainValidator(_last_day)]
Clock = Annotated[time, PlainValidator(_clock)]
Instant = Annotated[datetime, PlainValidator(_instant)]
Moment = Annotated[date | datetime, PlainValidator(_date_or_instant)]
MomentOrNone = Annotated[date | datetime | None, PlainValidator(_date_or_instant)]


class Row(BaseModel):
    """One row. A field is a column; one without a default is required.

    `references` has, by column, the file in which the cell's names are keys.
    """

    model_config = ConfigDict(frozen=True)

    file: ClassVar[str]
    noun: ClassVar[str]
    key_column: ClassVar[str] = "name"
    references: ClassVar[dict[str, str]] = {}
    unique: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def identify(cls, cell: str) -> RowKey:
        """Return the natural key that a cell means."""
        return cell

    @classmethod
    def find_key(cls, cells: Mapping[str, str]) -> RowKey:
        """Return the natural key of the row that has these cells."""
        return cls.identify(cells.get(cls.key_column, ""))

    @classmethod
    @cache
    def columns(cls) -> dict[str, str]:
        """Return the field of each column. Each row asks this."""
        return {info.alias or name: name for name, info in cls.model_fields.items()}

    @classmethod
    @cache
    def naming(cls) -> tuple[str, ...]:
        """Return the columns whose cells are names: of the row, or of others."""
        return tuple(dict.fromkeys((cls.key_column, *cls.unique, *cls.references)))

    @classmethod
    def required(cls) -> list[str]:
        return [info.alias or name for name, info in cls.model_fields.items() if info.is_required()]


class DepartmentRow(Row):
    file, noun = "departments.csv", "department"

    name: Key = Field(max_length=200)
    letter: str = Field("", max_length=10)
    description: str = ""
    colour: str = Field("", max_length=20)
    locale: Locale = Locale.GERMAN


class ClassRow(Row):
    file, noun = "classes.csv", "class"
    references: ClassVar = {"department": "departments.csv"}

    name: Key = Field(max_length=50)
    display_name: str = Field("", max_length=200)
    graduation_year: int | None = Field(None, ge=YEARS[0], le=YEARS[-1])
    department: str | None = None


class UserRow(Row):
    file, noun, key_column, unique = "users.csv", "user", "email", ("untis_id",)
    references: ClassVar = {"class": "classes.csv"}

    email: Email
    first_name: str = Field(max_length=200)
    last_name: str = Field(max_length=200)
    role: Role
    locale: Locale = Locale.GERMAN
    class_name: str | None = Field(None, alias="class")
    untis_id: str | None = Field(None, max_length=50)
    mail_events: Flag = True
    mail_reviews: Flag = True
    mail_digest: Flag = False

    @classmethod
    def identify(cls, cell: str) -> str:
        return cell.lower()

    @field_validator("class_name")
    @classmethod
    def _only_students_have_a_class(cls, name: str | None, info: ValidationInfo) -> str | None:
        if "role" in info.data and info.data["role"] is not Role.STUDENT:
            raise ValueError(
                "only a student has a class; what a teacher teaches stands in lessons.csv"
            )
        return name


class SemesterRow(Row):
    file, noun = "semesters.csv", "semester"

    name: Key = Field(max_length=50)
    starts: Day
    ends: LastDay


class HolidayRow(Row):
    file, noun, key_column = "holidays.csv", "holiday", "id"

    id: Key = Field(max_length=50)
    name: str = Field(max_length=200)
    starts: Day
    ends: LastDay


class LessonRow(Row):
    file, noun, key_column = "lessons.csv", "lesson", "id"
    references: ClassVar = {
        "semester": "semesters.csv",
        "classes": "classes.csv",
        "teachers": "users.csv",
    }

    id: Key = Field(max_length=50)
    semester: str
    weekday: Annotated[int, PlainValidator(_weekday)]
    starts: Clock
    ends: Clock
    subject: str = Field(max_length=200)
    room: str = Field("", max_length=100)
    classes: List = ()
    teachers: List = ()
    class_teacher: Flag = False

    @field_validator("ends")
    @classmethod
    def _after_starts(cls, ends: time, info: ValidationInfo) -> time:
        if "starts" in info.data and ends <= info.data["starts"]:
            raise ValueError(f"is not after starts ({ends:%H:%M} <= {info.data['starts']:%H:%M})")
        return ends


class EventDetails(BaseModel):
    """What an event says, in a row of events.csv and in services/school/events.py.

    Dates mean an event that lasts all day; both days are included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field(max_length=LONGEST_LINE)
    description: str = Field("", max_length=LONGEST_DESCRIPTION)
    location: str = Field("", max_length=LONGEST_LINE)
    starts: Moment
    ends: Moment
    repeats: Annotated[str, PlainValidator(_rule)] = ""
    audience: Audience = Audience.STUDENTS
    teaching_affected: TeachingAffected = TeachingAffected.NO
    classes: List = ()
    class_groups: Annotated[tuple[str, ...], PlainValidator(_class_groups)] = ()
    departments: List = ()
    users: List = ()

    @field_validator("ends")
    @classmethod
    def _not_before_starts(cls, ends: Any, info: ValidationInfo) -> Any:
        return _check_ends(ends, info)


class EventRow(EventDetails, Row):
    file, noun, key_column = "events.csv", "event", "id"
    references: ClassVar = {
        "author": "users.csv",
        "classes": "classes.csv",
        "departments": "departments.csv",
        "users": "users.csv",
        "version_of": "events.csv",
    }

    id: Key
    author: str | None = None
    state: EventState
    version_of: str | None = None
    refusal: str = ""
    cancelled: Instant | None = None

    @classmethod
    def identify(cls, cell: str) -> UUID:
        return make_event_id(cell)


class EventDateRow(Row):
    """What is otherwise on one date of a repeated event; an empty cell: as on every date."""

    file, noun, key_column = "event_dates.csv", "date", "date"
    references: ClassVar = {"event": "events.csv"}

    event: Key
    date: Day
    state: DateState = DateState.CHANGED
    starts: MomentOrNone = None
    ends: MomentOrNone = Field(None, validate_default=True)
    title: str | None = Field(None, max_length=LONGEST_LINE)
    description: str | None = Field(None, max_length=LONGEST_DESCRIPTION)
    location: str | None = Field(None, max_length=LONGEST_LINE)

    @classmethod
    def find_key(cls, cells: Mapping[str, str]) -> RowKey:
        """Return the id of the row: an event has one for a date."""
        try:
            on = _day(cells.get("date", ""))
        except ValueError:
            return ""  # It is refused.
        return make_date_id(make_event_id(cells.get("event", "")), on)

    @field_validator("ends")
    @classmethod
    def _goes_with_starts(cls, ends: Any, info: ValidationInfo) -> Any:
        if "starts" in info.data and (ends is None) != (info.data["starts"] is None):
            raise ValueError("goes with starts; give both, or neither")
        return _check_ends(ends, info)

    @field_validator("starts", "ends", "title", "description", "location")
    @classmethod
    def _only_of_a_changed_date(cls, value: Any, info: ValidationInfo) -> Any:
        state = info.data.get("state")
        if value is not None and state in (DateState.LEFT_OUT, DateState.CANCELLED):
            raise ValueError(
                f"a date that is {state} has none; empty it, or make the state changed"
            )
        return value


class SubscriptionRow(Row):
    file, noun, key_column = "subscriptions.csv", "subscription", "email"
    references: ClassVar = {
        "email": "users.csv",
        "departments": "departments.csv",
        "classes": "classes.csv",
        "ignored_events": "events.csv",
    }

    email: Email
    follows_me: Flag = True
    departments: List = ()
    classes: List = ()
    ignored_events: List = ()

    @classmethod
    def identify(cls, cell: str) -> str:
        return cell.lower()


def _check_ends(ends: Any, info: ValidationInfo) -> Any:
    """Return the end of an event. Raises ValueError when it does not go with the start."""
    starts = info.data.get("starts")
    if starts is None or ends is None:
        return ends
    if isinstance(starts, datetime) != isinstance(ends, datetime):
        raise ValueError("must be of the same kind as starts: two dates (all day) or two times")
    if ends < starts:
        raise ValueError(
            f"is before starts ({_shown(ends, _zone(info))} < {_shown(starts, _zone(info))})"
        )
    return ends


def _shown(moment: date | datetime, zone: ZoneInfo) -> str:
    return (
        moment.astimezone(zone).isoformat(timespec="minutes")
        if isinstance(moment, datetime)
        else moment.isoformat()
    )


# In the order in which they are loaded: a file refers to earlier ones, and to itself.
ROWS: tuple[type[Row], ...] = (
    DepartmentRow,
    ClassRow,
    UserRow,
    SemesterRow,
    HolidayRow,
    LessonRow,
    EventRow,
    EventDateRow,
    SubscriptionRow,
)
ROW_OF = {row.file: row for row in ROWS}

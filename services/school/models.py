"""The school's own tables. services/calendars/audience.py has the rules of who sees what."""

from datetime import date, datetime, time
from enum import StrEnum
from uuid import UUID, uuid4

from nightshift.database import Base, UtcDateTime, choice, partial_index
from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    false,
    text,
    true,
)
from sqlalchemy.orm import Mapped, mapped_column

from services.translation import Locale


class Role(StrEnum):
    TEACHER = "teacher"
    STUDENT = "student"
    ADMIN = "admin"


class KeyPurpose(StrEnum):
    VERIFY_ADDRESS = "verify_address"
    RESET_PASSWORD = "reset_password"  # noqa: S105 - it is what a key is for, and none


class EventState(StrEnum):
    DRAFT = "draft"
    REVIEW = "review"
    PUBLISHED = "published"
    REFUSED = "refused"


class Audience(StrEnum):
    TEACHERS = "teachers"
    CLASS_TEACHERS = "class_teachers"
    STUDENTS = "students"
    ALL = "all"


class TeachingAffected(StrEnum):
    YES = "yes"
    PARTIAL = "partial"
    NO = "no"


class DateState(StrEnum):
    """What is otherwise on one date of a repeated event."""

    LEFT_OUT = "left_out"
    CANCELLED = "cancelled"
    CHANGED = "changed"


CLASS_GROUP_LENGTH = 3


class Department(Base):
    __tablename__ = "department"
    # An id is never used twice: a feed belongs to its owner's id, and a new owner must not get the
    # address of an old one.
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    letter: Mapped[str] = mapped_column(String(10), default="")
    description: Mapped[str] = mapped_column(Text, default="")
    colour: Mapped[str] = mapped_column(String(20), default="")
    locale: Mapped[Locale] = mapped_column(choice(Locale), default=Locale.GERMAN)


class SchoolClass(Base):
    """A class.

    The name's case matters (`27Ga` is not `27GA`). Its first three characters are the class group
    (`27G`).
    """

    __tablename__ = "school_class"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)
    display_name: Mapped[str] = mapped_column(String(200), default="")
    graduation_year: Mapped[int | None]
    department_id: Mapped[int | None] = mapped_column(
        ForeignKey("department.id", ondelete="SET NULL"), index=True
    )


class User(Base):
    """A user.

    `untis_id` is the link to the timetable system. The `mail_*` flags are opt-ins to kinds of mail.
    """

    __tablename__ = "user_account"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(320), unique=True)
    first_name: Mapped[str] = mapped_column(String(200))
    last_name: Mapped[str] = mapped_column(String(200))
    locale: Mapped[Locale] = mapped_column(choice(Locale), default=Locale.GERMAN)
    role: Mapped[Role] = mapped_column(choice(Role))
    class_id: Mapped[int | None] = mapped_column(
        ForeignKey("school_class.id", ondelete="SET NULL"), index=True
    )
    untis_id: Mapped[str | None] = mapped_column(String(50), unique=True)
    mail_events: Mapped[bool] = mapped_column(default=True, server_default=true())
    mail_reviews: Mapped[bool] = mapped_column(default=True, server_default=true())
    mail_digest: Mapped[bool] = mapped_column(default=False, server_default=false())
    email_verified_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class UserKey(Base):
    """The newest key that a user was sent for a purpose, as a hash, and the address it went to."""

    __tablename__ = "user_key"

    user_id: Mapped[int] = mapped_column(
        ForeignKey("user_account.id", ondelete="CASCADE"), primary_key=True
    )
    purpose: Mapped[KeyPurpose] = mapped_column(choice(KeyPurpose), primary_key=True)
    hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    address: Mapped[str] = mapped_column(String(320))
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    redeemed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Semester(Base):
    """A semester, both days included."""

    __tablename__ = "semester"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)
    starts_on: Mapped[date]
    ends_on: Mapped[date]


class Lesson(Base):
    """A weekly lesson. `weekday` is ISO's (Monday 1); times are the school's wall-clock time."""

    __tablename__ = "lesson"
    __table_args__ = (CheckConstraint("weekday between 1 and 7", name="weekday"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(50), unique=True)
    semester_id: Mapped[int] = mapped_column(
        ForeignKey("semester.id", ondelete="CASCADE"), index=True
    )
    weekday: Mapped[int]
    starts: Mapped[time]
    ends: Mapped[time]
    subject: Mapped[str] = mapped_column(String(200))
    room: Mapped[str] = mapped_column(String(100), default="")
    is_class_teachers: Mapped[bool] = mapped_column(default=False, server_default=false())


class LessonClass(Base):
    __tablename__ = "lesson_class"

    lesson_id: Mapped[int] = mapped_column(
        ForeignKey("lesson.id", ondelete="CASCADE"), primary_key=True
    )
    class_id: Mapped[int] = mapped_column(
        ForeignKey("school_class.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class LessonTeacher(Base):
    __tablename__ = "lesson_teacher"

    lesson_id: Mapped[int] = mapped_column(
        ForeignKey("lesson.id", ondelete="CASCADE"), primary_key=True
    )
    user_id: Mapped[int] = mapped_column(
        ForeignKey("user_account.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class LessonChange(Base):
    """What differs from a weekly lesson on one date, `taken_on`, on which it would take place.

    `cancelled`: it does not take place. Else what is not NULL differs: the room, the times, the day
    that it is moved to. With `substituted`, those of `lesson_change_teacher` teach it, and the
    lesson's own teachers do not.
    """

    __tablename__ = "lesson_change"
    __table_args__ = (UniqueConstraint("lesson_id", "taken_on"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    lesson_id: Mapped[int] = mapped_column(ForeignKey("lesson.id", ondelete="CASCADE"))
    taken_on: Mapped[date]
    cancelled: Mapped[bool] = mapped_column(default=False, server_default=false())
    room: Mapped[str | None] = mapped_column(String(100))
    moved_to: Mapped[date | None]
    starts: Mapped[time | None]
    ends: Mapped[time | None]
    substituted: Mapped[bool] = mapped_column(default=False, server_default=false())


class LessonChangeTeacher(Base):
    """Who teaches a substituted lesson on that date."""

    __tablename__ = "lesson_change_teacher"

    change_id: Mapped[int] = mapped_column(
        ForeignKey("lesson_change.id", ondelete="CASCADE"), primary_key=True
    )
    user_id: Mapped[int] = mapped_column(
        ForeignKey("user_account.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class Holiday(Base):
    """Days without lessons, both included. `key` finds the row again, as a lesson's does."""

    __tablename__ = "holiday"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(50), unique=True)
    name: Mapped[str] = mapped_column(String(200))
    starts_on: Mapped[date]
    ends_on: Mapped[date]


class Event(Base):
    """An event. Its `id` never changes: it is the iCalendar UID.

    It has either instants (`starts_at`, `ends_at`; equal for a deadline) or, for whole days, dates
    (`starts_on`, `ends_on`, both included). `addressed` says that it names a class, a department
    or a user: when the last of them is deleted, it is in no calendar, and does not become an event
    for the whole school. A row with `version_of_id` is another version of that event, a coming one
    (draft, review) or a past one; only rows without it are current. Publishing a version swaps the
    content of the two rows, so the published id stays.

    With `rrule` the event repeats (services/school/recurrences.py): the times are then those of its
    first date, and `first_on` and `last_on` the local days between which it takes place. Who writes
    a rule writes these, too.
    """

    __tablename__ = "event"
    __table_args__ = (
        CheckConstraint(
            "(starts_at is not null and ends_at is not null"
            " and starts_on is null and ends_on is null)"
            " or (starts_at is null and ends_at is null"
            " and starts_on is not null and ends_on is not null)",
            name="instants_or_dates",
        ),
        # For the two halves of the window's query, which reads only current published events.
        Index(
            "ix_event_current_instants",
            "ends_at",
            postgresql_where=text("state = 'published' and version_of_id is null"),
            sqlite_where=text("state = 'published' and version_of_id is null"),
        ),
        Index(
            "ix_event_current_dates",
            "ends_on",
            postgresql_where=text("state = 'published' and version_of_id is null"),
            sqlite_where=text("state = 'published' and version_of_id is null"),
        ),
        partial_index(
            "ix_event_current_series",
            "last_on",
            where="state = 'published' and version_of_id is null and last_on is not null",
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    author_id: Mapped[int | None] = mapped_column(
        ForeignKey("user_account.id", ondelete="SET NULL"), index=True
    )
    state: Mapped[EventState] = mapped_column(choice(EventState), default=EventState.DRAFT)
    title: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text, default="")
    location: Mapped[str] = mapped_column(Text, default="")
    starts_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    ends_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    starts_on: Mapped[date | None]
    ends_on: Mapped[date | None]
    rrule: Mapped[str] = mapped_column(Text, default="", server_default="")
    first_on: Mapped[date | None]
    last_on: Mapped[date | None]
    audience: Mapped[Audience] = mapped_column(choice(Audience), default=Audience.STUDENTS)
    teaching_affected: Mapped[TeachingAffected] = mapped_column(
        choice(TeachingAffected), default=TeachingAffected.NO
    )
    addressed: Mapped[bool] = mapped_column(default=False, server_default=false())
    version_of_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("event.id", ondelete="CASCADE"), index=True
    )
    refusal: Mapped[str] = mapped_column(Text, default="", server_default="")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    cancelled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    deleted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class EventDate(Base):
    """What is otherwise on one date of a repeated event. Empty: as on every date.

    `original_on` is the local day that the rule has. `id` is made of the event and that day
    (recurrences.make_date_id).
    """

    __tablename__ = "event_date"
    __table_args__ = (UniqueConstraint("event_id", "original_on"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    event_id: Mapped[UUID] = mapped_column(ForeignKey("event.id", ondelete="CASCADE"))
    original_on: Mapped[date]
    state: Mapped[DateState] = mapped_column(choice(DateState))
    starts_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    ends_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    starts_on: Mapped[date | None]
    ends_on: Mapped[date | None]
    title: Mapped[str | None] = mapped_column(Text)
    description: Mapped[str | None] = mapped_column(Text)
    location: Mapped[str | None] = mapped_column(Text)


class EventClass(Base):
    __tablename__ = "event_class"

    event_id: Mapped[UUID] = mapped_column(
        ForeignKey("event.id", ondelete="CASCADE"), primary_key=True
    )
    class_id: Mapped[int] = mapped_column(
        ForeignKey("school_class.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class EventClassGroup(Base):
    """An event for every class whose name begins with `class_group`, also for later ones."""

    __tablename__ = "event_class_group"

    event_id: Mapped[UUID] = mapped_column(
        ForeignKey("event.id", ondelete="CASCADE"), primary_key=True
    )
    class_group: Mapped[str] = mapped_column(String(CLASS_GROUP_LENGTH), primary_key=True)


class EventDepartment(Base):
    __tablename__ = "event_department"

    event_id: Mapped[UUID] = mapped_column(
        ForeignKey("event.id", ondelete="CASCADE"), primary_key=True
    )
    department_id: Mapped[int] = mapped_column(
        ForeignKey("department.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class EventUser(Base):
    """A user whom the event names, whatever its audience."""

    __tablename__ = "event_user"

    event_id: Mapped[UUID] = mapped_column(
        ForeignKey("event.id", ondelete="CASCADE"), primary_key=True
    )
    user_id: Mapped[int] = mapped_column(
        ForeignKey("user_account.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class Subscription(Base):
    """What a user's calendar shows beside, or instead of, the events that affect them.

    The calendar of a user without one shows the events that affect them.
    """

    __tablename__ = "subscription"

    user_id: Mapped[int] = mapped_column(
        ForeignKey("user_account.id", ondelete="CASCADE"), primary_key=True
    )
    follows_me: Mapped[bool] = mapped_column(default=True, server_default=true())


class SubscribedDepartment(Base):
    __tablename__ = "subscribed_department"

    user_id: Mapped[int] = mapped_column(
        ForeignKey("subscription.user_id", ondelete="CASCADE"), primary_key=True
    )
    department_id: Mapped[int] = mapped_column(
        ForeignKey("department.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class SubscribedClass(Base):
    __tablename__ = "subscribed_class"

    user_id: Mapped[int] = mapped_column(
        ForeignKey("subscription.user_id", ondelete="CASCADE"), primary_key=True
    )
    class_id: Mapped[int] = mapped_column(
        ForeignKey("school_class.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class IgnoredEvent(Base):
    __tablename__ = "ignored_event"

    user_id: Mapped[int] = mapped_column(
        ForeignKey("subscription.user_id", ondelete="CASCADE"), primary_key=True
    )
    event_id: Mapped[UUID] = mapped_column(
        ForeignKey("event.id", ondelete="CASCADE"), primary_key=True, index=True
    )

"""What an event says, as named facts in the reader's language and the school's time zone."""

import hashlib
from datetime import date, datetime, time, timedelta
from functools import partial
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from babel.dates import format_date, format_time
from nightshift.database import Session
from sqlalchemy import select, union_all

from services.letters.repeats import (
    describe_rule,
    format_day,
    list_days,
    read_change,
    read_repeats,
    shorten_list,
)
from services.mail.compose import WRITTEN_AS, remove_unwanted
from services.school.models import (
    Audience,
    DateState,
    Department,
    Event,
    EventClass,
    EventClassGroup,
    EventDepartment,
    EventUser,
    SchoolClass,
    TeachingAffected,
    User,
)
from services.school.recurrences import Series
from services.translation import Locale, translations

Content = dict[str, Any]


class Fact(NamedTuple):
    """One fact of an event; `old` is its earlier text, if that was another."""

    name: str
    new: str
    old: str | None = None


def number_of(said: bytes) -> int:
    """Return a number that another text changes, for the `version` of a mail."""
    # As many bits as the column has without the sign.
    return int.from_bytes(hashlib.sha256(said).digest()[:8], "big") >> 1


def read_content(session: Session, event: Event) -> Content:
    """Return what an event says, as JSON values.

    The users that it names are left out: readers must not see each other's names.
    """
    starts, ends = read_moments(event)
    named = union_all(
        select(SchoolClass.name)
        .join(EventClass, EventClass.class_id == SchoolClass.id)
        .where(EventClass.event_id == event.id),
        select(EventClassGroup.class_group).where(EventClassGroup.event_id == event.id),
        select(Department.name)
        .join(EventDepartment, EventDepartment.department_id == Department.id)
        .where(EventDepartment.event_id == event.id),
    )
    return {
        "title": event.title,
        "description": event.description,
        "location": event.location,
        "starts": starts.isoformat(),
        "ends": ends.isoformat(),
        "audience": event.audience.value,
        "addressed": event.addressed,
        "named": sorted(session.execute(named).scalars()),
        "teaching_affected": event.teaching_affected.value,
        "cancelled": event.cancelled_at is not None or event.deleted_at is not None,
    } | read_repeats(session, event)


def read_people(session: Session, event: Event) -> list[str]:
    """Return the names of the users whom an event names, for those who review it."""
    named = (
        select(User.first_name, User.last_name)
        .join(EventUser, EventUser.user_id == User.id)
        .where(EventUser.event_id == event.id)
    )
    return sorted(f"{first} {last}" for first, last in session.execute(named))


def look_different(one: Content, other: Content, zone: ZoneInfo) -> bool:
    """Return whether readers of any language would see a difference."""
    return one != other and any(look_different_in(locale, one, other, zone) for locale in Locale)


def look_different_in(locale: Locale, one: Content, other: Content, zone: ZoneInfo) -> bool:
    """Return whether readers of this language would see a difference."""
    return any(fact.old is not None for fact in make_facts(one, locale, zone, said=other))


def make_facts(
    says: Content, locale: Locale, zone: ZoneInfo, *, said: Content | None = None
) -> list[Fact]:
    """Return an event's facts that are not empty, with their earlier texts if `said` is given."""
    now = _make_texts(says, locale, zone)
    before = now if said is None else _make_texts(said, locale, zone)
    both = [
        Fact(name, text, None if before.get(name, "") == text else before.get(name, ""))
        for name, text in now.items()
    ]
    if said is not None and says["cancelled"] != said["cancelled"]:
        texts = translations(locale)
        cancelled, takes_place = texts.gettext("cancelled"), texts.gettext("takes place")
        both.append(
            Fact(
                texts.gettext("State"),
                *((cancelled, takes_place) if says["cancelled"] else (takes_place, cancelled)),
            )
        )
    return [fact for fact in both if fact.new or fact.old]


def _make_texts(says: Content, locale: Locale, zone: ZoneInfo) -> dict[str, str]:
    texts = translations(locale)
    audience = {
        Audience.STUDENTS: texts.gettext("Students"),
        Audience.TEACHERS: texts.gettext("Teachers"),
        Audience.CLASS_TEACHERS: texts.gettext("Class teachers"),
        Audience.ALL: texts.gettext("Students and teachers"),
    }[says["audience"]]
    affected = {
        TeachingAffected.YES: texts.pgettext("teaching affected", "yes"),
        TeachingAffected.PARTIAL: texts.pgettext("teaching affected", "partly"),
        TeachingAffected.NO: texts.pgettext("teaching affected", "no"),
    }[says["teaching_affected"]]
    if says["named"]:
        whom = f"{audience} ({', '.join(says['named'])})"
    elif says["addressed"]:
        whom = texts.gettext("Those whom it names")
    else:
        whom = texts.gettext("%(audience)s of the whole school") % {"audience": audience}
    repeats = (
        describe_repeats(says["repeats"], *parse_span(says), locale, zone)
        if ("repeats" in says)
        else {}
    )
    people = {texts.gettext("People"): ", ".join(says["people"])} if "people" in says else {}
    shown = {
        texts.gettext("Title"): says["title"],
        texts.gettext("When"): format_when(*parse_span(says), locale, zone),
        **repeats,
        texts.gettext("Where"): says["location"],
        texts.gettext("For"): whom,
        **people,
        texts.gettext("Teaching affected"): affected,
        texts.gettext("Description"): says["description"],
    }
    # As the mail shows them: two texts that look the same are the same.
    return {name: remove_unwanted(text) for name, text in shown.items()}


def read_moments(event: Event) -> tuple[date, date]:
    """Return when an event begins and ends: instants, or dates, both included, if it is all day."""
    starts, ends = event.starts_at or event.starts_on, event.ends_at or event.ends_on
    assert starts is not None
    assert ends is not None
    return starts, ends


def parse_span(says: Content) -> tuple[date, date]:
    """Return the times in a content, in the form of `read_moments`."""
    read = (
        date.fromisoformat if len(says["starts"]) == len("2026-12-01") else datetime.fromisoformat
    )
    return read(says["starts"]), read(says["ends"])


def compute_end(says: Content, zone: ZoneInfo) -> datetime:
    """Return the instant at which an event is over."""
    _, ends = parse_span(says)
    if says.get("repeats", {}).get("last_on"):
        ends = date.fromisoformat(says["repeats"]["last_on"])
    return (
        ends
        if isinstance(ends, datetime)
        else datetime.combine(ends + timedelta(days=1), time(), zone)
    )


def describe_repeats(
    repeats: Content, starts: date, ends: date, locale: Locale, zone: ZoneInfo
) -> dict[str, str]:
    """Return in words how an event repeats, and what is otherwise on single dates."""
    texts = translations(locale)
    changes = [read_change(one) for one in repeats["dates"]]
    days = {
        state: list_days([one.on for one in changes if one.state == state], locale)
        for state in DateState
    }
    own = [
        texts.gettext("%(day)s: %(what)s")
        % {
            "day": format_day(one.on, locale),
            "what": ", ".join(
                part
                for part in (
                    ""
                    if one.starts is None or one.ends is None
                    else format_when(one.starts, one.ends, locale, zone, on=one.on),
                    one.title,
                    one.location,
                    one.description,
                )
                if part
            ),
        }
        for one in changes
        if one.state == DateState.CHANGED
    ]
    return {
        texts.gettext("Repeats"): describe_rule(
            Series(starts, ends, repeats["rule"]), locale, zone
        ),
        texts.gettext("Not on"): days[DateState.LEFT_OUT],
        texts.gettext("Cancelled on"): days[DateState.CANCELLED],
        texts.gettext("Otherwise on"): "; ".join(shorten_list(own, locale)),
    }


def format_when(
    starts: date, ends: date, locale: Locale, zone: ZoneInfo, *, on: date | None = None
) -> str:
    """Write when something takes place: `Tuesday, 1 December 2026, 08:15–09:00`.

    The day is left out if it is `on`, which the reader sees beside it.
    """
    written = WRITTEN_AS.get(locale, locale)
    day, clock = (
        partial(format_date, format="full", locale=written),
        partial(format_time, format="short", locale=written),
    )
    if not isinstance(starts, datetime) or not isinstance(ends, datetime):
        if starts == ends:
            return translations(locale).gettext("all day") if starts == on else day(starts)
        return f"{day(starts)} – {day(ends)}"
    begin, end = starts.astimezone(zone), ends.astimezone(zone)
    if begin.date() != end.date():
        return f"{day(begin)}, {clock(begin)} – {day(end)}, {clock(end)}"
    hours = clock(begin) if begin == end else f"{clock(begin)}–{clock(end)}"
    return hours if begin.date() == on else f"{day(begin)}, {hours}"
